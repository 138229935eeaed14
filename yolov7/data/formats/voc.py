"""Read and write Pascal VOC annotations: one XML file per image; entities are never expanded.

Boxes are `xmin ymin xmax ymax`. Annotation tools write the edges of the box in pixels; the original VOC data
(development kit, section "annotation file") instead numbers pixels from 1 and includes the last one, so that the left
edge is `xmin - 1`. A file does not say which; `one_based` does. VOC has no polygons; both extensions of annotation
tools (`<polygon><x1/><y1/><x2/>...` and `<polygon><pt><x/><y/></pt>...`) are read, the first one is written.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, SubElement, TreeBuilder, indent, tostring
from xml.parsers import expat

from yolov7.data.formats.coco import CocoAnnotations, Record
from yolov7.data.formats.label_files import (
    LabelledImage,
    Ring,
    by_image,
    copy_images,
    finite_number,
    fresh_folder,
    read_small,
    ring_area,
    ring_bounds,
)
from yolov7.data.index_arrays import classes_of
from yolov7.errors import DataError

logger = logging.getLogger(__name__)

_MAX_DEPTH = 32
"""Deepest nesting of elements; VOC needs five."""
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_NOT_XML = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that cannot occur in XML, or in a list with one name per line."""


@dataclass(frozen=True)
class VocObject:
    """One object of an image."""

    name: str
    box: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax as written."""
    polygons: tuple[tuple[float, ...], ...] = ()
    """x1, y1, x2, y2, ... as written."""
    crowd: bool = False
    """`<iscrowd>1`, which :func:`write_voc` writes for COCO's crowds."""
    extra: tuple[tuple[str, int | str], ...] = ()
    """`difficult`, `truncated`, `occluded` (0 or 1) and `pose`, if the file has them."""


@dataclass(frozen=True)
class VocImage:
    """One annotation file."""

    path: Path
    file_name: str
    """`<filename>`; empty if the file has none."""
    size: tuple[int, int] | None
    """Height and width; None if the file has none or says 0."""
    objects: tuple[VocObject, ...]


def read_voc_file(path: Path) -> VocImage:
    """Read one annotation file.

    Raises :class:`DataError` naming the file and the object for: not XML, a document type (and so every entity), a root
    other than `annotation`, an object without name or box, a coordinate or size that is not a finite number. Validation
    judges the values.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise DataError(f"the root is <{root.tag[:40]}>; expected <annotation>: is this Pascal VOC?", path=path)
    objects = tuple(_object(element, number, path) for number, element in enumerate(root.findall("object"), 1))
    return VocImage(path, _text(root, "filename"), _size(root, path), objects)


def _parse(path: Path) -> Element:
    """The tree of a file. Expat is used directly, because it reports a document type before reading it."""
    parser, builder = expat.ParserCreate(), TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise DataError(f"more than {_MAX_DEPTH} nested elements; not an annotation file", path=path)
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        message = (
            "a document type (<!DOCTYPE ...>) is refused, because entities can be made to exhaust memory; remove it"
        )
        raise DataError(message, path=path, record=f"line {parser.CurrentLineNumber}")

    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    content = read_small(path)
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise DataError(f"not XML: {expat.ErrorString(error.code)}", path=path, record=f"line {error.lineno}") from None
    except (ValueError, LookupError) as error:  # an encoding that Expat or Python does not know
        raise DataError(f"not readable ({error}); save it as UTF-8", path=path) from None
    return builder.close()


def _text(element: Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _size(root: Element, path: Path) -> tuple[int, int] | None:
    size = root.find("size")
    if size is None:
        return None
    sides = [_number(size, name, path, "size") for name in ("height", "width")]
    if any(side != int(side) or side < 0 for side in sides):
        message = f"the size {_text(size, 'width')} x {_text(size, 'height')} is not a whole number of pixels"
        raise DataError(message, path=path)
    return (int(sides[0]), int(sides[1])) if all(sides) else None


def _number(element: Element, name: str, path: Path, where: str) -> float:
    text = _text(element, name)
    value = finite_number(text)
    if value is None:
        found = f"is {text[:40]!r}" if text else "is missing"
        raise DataError(f"<{name}> {found}; expected a finite number", path=path, record=where)
    return value


def _object(element: Element, number: int, path: Path) -> VocObject:
    name = _text(element, "name")
    where = f"object {number} ({name[:40]})"
    if not name:
        raise DataError("<name> is missing or empty", path=path, record=f"object {number}")
    polygons = tuple(tuple(_ring(polygon, path, where)) for polygon in element.findall("polygon"))
    box = element.find("bndbox")
    if box is not None:
        left, top, right, bottom = (_number(box, side, path, where) for side in _SIDES)
    elif polygons:
        left, top, right, bottom = _bounds(polygons)
    else:
        raise DataError("<bndbox> is missing", path=path, record=where)
    extra: list[tuple[str, int | str]] = []
    for key in ("difficult", "truncated", "occluded"):
        if element.find(key) is not None:
            extra.append((key, _flag(element, key)))
    pose = _text(element, "pose")
    if pose and pose != "Unspecified":
        extra.append(("pose", pose))
    return VocObject(name, (left, top, right, bottom), polygons, bool(_flag(element, "iscrowd")), tuple(extra))


def _flag(element: Element, name: str) -> int:
    return int(_text(element, name).lower() in ("1", "true", "yes"))


def _ring(polygon: Element, path: Path, where: str) -> Ring:
    points = polygon.findall("pt")
    if points:
        ring = [_number(point, axis, path, where) for point in points for axis in "xy"]
    else:
        numbers = range(1, len(polygon) // 2 + 1)
        ring = [_number(polygon, f"{axis}{number}", path, where) for number in numbers for axis in "xy"]
    if len(ring) < 6:
        raise DataError(f"<polygon> has {len(ring) // 2} points; expected three or more", path=path, record=where)
    return ring


def _bounds(rings: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    left, top, right, bottom = zip(*map(ring_bounds, rings), strict=True)
    return min(left), min(top), max(right), max(bottom)


def voc_to_coco(
    images: Iterable[tuple[VocImage, str, tuple[int, int]]],
    class_names: Sequence[str],
    *,
    path: Path,
    one_based: bool = False,
    difficult_is_crowd: bool = False,
    first_image_id: int = 1,
    first_annotation_id: int = 1,
) -> CocoAnnotations:
    """Join the annotations of many files; the classes become the categories 1, 2, ... in the given order.

    `images` holds each file with its image's name, relative to the image folder, and its height and width. `one_based`:
    see the module. `difficult_is_crowd`: objects marked difficult become crowds, which training ignores and evaluation
    neither rewards nor punishes, as in VOC's own evaluation. `path` names the source in messages.

    Raises :class:`DataError` naming file and object for a class that is not in `class_names`.
    """
    numbers = {name: number for number, name in enumerate(class_names, 1)}
    records: list[Record] = []
    annotations: list[Record] = []
    for image_id, (image, file_name, (height, width)) in enumerate(images, first_image_id):
        records.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for place, item in enumerate(image.objects, 1):
            if item.name not in numbers:
                known = ", ".join(list(numbers)[:10]) + (", ..." if len(numbers) > 10 else "")
                message = f"{item.name!r} is not one of the classes ({known})"
                raise DataError(message, path=image.path, record=f"object {place}")
            annotation: Record = {"id": first_annotation_id + len(annotations), "image_id": image_id}
            annotation |= {"category_id": numbers[item.name], **_geometry(item, one_based), **dict(item.extra)}
            annotation["iscrowd"] = int(item.crowd or (difficult_is_crowd and bool(annotation.get("difficult"))))
            annotations.append(annotation)
    categories: list[Record] = [{"id": number, "name": name} for name, number in numbers.items()]
    return CocoAnnotations(path=path, images=records, annotations=annotations, categories=categories)


def _geometry(item: VocObject, one_based: bool) -> Record:
    """Box, area and outlines in pixels."""
    left, top, right, bottom = item.box
    if one_based:
        left, top = left - 1, top - 1
    box = [left, top, right - left, bottom - top]
    if not item.polygons:
        return {"bbox": box, "area": box[2] * box[3]}
    rings = [list(ring) for ring in item.polygons]
    return {"bbox": box, "area": sum(map(ring_area, rings)), "segmentation": rings}


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
    for side, value in zip(_SIDES, (left + shift, top + shift, left + width, top + height), strict=True):
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
