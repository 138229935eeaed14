"""Files with the detections of a whole job, written from its records: COCO JSON, CSV, and what labelling tools import.

Records come one by one and are never held together, because a folder may be large. One is an object with `image` (id,
file_name, width, height) and `annotations` (`Detections.to_coco`).

CVAT and Label Studio correct detections instead of drawing boxes from nothing: pre-annotations. Their own packages pin
OpenCV 4 (datumaro 1.13, label-studio-sdk 2.1), beside which this library does not install; both formats are short.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote
from xml.sax.saxutils import XMLGenerator
from xml.sax.xmlreader import AttributesImpl

from yolov7.model.checkpoint import ModelMetadata
from yolov7.text import Rows, printable, printable_json

Record = dict[str, Any]

_CVAT_LABELS = ("meta", "task", "labels")
"""Path of the labels in CVAT's XML."""


@dataclass(frozen=True)
class About:
    """The origin of the detections."""

    metadata: ModelMetadata
    confidence: float
    iou: float

    @property
    def names(self) -> dict[int, str]:
        """Class names by category id."""
        return dict(zip(self.metadata.category_ids, self.metadata.class_names, strict=True))


def write_coco(file: IO[bytes], about: About, records: Callable[[], Iterator[Record]]) -> None:
    """COCO-style JSON: images, annotations (with a score), categories under their ids in the training data."""
    info = {
        "description": f"detections by {about.metadata.variant}",
        "confidence": about.confidence,
        "iou": about.iou,
    }
    categories = ({"id": number, "name": name} for number, name in about.names.items())
    images = (line(record["image"]) for record in records())
    annotations = (line(found) for record in records() for found in record["annotations"])
    file.write(b'{"info": ' + line(info))
    for name, lines in (("images", images), ("annotations", annotations), ("categories", map(line, categories))):
        file.write(f',\n"{name}": '.encode())
        _write_list(file, lines)
    file.write(b"}\n")


def write_csv(file: IO[bytes], about: About, records: Callable[[], Iterator[Record]]) -> None:
    """A row per detection: file, class, score, corners in pixels."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    rows = Rows(text)
    rows.write(["file", "class", "category_id", "score", "x1", "y1", "x2", "y2"])
    for record in records():
        for found in record["annotations"]:
            left, top, width, height = found["bbox"]
            corners = [left, top, round(left + width, 3), round(top + height, 3)]
            category = found["category_id"]
            rows.write([record["image"]["file_name"], about.names[category], category, found["score"], *corners])
    text.detach()  # the caller closes the file


def write_cvat(file: IO[bytes], about: About, records: Callable[[], Iterator[Record]]) -> None:
    """CVAT for images 1.1: the labels, then every image by its name with boxes as corners in pixels, marked `auto`."""
    xml = XMLGenerator(file, encoding="utf-8", short_empty_elements=True)
    xml.startDocument()
    xml.startElement("annotations", _texts({}))
    _element(xml, "version", {}, "1.1")
    for name in _CVAT_LABELS:  # datumaro, which imports this format too, wants them; CVAT goes by its task's
        xml.startElement(name, _texts({}))
    for label in about.names.values():
        xml.startElement("label", _texts({}))
        _element(xml, "name", {}, _xml_text(label))
        _element(xml, "attributes", {})
        xml.endElement("label")
    for name in reversed(_CVAT_LABELS):
        xml.endElement(name)
    for record in records():
        image = record["image"]
        xml.ignorableWhitespace("\n")
        sides = {"width": image["width"], "height": image["height"]}
        xml.startElement("image", _texts({"id": image["id"] - 1, "name": image["file_name"], **sides}))
        for found in record["annotations"]:
            left, top, width, height = found["bbox"]
            corners = {"xtl": left, "ytl": top, "xbr": round(left + width, 3), "ybr": round(top + height, 3)}
            label = about.names[found["category_id"]]
            _element(xml, "box", {"label": label, "source": "auto", "occluded": 0, **corners, "z_order": 0})
        xml.endElement("image")
    xml.ignorableWhitespace("\n")
    xml.endElement("annotations")
    xml.endDocument()


def write_label_studio(file: IO[bytes], about: About, records: Callable[[], Iterator[Record]]) -> None:
    """Label Studio tasks with `predictions`: a task per image, corner and sides of a box in percent of the image.

    The image is an address of Label Studio's local storage; the control tags are those of :func:`label_config`.
    """
    _write_list(file, (line(_task(about, record)) for record in records()))
    file.write(b"\n")


def write_label_config(file: IO[bytes], about: About, _: Callable[[], Iterator[Record]]) -> None:
    """The labelling interface of a Label Studio project that takes the tasks of :func:`write_label_studio`."""
    xml = XMLGenerator(file, encoding="utf-8", short_empty_elements=True)
    xml.startElement("View", _texts({}))
    _element(xml, "Image", {"name": "image", "value": "$image"})
    xml.startElement("RectangleLabels", _texts({"name": "label", "toName": "image"}))
    for name in about.names.values():
        _element(xml, "Label", {"value": name})
    xml.endElement("RectangleLabels")
    xml.endElement("View")


Write = Callable[[IO[bytes], About, Callable[[], Iterator[Record]]], None]

WRITERS: Mapping[str, Mapping[str, Write]] = {
    "csv": {"detections.csv": write_csv},
    "cvat": {"cvat.xml": write_cvat},
    "label-studio": {"label-studio.json": write_label_studio, "label-studio.xml": write_label_config},
}
"""Files of each further format of a job."""


def line(value: Any) -> bytes:
    """JSON in one line, UTF-8, without raw control characters."""
    return printable_json(json.dumps(value, ensure_ascii=False, allow_nan=False)).encode()


def _task(about: About, record: Record) -> dict[str, Any]:
    image, found = record["image"], record["annotations"]
    scores = [annotation["score"] for annotation in found]
    prediction = {
        "model_version": about.metadata.variant,
        "score": round(sum(scores) / len(scores), 5) if scores else 0.0,
        "result": [_region(about, image, annotation) for annotation in found],
    }
    return {"data": {"image": f"/data/local-files/?d={quote(image['file_name'])}"}, "predictions": [prediction]}


def _region(about: About, image: Record, annotation: Record) -> dict[str, Any]:
    left, top, width, height = annotation["bbox"]
    return {
        "id": str(annotation["id"]),
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": image["width"],
        "original_height": image["height"],
        "image_rotation": 0,
        "score": annotation["score"],
        "value": {
            "x": round(100 * left / image["width"], 5),
            "y": round(100 * top / image["height"], 5),
            "width": round(100 * width / image["width"], 5),
            "height": round(100 * height / image["height"], 5),
            "rotation": 0,
            # As in the labelling interface, whose XML holds no control characters.
            "rectanglelabels": [_xml_text(about.names[annotation["category_id"]])],
        },
    }


def _write_list(file: IO[bytes], lines: Iterable[bytes]) -> None:
    file.write(b"[")
    for number, text in enumerate(lines):
        file.write((b",\n  " if number else b"\n  ") + text)
    file.write(b"\n]")


def _element(xml: XMLGenerator, name: str, attributes: Mapping[str, Any], content: str = "") -> None:
    xml.startElement(name, _texts(attributes))
    if content:
        xml.characters(content)
    xml.endElement(name)


def _texts(attributes: Mapping[str, Any]) -> AttributesImpl[str]:
    return AttributesImpl({name: _xml_text(str(value)) for name, value in attributes.items()})


def _xml_text(text: str) -> str:
    """Text that XML can hold: no control characters and neither U+FFFE nor U+FFFF, not even escaped."""
    return printable(text).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
