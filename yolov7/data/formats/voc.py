"""Read Pascal VOC annotations: one XML file per image; entities are never expanded.

Boxes are `xmin ymin xmax ymax`. Annotation tools write the edges of the box in pixels; the original VOC data
(development kit, section "annotation file") instead numbers pixels from 1 and includes the last one, so that the left
edge is `xmin - 1`. A file does not say which; `one_based` does. VOC has no polygons; both extensions of annotation
tools (`<polygon><x1/><y1/><x2/>...` and `<polygon><pt><x/><y/></pt>...`) are read. `voc_write.py` writes the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from yolov7.data.formats.coco import CocoAnnotations, Record
from yolov7.data.formats.label_files import (
    Ring,
    collected,
    finite_number,
    raise_together,
    read_small,
    ring_area,
    ring_bounds,
)
from yolov7.errors import DataError

_MAX_DEPTH = 32
"""Deepest nesting of elements; VOC needs five."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
"""Edges of a box, as the format calls them."""
_SET, _UNSET = ("1", "true", "yes"), ("", "0", "false", "no", "unspecified")
"""Words for a flag; labelme leaves the tags empty, early versions of MakeSense wrote `Unspecified`."""

Rotated = Literal["as_written", "hull", "crowd"]


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
    """`difficult`, `truncated`, `occluded` (0 or 1) and `pose`, if the file has them; `ignore`, if it is set."""
    rotation: float = 0.0
    """Degrees, clockwise about the centre of the box, from an attribute `rotation` (CVAT)."""
    unknown_flags: tuple[str, ...] = ()
    """Unknown words for flags; they count as 0."""

    def edges(self, *, one_based: bool) -> tuple[float, float, float, float]:
        """Left, top, right, bottom, in order: some tools write the corner of the first click first."""
        left, right = _ordered(self.box[0], self.box[2], one_based)
        top, bottom = _ordered(self.box[1], self.box[3], one_based)
        return left, top, right, bottom

    def is_turned_over(self, *, one_based: bool) -> bool:
        """True if the corners were in the wrong order."""
        shift = 1 if one_based else 0
        return self.box[0] - shift > self.box[2] or self.box[1] - shift > self.box[3]


def _ordered(low: float, high: float, one_based: bool) -> tuple[float, float]:
    shift = 1 if one_based else 0
    return (high - shift, low) if low - shift > high else (low - shift, high)


@dataclass(frozen=True)
class VocImage:
    """One annotation file."""

    path: Path
    file_name: str
    """`<filename>`; empty if the file has none."""
    size: tuple[int, int] | None
    """Height and width; None if the file has none or says 0."""
    objects: tuple[VocObject, ...]
    folder: str = ""
    """`<folder>`, as written."""
    full_path: str = ""
    """`<path>`, as written: a path of the machine of annotation."""


def read_voc_file(path: Path) -> VocImage:
    """Read one annotation file.

    Raises :class:`DataError` naming the file and all of its bad objects for: not XML, a document type (and so every
    entity), a root other than `annotation`, an object without name or box, a coordinate or size that is not a finite
    number. Validation judges the values.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise DataError(f"the root is <{root.tag[:40]}>; expected <annotation>: is this Pascal VOC?", path=path)
    problems: list[DataError] = []
    objects: list[VocObject] = []
    size = None
    with collected(problems):
        size = _size(root, path)
    for number, element in enumerate(root.findall("object"), 1):
        with collected(problems):
            objects.append(_object(element, number, path))
    raise_together(problems)
    texts = [_text(root, name) for name in ("filename", "folder", "path")]
    return VocImage(path, texts[0], size, tuple(objects), folder=texts[1], full_path=texts[2])


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
    if size is None or not (_text(size, "height") or _text(size, "width")):
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
    for key in ("name", "bndbox"):
        times = len(element.findall(key))
        if times > 1:
            raise DataError(f"<{key}> is given {times} times; keep one", path=path, record=where)
    polygons = tuple(tuple(_ring(polygon, path, where)) for polygon in element.findall("polygon"))
    box = element.find("bndbox")
    if box is not None:
        left, top, right, bottom = (_number(box, side, path, where) for side in SIDES)
    elif polygons:
        left, top, right, bottom = _bounds(polygons)
    else:
        raise DataError("<bndbox> is missing", path=path, record=where)
    extra: list[tuple[str, int | str]] = []
    for key in ("difficult", "truncated", "occluded"):
        if element.find(key) is not None:
            extra.append((key, _flag(element, key)))
    if _is_ignored(element):
        extra.append(("ignore", 1))
    pose = _text(element, "pose")
    if pose and pose != "Unspecified":
        extra.append(("pose", pose))
    flags = [_text(element, key) for key in ("difficult", "truncated", "occluded", "iscrowd")]
    return VocObject(
        name,
        (left, top, right, bottom),
        polygons,
        bool(_flag(element, "iscrowd")),
        tuple(extra),
        rotation=_rotation(element, path, where),
        unknown_flags=tuple(text[:40] for text in flags if text.lower() not in _SET + _UNSET),
    )


def _flag(element: Element, name: str) -> int:
    return int(_text(element, name).lower() in _SET)


def _is_ignored(element: Element) -> bool:
    """True for a tag `<ignore>`, or an attribute of this name, that is set."""
    attributes = element.findall("attributes/attribute")
    named = [one for one in attributes if _text(one, "name").lower() == "ignore"]
    return bool(_flag(element, "ignore")) or any(_flag(one, "value") for one in named)


def _rotation(element: Element, path: Path, where: str) -> float:
    for attribute in element.findall("attributes/attribute"):
        if _text(attribute, "name").lower() == "rotation" and _text(attribute, "value"):
            return _number(attribute, "value", path, f"{where}, attribute rotation")
    return 0.0


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


def unknown_class(image: VocImage, place: int, item: VocObject, class_names: Sequence[str]) -> DataError:
    """The error about an object (the `place`-th of its file) whose class is not in `class_names`."""
    known = ", ".join(class_names[:10]) + (", ..." if len(class_names) > 10 else "")
    message = f"{item.name!r} is not one of the classes ({known})"
    return DataError(message, path=image.path, record=f"object {place}")


def voc_to_coco(
    images: Iterable[tuple[VocImage, str, tuple[int, int]]],
    class_names: Sequence[str],
    *,
    path: Path,
    one_based: bool = False,
    difficult_is_crowd: bool = False,
    rotated: Rotated = "as_written",
    first_image_id: int = 1,
    first_annotation_id: int = 1,
) -> CocoAnnotations:
    """Join the annotations of many files; the classes become the categories 1, 2, ... in the given order.

    `images` holds each file with its image's name, relative to the image folder, and its height and width. `one_based`:
    see the module. `difficult_is_crowd`: objects marked difficult become crowds, which training ignores and evaluation
    neither rewards nor punishes, as in VOC's own evaluation. `rotated`: an object with a rotation keeps its box as
    written (before the rotation), gets the upright box around it, cut to the image, or becomes a crowd. `path` names
    the source in messages. Corners in the wrong order are put in order.

    Raises :class:`DataError` naming file and object for all classes that are not in `class_names`.
    """
    numbers = {name: number for number, name in enumerate(class_names, 1)}
    records: list[Record] = []
    annotations: list[Record] = []
    problems: list[DataError] = []
    for image_id, (image, file_name, (height, width)) in enumerate(images, first_image_id):
        records.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for place, item in enumerate(image.objects, 1):
            if item.name not in numbers:
                problems.append(unknown_class(image, place, item, class_names))
                continue
            annotation: Record = {"id": first_annotation_id + len(annotations), "image_id": image_id}
            size = (height, width) if rotated == "hull" else None
            annotation |= {"category_id": numbers[item.name], **_geometry(item, one_based, size), **dict(item.extra)}
            ignored = difficult_is_crowd and bool(annotation.get("difficult"))
            ignored = ignored or (rotated == "crowd" and item.rotation % 180 != 0)
            annotation["iscrowd"] = int(item.crowd or ignored)
            if item.rotation:
                annotation |= {"rotation": item.rotation, "rotation_enclosed": rotated == "hull"}
            annotations.append(annotation)
    raise_together(problems)
    categories: list[Record] = [{"id": number, "name": name} for name, number in numbers.items()]
    return CocoAnnotations(path=path, images=records, annotations=annotations, categories=categories)


def _geometry(item: VocObject, one_based: bool, hull_in: tuple[int, int] | None) -> Record:
    """Box, area and outlines in pixels; the box around a rotated one, cut to the image, if the image is given."""
    left, top, right, bottom = item.edges(one_based=one_based)
    if hull_in is not None and item.rotation % 180 != 0:
        area = (right - left) * (bottom - top)
        left, top, right, bottom = _hull((left, top, right, bottom), math.radians(item.rotation), hull_in)
        return {"bbox": [left, top, right - left, bottom - top], "area": area}
    box = [left, top, right - left, bottom - top]
    if not item.polygons:
        return {"bbox": box, "area": box[2] * box[3]}
    rings = [list(ring) for ring in item.polygons]
    return {"bbox": box, "area": sum(map(ring_area, rings)), "segmentation": rings}


def _hull(
    box: tuple[float, float, float, float], angle: float, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The upright box around a box that is turned about its centre, cut to an image of this height and width."""
    left, top, right, bottom = box
    x, y, w, h = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    across = (abs(w * math.cos(angle)) + abs(h * math.sin(angle))) / 2
    down = (abs(w * math.sin(angle)) + abs(h * math.cos(angle))) / 2
    height, width = size
    return max(x - across, 0.0), max(y - down, 0.0), min(x + across, float(width)), min(y + down, float(height))
