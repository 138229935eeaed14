"""Notes on Pascal VOC annotations: flags, rotations and conversions of objects, counted per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from stages.project.params_data import Voc
from stages.sources.image_folder import shown
from yolov7.data.formats.label_files import per_class
from yolov7.data.formats.voc import VocImage, VocObject


def object_notes(files: Sequence[VocImage], parameters: Voc) -> list[str]:
    """Notes on the objects that are not learned as they look, or not learned at all."""
    objects = [item for file in files for item in file.objects]

    def marked(flag: str) -> Counter[str]:
        return _count(objects, lambda item: dict(item.extra).get(flag) == 1)

    one = parameters.one_based
    ignored = "ignored in training and evaluation (data.voc.difficult_is_crowd)"
    learned = "learned like the others; data.voc.difficult_is_crowd: true ignores them"
    turned = {
        "as_written": "their boxes are those before the rotation (data.voc.rotated: hull or crowd)",
        "hull": "the upright boxes around them were taken (data.voc.rotated)",
        "crowd": "ignored in training and evaluation (data.voc.rotated)",
    }
    rows = [
        (_count(objects, lambda item: item.crowd), "marked as crowds: ignored in training and evaluation"),
        (marked("difficult"), f"marked difficult: {ignored if parameters.difficult_is_crowd else learned}"),
        (marked("truncated"), "marked truncated: learned like the others"),
        (marked("occluded"), "marked occluded: learned like the others"),
        (_count(objects, lambda item: item.rotation % 180 != 0), f"rotated: {turned[parameters.rotated]}"),
        (_count(objects, lambda item: item.is_turned_over(one_based=one)), "with corners in the wrong order: turned"),
        (_count(objects, lambda item: bool(item.polygons)), "with outlines: kept, and learned by their boxes"),
        (_count(objects, lambda item: bool(item.unknown_flags)), f"with {_words(objects)} for a flag: read as not set"),
    ]
    notes = [f"{counts.total()} objects {words} ({per_class(counts)})" for counts, words in rows if counts]
    if files and not objects:
        notes.append(f"none of {len(files)} XML files has an object: did the export leave shapes out (CVAT: polygons)?")
    return notes + list(_numbering(files, parameters))


def _count(objects: Iterable[VocObject], fits: Callable[[VocObject], bool]) -> Counter[str]:
    return Counter(item.name for item in objects if fits(item))


def _words(objects: Iterable[VocObject]) -> str:
    return shown(sorted({text for item in objects for text in item.unknown_flags}))


def _numbering(files: Sequence[VocImage], parameters: Voc) -> Iterator[str]:
    """A 0 anywhere means edges; 1 and the image's full width, but never 0, look like pixels numbered from 1."""
    boxes = [(item.box, file.size) for file in files for item in file.objects]
    zero = sum(box[0] == 0 or box[1] == 0 for box, _ in boxes)
    if parameters.one_based and zero:
        yield f"data.voc.one_based is true, but {zero} boxes begin at 0: these files do not count from 1"
    if parameters.one_based or zero or not all(value == int(value) for box, _ in boxes for value in box):
        return
    first = sum(box[0] == 1 or box[1] == 1 for box, _ in boxes)
    last = sum(size is not None and (box[2] == size[1] or box[3] == size[0]) for box, size in boxes)
    if first and last:
        yield (
            f"no box begins at 0, {first} begin at 1 and {last} end with their image: pixels may be numbered from 1, "
            "and boxes be up to 1 pixel off (data.voc.one_based)"
        )
