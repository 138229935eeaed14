"""The annotations of all splits as tables, with the columns that rules use; those of records are in `records`.

Every table has `row` (its own position) and `split`. Columns that compare records (uses of an id, references, overhang)
are computed here, in whole-array arithmetic, so that the expectations stay simple and fast.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stages.validation.images import ImageCheck
from stages.validation.leaks import Pictures, Repetitions, find_repetitions
from stages.validation.records import (
    RecordTable,
    SplitAnnotations,
    SplitImages,
    annotation_table,
    count_uses,
    image_table,
    positions,
)
from stages.validation.statistics import Statistics, describe_data, distances
from yolov7.data.columns import CocoColumns, columns_of
from yolov7.data.flags import FLAGS, describe_bits, describe_open_world
from yolov7.data.formats.coco import CocoAnnotations

if TYPE_CHECKING:
    import pandas as pd


class Table(Protocol):
    """What the rules need of a table."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        ...

    def __len__(self) -> int: ...
    def frames(self, names: Collection[str]) -> Iterator[pd.DataFrame]:
        """At least these columns of all rows, in order, piece by piece."""
        ...

    def records(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """All columns of some rows, which ascend."""
        ...


@dataclass(frozen=True)
class SmallTable:
    """A table that is one frame."""

    frame: pd.DataFrame

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [str(name) for name in self.frame.columns]

    def __len__(self) -> int:
        return len(self.frame)

    def frames(self, names: Collection[str]) -> Iterator[pd.DataFrame]:
        """The frame, with all columns."""
        yield self.frame

    def records(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Some rows."""
        return self.frame.iloc[list(rows)].to_dict("records")


@dataclass(frozen=True)
class Tables:
    """The data set as seven tables; each rule names one."""

    splits: pd.DataFrame
    """One row per split: images, boxes (without crowds), categories, and a text per flag."""
    categories: pd.DataFrame
    """One row per category record: category_id, name, uses_of_id, uses_of_name, case_clash."""
    classes: pd.DataFrame
    """One row per pair of id and name in any split: missing_from, and boxes in train, val, test."""
    images: RecordTable[SplitImages]
    annotations: RecordTable[SplitAnnotations]
    balance: pd.DataFrame
    """One row for val and for test: distances from train (see `statistics`)."""
    drift: pd.DataFrame
    """One row per split: distances from the champion's data; empty without a reference."""
    statistics: Statistics
    """Summary statistics, a few kilobytes."""

    def table(self, name: str) -> Table:
        """A rule's `table`."""
        found = getattr(self, name)
        return found if isinstance(found, RecordTable) else SmallTable(found)

    @property
    def split_names(self) -> list[str]:
        """In the order of the pipeline."""
        return list(self.splits["split"])


@dataclass(frozen=True)
class Context:
    """Context of the records."""

    sha256: str = ""
    """Of the ingested data."""
    test_is_val: bool = False
    """Test is a copy of val."""
    near_duplicate_bits: int | None = None
    """See :class:`stages.project.params.Validation`."""
    reference: Statistics | None = None
    """The champion's data."""


def make_tables(
    splits: Mapping[str, CocoColumns | CocoAnnotations],
    checks: Mapping[str, Sequence[ImageCheck]],
    context: Context,
) -> Tables:
    """Lay out the annotations of every split; `checks` holds one entry per image record, in the same order."""
    columns = {split: columns_of(coco) for split, coco in splits.items()}
    owners = {split: positions(coco.images.ids, coco.annotations.image_ids) for split, coco in columns.items()}
    annotations = [SplitAnnotations(split, coco, owners[split]) for split, coco in columns.items()]
    images = [SplitImages(split, coco, checks[split], owners[split]) for split, coco in columns.items()]
    _add_repetitions(images, context)
    classes = _classes(columns)
    statistics = describe_data(classes, image_table(images), annotation_table(annotations), context.sha256)
    compared = [split for split in splits if split != "train" and not (split == "test" and context.test_is_val)]
    reference = context.reference
    return Tables(
        splits=_splits(columns),
        categories=_joined([_categories(split, coco) for split, coco in columns.items()]),
        classes=classes,
        images=image_table(images),
        annotations=annotation_table(annotations),
        balance=_distances(dict.fromkeys(compared, "train"), statistics, statistics),
        drift=_distances(
            {split: split for split in splits if reference is not None}, statistics, reference or statistics
        ),
        statistics=statistics,
    )


def _splits(splits: Mapping[str, CocoColumns]) -> pd.DataFrame:
    import pandas as pd

    frames = [
        pd.DataFrame(
            {
                "split": [split],
                "images": [len(coco.images)],
                "boxes": [int((~coco.annotations.crowd).sum())],
                "categories": [len(coco.categories)],
                **_flags(coco),
            }
        )
        for split, coco in splits.items()
    ]
    return _joined(frames)


def _flags(coco: CocoColumns) -> dict[str, pd.Series]:
    """A text for every flag, with class counts; missing if no annotation has the flag."""
    import pandas as pd

    names = {record["id"]: record["name"] for record in coco.categories}
    columns = coco.annotations
    described = describe_bits(columns.flags, columns.marks, columns.category_ids, names, len(columns))
    found: dict[str, str | None] = {**dict.fromkeys(flag.name for flag in FLAGS), **described}
    found["not_exhaustive"] = describe_open_world(int(coco.images.open_world.sum()), len(coco.images))
    found["and_crowds"] = f"; {found['crowds']}" if found["crowds"] else ""
    return {name: pd.Series([text], dtype=object) for name, text in found.items()}


def _distances(pairs: Mapping[str, str], ours: Statistics, theirs: Statistics) -> pd.DataFrame:
    """A row for every split, compared with the split of `theirs` it is paired with."""
    import pandas as pd

    rows = []
    for split, other in pairs.items():
        if other not in theirs.splits:
            continue
        row: dict[str, Any] = {"split": split, "against": other}
        for name, distance in distances(ours.splits[split], theirs.splits[other]).items():
            row |= {name: distance.value, f"{name}_chance": distance.chance, f"{name}_beyond": distance.beyond}
        rows.append(row)
    return _joined([pd.DataFrame(rows)])


def _add_repetitions(images: Sequence[SplitImages], context: Context) -> None:
    """Compare the files of all splits, if any was read."""
    if not any(check.sha256 or check.hash for part in images for check in part.checks):
        return
    checks = [check for part in images for check in part.checks]
    pictures = Pictures(
        splits=[part.split for part in images for _ in part.checks],
        file_names=np.concatenate([part.coco.images.names for part in images]),
        sha256=[check.sha256 for check in checks],
        hashes=[check.hash for check in checks],
    )
    found = find_repetitions(pictures, bits=context.near_duplicate_bits, test_is_val=context.test_is_val)
    first = 0
    for part in images:
        rows = slice(first, first + len(part))
        part.repetitions = Repetitions(found.repeats[rows], found.also_in[rows], found.nearly_in[rows])
        first += len(part)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    filled = [frame for frame in frames if len(frame)] or frames[:1]
    joined = pd.concat(filled, ignore_index=True)
    joined.insert(0, "row", np.arange(len(joined)))
    return joined


def _categories(split: str, coco: CocoColumns) -> pd.DataFrame:
    import pandas as pd

    ids = np.array([record["id"] for record in coco.categories], np.int64)
    names = [record["name"] for record in coco.categories]
    return pd.DataFrame(
        {
            "split": split,
            "category_id": ids,
            "name": pd.Series(names, dtype=object),
            "uses_of_id": count_uses(ids),
            "uses_of_name": count_uses(names),
            "case_clash": pd.Series(_case_clashes(names), dtype=object),
        }
    )


def _case_clashes(names: Sequence[str]) -> list[str | None]:
    """For every name, an earlier one that differs only in case."""
    first: dict[str, str] = {}
    earlier = [first.setdefault(name.casefold(), name) for name in names]
    return [other if other != name else None for name, other in zip(names, earlier, strict=True)]


def _classes(splits: Mapping[str, CocoColumns]) -> pd.DataFrame:
    import pandas as pd

    listed = {split: {(record["id"], record["name"]) for record in coco.categories} for split, coco in splits.items()}
    pairs = sorted(set().union(*listed.values()))
    frame = pd.DataFrame(
        {
            "split": "all",
            "category_id": np.array([pair[0] for pair in pairs], dtype=np.int64),
            "name": pd.Series([pair[1] for pair in pairs], dtype=object),
            "missing_from": pd.Series(
                [", ".join(split for split in splits if pair not in listed[split]) or None for pair in pairs],
                dtype=object,
            ),
        }
    )
    for split, coco in splits.items():
        columns = coco.annotations
        ids, numbers = np.unique(columns.category_ids[~columns.crowd], return_counts=True)
        counts = pd.Series(numbers, index=ids.astype(np.int64))
        frame[split] = frame["category_id"].map(counts).fillna(0).astype(np.int64)
    frame["train_if_any"] = frame["train"].where(frame["train"] > 0)
    lacking = [[split for split in splits if split != "train" and not row[split]] for row in frame.to_dict("records")]
    frame["unmeasured_in"] = pd.Series([" and ".join(names) or None for names in lacking], dtype=object)
    frame.insert(0, "row", np.arange(len(frame)))
    return frame
