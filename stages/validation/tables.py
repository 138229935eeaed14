"""The annotations of all splits as data frames, one row per record, with the columns that rules use.

Every frame has `row` (its own position) and `split`. Columns that compare records (uses of an id, references, overhang)
are computed here, in whole-array arithmetic, so that the expectations stay simple and fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.validation.images import ImageCheck
from stages.validation.leaks import Picture, find_repetitions
from stages.validation.statistics import Statistics, describe_data, distances
from yolov7.data.flags import FLAGS, describe_flags, describe_open_world
from yolov7.data.formats.coco import CocoAnnotations

if TYPE_CHECKING:
    import pandas as pd

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]

_EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".mpo"},
    "TIFF": {".tif", ".tiff"},
    "JPEG2000": {".jp2", ".j2k"},
}
"""File extensions by format, if they differ from the format's name."""


@dataclass(frozen=True)
class Tables:
    """The data set as seven frames; each rule names one."""

    splits: pd.DataFrame
    """One row per split: images, boxes (without crowds), categories, and a text per flag."""
    categories: pd.DataFrame
    """One row per category record: category_id, name, uses_of_id, uses_of_name, case_clash."""
    classes: pd.DataFrame
    """One row per pair of id and name in any split: missing_from, and boxes in train, val, test."""
    images: pd.DataFrame
    """One row per image record: image_id, file_name, width, height, facts of its file, and the image it repeats."""
    annotations: pd.DataFrame
    """One row per annotation record: ids, bbox, the image's size, and the position of the box in it."""
    balance: pd.DataFrame
    """One row for val and for test: distances from train (see `statistics`)."""
    drift: pd.DataFrame
    """One row per split: distances from the champion's data; empty without a reference."""
    statistics: Statistics
    """Summary statistics, a few kilobytes."""

    def frame(self, table: str) -> pd.DataFrame:
        """The frame of a rule's `table`."""
        return getattr(self, table)

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
    splits: Mapping[str, CocoAnnotations], checks: Mapping[str, Sequence[ImageCheck]], context: Context
) -> Tables:
    """Lay out the annotations of every split; `checks` holds one entry per image record, in the same order."""
    categories = _joined([_categories(split, coco) for split, coco in splits.items()])
    annotations = _joined([_annotations(split, coco) for split, coco in splits.items()])
    images = _joined([_images(split, coco, checks[split]) for split, coco in splits.items()])
    _add_repetitions(images, context)
    classes = _classes(splits, annotations)
    statistics = describe_data(list(splits), classes, images, annotations, context.sha256)
    compared = [split for split in splits if split != "train" and not (split == "test" and context.test_is_val)]
    reference = context.reference
    return Tables(
        splits=_splits(splits),
        categories=categories,
        classes=classes,
        images=images,
        annotations=annotations,
        balance=_distances(dict.fromkeys(compared, "train"), statistics, statistics),
        drift=_distances(
            {split: split for split in splits if reference is not None}, statistics, reference or statistics
        ),
        statistics=statistics,
    )


def _splits(splits: Mapping[str, CocoAnnotations]) -> pd.DataFrame:
    import pandas as pd

    frames = [
        pd.DataFrame(
            {
                "split": [split],
                "images": [len(coco.images)],
                "boxes": [sum(not annotation.get("iscrowd") for annotation in coco.annotations)],
                "categories": [len(coco.categories)],
                **_flags(coco),
            }
        )
        for split, coco in splits.items()
    ]
    return _joined(frames)


def _flags(coco: CocoAnnotations) -> dict[str, pd.Series]:
    """A text for every flag, with class counts; missing if no annotation has the flag."""
    import pandas as pd

    found: dict[str, str | None] = {**dict.fromkeys(flag.name for flag in FLAGS), **describe_flags(coco)}
    found["not_exhaustive"] = describe_open_world(coco.images)
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


def _add_repetitions(images: pd.DataFrame, context: Context) -> None:
    import pandas as pd

    columns = (images[name].tolist() for name in ("split", "file_name", "sha256", "hash"))
    pictures = [Picture(*values) for values in zip(*columns, strict=True)]
    found = find_repetitions(pictures, bits=context.near_duplicate_bits, test_is_val=context.test_is_val)
    for name in ("repeats", "also_in", "nearly_in"):
        images[name] = pd.Series(getattr(found, name), dtype=object)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    filled = [frame for frame in frames if len(frame)] or frames[:1]
    joined = pd.concat(filled, ignore_index=True)
    joined.insert(0, "row", np.arange(len(joined)))
    return joined


def _column(records: list[dict[str, Any]], name: str) -> Int64s:
    return np.fromiter((record[name] for record in records), dtype=np.int64, count=len(records))


def _uses(values: Sequence[Any] | NDArray[Any]) -> Int64s:
    """Number of occurrences of every value."""
    import pandas as pd

    series = pd.Series(values)
    return series.groupby(series).transform("size").to_numpy(dtype=np.int64) if len(series) else np.zeros(0, np.int64)


def _positions(known: Int64s, wanted: Int64s) -> Int64s:
    """Position of each wanted id among the known ones (the first); -1 if missing."""
    unique, first = np.unique(known, return_index=True)
    if len(unique) == 0:
        return np.full(len(wanted), -1)
    at = np.searchsorted(unique, wanted).clip(max=len(unique) - 1)
    return np.where(unique[at] == wanted, first[at], -1)


def _categories(split: str, coco: CocoAnnotations) -> pd.DataFrame:
    import pandas as pd

    ids, names = _column(coco.categories, "id"), [record["name"] for record in coco.categories]
    return pd.DataFrame(
        {
            "split": split,
            "category_id": ids,
            "name": pd.Series(names, dtype=object),
            "uses_of_id": _uses(ids),
            "uses_of_name": _uses(names),
            "case_clash": pd.Series(_case_clashes(names), dtype=object),
        }
    )


def _case_clashes(names: Sequence[str]) -> list[str | None]:
    """For every name, an earlier one that differs only in case."""
    first: dict[str, str] = {}
    earlier = [first.setdefault(name.casefold(), name) for name in names]
    return [other if other != name else None for name, other in zip(names, earlier, strict=True)]


def _classes(splits: Mapping[str, CocoAnnotations], annotations: pd.DataFrame) -> pd.DataFrame:
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
    real = annotations[~annotations["iscrowd"].astype(bool)]
    for split in splits:
        counts = real.loc[real["split"] == split, "category_id"].value_counts()
        frame[split] = frame["category_id"].map(counts).fillna(0).astype(np.int64)
    frame["train_if_any"] = frame["train"].where(frame["train"] > 0)
    lacking = [[split for split in splits if split != "train" and not row[split]] for row in frame.to_dict("records")]
    frame["unmeasured_in"] = pd.Series([" and ".join(names) or None for names in lacking], dtype=object)
    frame.insert(0, "row", np.arange(len(frame)))
    return frame


def _images(split: str, coco: CocoAnnotations, checks: Sequence[ImageCheck]) -> pd.DataFrame:
    import pandas as pd

    ids = _column(coco.images, "id")
    names = [record["file_name"] for record in coco.images]
    width, height = (
        np.array([record[side] for record in coco.images], dtype=np.float64) for side in ("width", "height")
    )
    owners = _positions(ids, _column(coco.annotations, "image_id"))
    crowd = np.fromiter((bool(record.get("iscrowd")) for record in coco.annotations), bool, len(coco.annotations))
    valid = _is_pixel_count(width) & _is_pixel_count(height)
    frame = pd.DataFrame(
        {
            "split": split,
            "image_id": ids,
            "file_name": pd.Series(names, dtype=object),
            "width": pd.Series([record["width"] for record in coco.images], dtype=object),
            "height": pd.Series([record["height"] for record in coco.images], dtype=object),
            "boxes": np.bincount(owners[owners >= 0], minlength=len(ids)),
            "real_boxes": np.bincount(owners[(owners >= 0) & ~crowd], minlength=len(ids)),
            "uses_of_id": _uses(ids),
            "uses_of_file": _uses(names),
            "size_is_valid": valid,
            "mean_side": np.sqrt(np.where(valid, width, np.nan) * np.where(valid, height, np.nan)),
        }
    )
    for column, values in _file_columns(names, checks).items():
        frame[column] = values
    matches = (width == frame["file_width"]) & (height == frame["file_height"])
    # Missing if the file could not be decoded, which is another rule's finding.
    frame["size_matches"] = pd.Series(np.where(frame["file_width"].isna(), None, matches), dtype=object)
    return frame


def _file_columns(names: Sequence[str], checks: Sequence[ImageCheck]) -> dict[str, pd.Series | NDArray[Any]]:
    """Facts of the files."""
    import pandas as pd

    columns: dict[str, pd.Series | NDArray[Any]] = {
        "file_exists": np.array([check.exists for check in checks], dtype=bool),
        "extension_fits": pd.Series(
            [_extension_fits(name, check.format) for name, check in zip(names, checks, strict=True)], dtype=object
        ),
        "file_width": np.array([check.width or np.nan for check in checks], dtype=np.float64),
        "file_height": np.array([check.height or np.nan for check in checks], dtype=np.float64),
    }
    for name in ("brightness", "contrast"):
        columns[name] = np.array([getattr(check, name) for check in checks], dtype=np.float64)
    for name in ("defect", "complaint", "format", "mode", "is_animated", "sha256", "hash"):
        columns[name] = pd.Series([getattr(check, name) for check in checks], dtype=object)
    return columns


def _extension_fits(name: str, format_: str | None) -> bool | None:
    if format_ is None:
        return None
    return PurePosixPath(name).suffix.lower() in _EXTENSIONS.get(format_, {f".{format_.lower()}"})


def _is_pixel_count(side: Float64s) -> NDArray[np.bool_]:
    return (side >= 1) & (side < 2**31) & (np.floor(side) == side)


def _annotations(split: str, coco: CocoAnnotations) -> pd.DataFrame:
    import pandas as pd

    records = coco.annotations
    image_ids, category_ids = _column(records, "image_id"), _column(records, "category_id")
    boxes = np.array([record["bbox"] for record in records], dtype=np.float64).reshape(-1, 4)
    at = _positions(_column(coco.images, "id"), image_ids)
    sizes = np.array([(record["width"], record["height"]) for record in coco.images], dtype=np.float64).reshape(-1, 2)
    sizes = np.vstack([sizes, [np.nan, np.nan]])[at]  # -1 is the row of NaN
    names = np.array([record["file_name"] for record in coco.images] + [None], dtype=object)
    finite = np.asarray(np.isfinite(boxes).all(axis=1))
    crowd = np.fromiter((bool(record.get("iscrowd")) for record in records), bool, len(records))
    area = np.fromiter((record.get("area", np.nan) for record in records), np.float64, len(records))
    frame = pd.DataFrame(
        {
            "split": split,
            "annotation_id": _column(records, "id"),
            "image_id": image_ids,
            "category_id": category_ids,
            "iscrowd": crowd,
            "file_name": pd.Series(names[at], dtype=object),
            "left": boxes[:, 0],
            "top": boxes[:, 1],
            "box_width": boxes[:, 2],
            "box_height": boxes[:, 3],
            "area": area,
            "image_width": sizes[:, 0],
            "image_height": sizes[:, 1],
            "uses_of_id": _uses(_column(records, "id")),
            "image_is_known": at >= 0,
            "category_is_known": _positions(_column(coco.categories, "id"), category_ids) >= 0,
            "box_is_finite": finite,
            "overhang": _overhang(boxes, sizes, finite),
            **_shape(boxes, sizes, area, crowd),
        }
    )
    place = ["image_id", "category_id", "left", "top", "box_width", "box_height"]
    frame["box_is_new"] = ~frame.duplicated(place) | ~finite
    return frame


def _shape(boxes: Float64s, sizes: Float64s, area: Float64s, crowd: NDArray[np.bool_]) -> dict[str, Float64s]:
    """Size and aspect of a box; NaN for crowds and for boxes or images without a valid size."""
    sides = boxes[:, 2:]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        usable = (np.isfinite(sides) & (sides > 0)).all(axis=1) & ~crowd
        known = usable & (np.isfinite(sizes) & (sizes > 0)).all(axis=1)
        box_area = sides[:, 0] * sides[:, 1]
        return {
            "short_side": np.where(usable, sides.min(axis=1, initial=np.inf), np.nan),
            "elongation": np.where(usable, np.maximum(sides[:, 0] / sides[:, 1], sides[:, 1] / sides[:, 0]), np.nan),
            "coverage": np.where(known, box_area / (sizes[:, 0] * sizes[:, 1]), np.nan),
            "relative_size": np.where(known, np.sqrt(box_area) / sizes.max(axis=1, initial=0), np.nan),
            "area_of_box": np.where(usable & np.isfinite(area), area / box_area, np.nan),
        }


def _overhang(boxes: Float64s, sizes: Float64s, finite: NDArray[np.bool_]) -> Float64s:
    """Overhang of a box beyond its image, in pixels; NaN if the size of either is invalid."""
    with np.errstate(over="ignore", invalid="ignore"):
        far = boxes[:, :2] + boxes[:, 2:] - sizes
        beyond = np.maximum(np.maximum(-boxes[:, :2], far).max(axis=1, initial=-np.inf), 0.0)
    return np.where(finite & np.isfinite(sizes).all(axis=1), beyond, np.nan)
