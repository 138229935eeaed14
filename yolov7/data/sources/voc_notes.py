"""Notes on Pascal VOC annotations: flags, rotations and conversions of objects, counted per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from yolov7.data.formats.voc import VocImage, VocObject
from yolov7.data.sources.image_folder import shown
from yolov7.data.sources.parameters import Voc
from yolov7.data.tally import named_counts


def object_notes(files: Sequence[VocImage], parameters: Voc) -> list[str]:
    """Notes on the objects that are not learned as they look, or not learned at all."""
    objects = [item for file in files for item in file.objects]

    def is_difficult(item: VocObject) -> bool:
        return parameters.difficult_is_crowd and dict(item.extra).get("difficult") == 1

    def is_turned(item: VocObject) -> bool:
        return parameters.rotated != "as_written" and item.rotation % 180 != 0

    one = parameters.one_based
    ignored = "ignored in training and evaluation"
    turned = "the upright boxes around them were taken" if parameters.rotated == "hull" else ignored
    # Marks that change nothing are noted for every source (yolov7.data.flags).
    rows = [
        (_count(objects, is_difficult), f"marked difficult: {ignored} (data.voc.difficult_is_crowd)"),
        (
            _count(objects, is_turned),
            f"rotated: {turned} (data.voc.rotated)",
        ),
        (_count(objects, lambda item: item.is_turned_over(one_based=one)), "with corners in the wrong order: turned"),
        (_count(objects, lambda item: bool(item.polygons)), "with outlines: kept, and learned by their boxes"),
        (_count(objects, lambda item: bool(item.unknown_flags)), f"with {_words(objects)} for a flag: read as not set"),
    ]
    notes = [
        f"{counts.total()} objects {words} ({named_counts(sorted(counts.items()))})" for counts, words in rows if counts
    ]
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
