"""Write Pascal VOC annotations: one XML file per image, with the images and an image set."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from yolov7.data.formats.coco import CocoAnnotations, Record, classes_of
from yolov7.data.formats.label_files import LabelledImage, Ring, by_image, copy_images, fresh_folder
from yolov7.data.formats.voc import SIDES
from yolov7.errors import DataError

_NOT_XML = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that cannot occur in XML, or in a list with one name per line."""


def write_voc(
    coco: CocoAnnotations,
    images_folder: Path,
    out: Path,
    *,
    image_set: str = "all",
    one_based: bool = False,
    decimals: int = 2,
) -> int:
    """Write `out/Annotations/**/*.xml`, `out/JPEGImages/` (copies) and `out/ImageSets/Main/<image_set>.txt`.

    Returns the number of objects. Coordinates have at most `decimals` places (0: whole numbers, for readers that accept
    nothing else; a box thinner than a pixel may then become empty). Outlines are written if all rings of an object are
    polygons; crowds are marked `difficult` and `iscrowd`. Class names are kept, category ids are lost.

    Raises :class:`DataError` for content that the format cannot hold
    (:func:`yolov7.data.formats.label_files.by_image`; an unknown category; a name with control characters), for a
    missing image file, and if `out` is not empty. On any error `out` is not created.
    """
    names = dict(zip(*reversed(classes_of(coco)), strict=True))
    for name in (*names.values(), *(record["file_name"] for record in coco.images)):
        if _NOT_XML.search(name) or name != name.strip():
            message = f"the name {name!r} has characters that XML cannot hold, or spaces around it; rename it"
            raise DataError(message, path=coco.path)
    images = by_image(coco, ".xml")
    with fresh_folder(out) as folder:
        for image in images:
            file = folder / "Annotations" / image.label
            file.parent.mkdir(parents=True, exist_ok=True)
            root = _document(image, names, coco.path, one_based, decimals)
            file.write_bytes(tostring(root, encoding="utf-8", xml_declaration=False) + b"\n")
        copy_images(images, images_folder, folder / "JPEGImages")
        listed = folder / "ImageSets/Main" / f"{image_set}.txt"
        listed.parent.mkdir(parents=True)
        stems = (image.label.with_suffix("").as_posix() for image in images)
        listed.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    return len(coco.annotations)


def _document(image: LabelledImage, names: dict[int, str], path: Path, one_based: bool, decimals: int) -> Element:
    record = image.record
    root = Element("annotation")
    SubElement(root, "folder").text = "JPEGImages"
    SubElement(root, "filename").text = PurePosixPath(record["file_name"]).name
    size = SubElement(root, "size")
    for key, value in (("width", record["width"]), ("height", record["height"]), ("depth", 3)):
        SubElement(size, key).text = _decimal(value, 0)
    SubElement(root, "segmented").text = "0"
    for annotation in image.annotations:
        if annotation["category_id"] not in names:
            message = f"category_id {annotation['category_id']} is not a category of this file"
            raise DataError(message, path=path, record=f"annotation {annotation['id']}")
        _write_object(root, annotation, names[annotation["category_id"]], one_based, decimals)
    indent(root, space="\t")
    return root


def _write_object(root: Element, annotation: Record, name: str, one_based: bool, decimals: int) -> None:
    item = SubElement(root, "object")
    crowd = bool(annotation.get("iscrowd"))
    SubElement(item, "name").text = name
    SubElement(item, "pose").text = _word(annotation.get("pose"))
    SubElement(item, "truncated").text = str(int(annotation.get("truncated") in (1, True)))
    SubElement(item, "difficult").text = str(int(crowd or annotation.get("difficult") in (1, True)))
    if annotation.get("occluded") in (0, 1):
        SubElement(item, "occluded").text = str(int(annotation["occluded"]))
    if crowd:
        SubElement(item, "iscrowd").text = "1"
    left, top, width, height = annotation["bbox"]
    shift = 1 if one_based else 0
    box = SubElement(item, "bndbox")
    for side, value in zip(SIDES, (left + shift, top + shift, left + width, top + height), strict=True):
        SubElement(box, side).text = _decimal(value, decimals)
    for ring in _writable_rings(annotation):
        polygon = SubElement(item, "polygon")
        for place, value in enumerate(ring):
            SubElement(polygon, f"{'xy'[place % 2]}{place // 2 + 1}").text = _decimal(value, decimals)


def _word(pose: object) -> str:
    return pose if isinstance(pose, str) and pose and not _NOT_XML.search(pose) else "Unspecified"


def _writable_rings(annotation: Record) -> list[Ring]:
    """The outlines, if all of them are polygons: a part of an object must not pass for the whole."""
    rings = annotation.get("segmentation")
    if not isinstance(rings, list):
        return []
    whole = all(len(ring) >= 6 and len(ring) % 2 == 0 and all(abs(v) < float("inf") for v in ring) for ring in rings)
    return rings if whole else []


def _decimal(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
