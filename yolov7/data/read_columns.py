"""Read an annotation file into columns, a batch of records at a time, checked as `yolov7.data.formats.coco` does."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from yolov7.data.columns import (
    AnnotationLists,
    CocoColumns,
    GrowingAnnotations,
    ImageColumns,
    ImageLists,
    annotation_columns,
    image_columns,
    join_images,
)
from yolov7.data.formats.coco import (
    LISTS,
    Problem,
    Record,
    find_list_problems,
    is_segmentation,
    is_text,
    paused_collector,
    problems_of,
    refusal_of_kinds,
)
from yolov7.data.formats.coco_stream import Batch, Begin, stream_coco

_SMALL = 32
"""Batches joined to a larger part."""
_INTEGERS = frozenset({int})
_NUMBERS = frozenset({int, float})


def read_columns(path: str | os.PathLike[str]) -> CocoColumns:
    """The columns of an annotation file, in memory that a fraction of its records would take.

    Raises :class:`DataError` as :func:`yolov7.data.formats.coco.read_coco`, in the same words.
    """
    file = Path(path)
    reader = _Reader()
    with paused_collector():
        for part in stream_coco(file):
            if isinstance(part, Begin):
                reader.begin(part.name)
            elif isinstance(part, Batch):
                reader.add(part.name, part.records)
            else:
                reader.begin(part.name)
                reader.document[part.name] = part.value
    return reader.finish(file)


class _Reader:
    """What has been read."""

    def __init__(self) -> None:
        self.document: Record = {}
        """Values of the top level; of the three lists of records, only that they are there and the categories."""
        self._images = _Images()
        self._annotations = GrowingAnnotations()
        self._counts: dict[str, int] = {}
        self._problems: dict[str, _Problems] = {}

    def begin(self, name: str) -> None:
        """A list begins; what an earlier one of the name held does not count."""
        self.document[name] = []
        self._counts[name] = 0
        self._problems[name] = _Problems()
        if name == "images":
            self._images = _Images()
        elif name == "annotations":
            self._annotations = GrowingAnnotations()

    def add(self, name: str, records: list[Any]) -> None:
        """More records of a list."""
        first = self._counts[name]
        self._counts[name] += len(records)
        if name in ("categories", "licenses"):
            self.document[name] += records
        if name == "images":
            images = _lists(ImageLists, records)
            if images is not None and _fits_images(images):
                self._images.add(image_columns(images))
                return
        elif name == "annotations":
            annotations = _lists(AnnotationLists, records)
            if annotations is not None and _fits_annotations(annotations):
                self._annotations.add(annotation_columns(annotations))
                return
        if name in LISTS:
            self._problems[name].add(problems_of(name, records, first))

    def finish(self, path: Path) -> CocoColumns:
        """The columns; :class:`DataError` if any record has a fault."""
        total = _Problems()
        total.add(iter(find_list_problems(self.document)))
        for name in LISTS:
            if name in self._problems:
                total.join(self._problems[name])
        if total.examples:
            raise refusal_of_kinds(total.examples, total.counts, path)
        return CocoColumns(path, self._images.join(), self._annotations.columns(), self.document["categories"])


class _Images:
    """Parts of columns, joined now and then: thousands of small arrays would leave their memory in pieces that nothing
    large can use."""

    def __init__(self) -> None:
        self._small: list[ImageColumns] = []
        self._large: list[ImageColumns] = []

    def add(self, part: ImageColumns) -> None:
        self._small.append(part)
        if len(self._small) >= _SMALL:
            self._large.append(join_images(self._small))

    def join(self) -> ImageColumns:
        parts = self._large + self._small
        self._large.clear()
        self._small.clear()
        return join_images(parts)


class _Problems:
    """Problems by kind: the first, and their number."""

    def __init__(self) -> None:
        self.examples: dict[Hashable, Problem] = {}
        self.counts: dict[Hashable, int] = {}

    def add(self, problems: Iterator[Problem]) -> None:
        for problem in problems:
            self.examples.setdefault(problem.kind, problem)
            self.counts[problem.kind] = self.counts.get(problem.kind, 0) + 1

    def join(self, other: _Problems) -> None:
        for kind, problem in other.examples.items():
            self.examples.setdefault(kind, problem)
            self.counts[kind] = self.counts.get(kind, 0) + other.counts[kind]


def _lists(kind: Any, records: list[Any]) -> Any:
    """The fields of the records; None if one is missing or not what its type allows."""
    try:
        return kind(records) if {dict}.issuperset(map(type, records)) else None
    except (KeyError, TypeError):
        return None


def _fits_images(lists: ImageLists) -> bool:
    """True if no record has a fault: the checks of :data:`yolov7.data.formats.coco.LISTS` on whole lists."""
    texts = {str}.issuperset(map(type, lists.names)) and "" not in lists.names
    return (
        _INTEGERS.issuperset(map(type, lists.ids))
        and _NUMBERS.issuperset(map(type, lists.widths))
        and _NUMBERS.issuperset(map(type, lists.heights))
        and texts
        and (not lists.names or is_text("".join(lists.names)))
    )


def _fits_annotations(lists: AnnotationLists) -> bool:
    ids = (lists.ids, lists.image_ids, lists.category_ids)
    return (
        all(_INTEGERS.issuperset(map(type, values)) for values in ids)
        and {list}.issuperset(map(type, lists.boxes))
        and {4}.issuperset(map(len, lists.boxes))
        and _NUMBERS.issuperset(map(type, lists.coordinates))
        and _NUMBERS.issuperset(map(type, lists.areas))
        and {int, bool}.issuperset(map(type, lists.crowd))
        and {0, 1}.issuperset(lists.crowd)
        and _fits_outlines(lists)
    )


def _fits_outlines(lists: AnnotationLists) -> bool:
    masks = [outline for outline in lists.outlines if type(outline) is not list]
    return (
        all(outline == () or is_segmentation(outline) for outline in masks)
        and {list}.issuperset(map(type, lists.rings))
        and _NUMBERS.issuperset(map(type, lists.points))
    )
