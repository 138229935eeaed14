"""The annotations of all splits as data frames, one row a record, with the columns the rules speak about.

Every frame has `row` (its own position) and `split`. Columns that compare records (uses of an id, references, overhang)
are computed here, in whole-array arithmetic, so that the expectations stay simple and fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.validation.images import ImageCheck
from yolov7.data.coco import CocoAnnotations

if TYPE_CHECKING:
    import pandas as pd

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Tables:
    """The data set as five frames; each rule names one of them."""

    splits: pd.DataFrame
    """One row a split: images, boxes (without crowds), categories."""
    categories: pd.DataFrame
    """One row a category record: category_id, name, uses_of_id, uses_of_name."""
    classes: pd.DataFrame
    """One row a pair of id and name that any split lists: missing_from, and boxes in train, val, test."""
    images: pd.DataFrame
    """One row an image record: image_id, file_name, width, height, and what its file looked like."""
    annotations: pd.DataFrame
    """One row an annotation record: ids, bbox, the image's size, and how the box lies in it."""

    def frame(self, table: str) -> pd.DataFrame:
        """The frame of a rule's `table`."""
        return getattr(self, table)


def make_tables(splits: Mapping[str, CocoAnnotations], checks: Mapping[str, Sequence[ImageCheck]]) -> Tables:
    """Lay out the annotations of every split; `checks` holds one entry per image record, in the same order."""
    import pandas as pd

    categories = _joined([_categories(split, coco) for split, coco in splits.items()])
    annotations = _joined([_annotations(split, coco) for split, coco in splits.items()])
    return Tables(
        splits=_joined(
            [
                pd.DataFrame(
                    {
                        "split": [split],
                        "images": [len(coco.images)],
                        "boxes": [sum(not annotation.get("iscrowd") for annotation in coco.annotations)],
                        "categories": [len(coco.categories)],
                    }
                )
                for split, coco in splits.items()
            ]
        ),
        categories=categories,
        classes=_classes(splits, annotations),
        images=_joined([_images(split, coco, checks[split]) for split, coco in splits.items()]),
        annotations=annotations,
    )


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    filled = [frame for frame in frames if len(frame)] or frames[:1]
    joined = pd.concat(filled, ignore_index=True)
    joined.insert(0, "row", np.arange(len(joined)))
    return joined


def _column(records: list[dict[str, Any]], name: str) -> Int64s:
    return np.fromiter((record[name] for record in records), dtype=np.int64, count=len(records))


def _uses(values: Sequence[Any] | NDArray[Any]) -> Int64s:
    """For every value, how often it occurs."""
    import pandas as pd

    series = pd.Series(values)
    return series.groupby(series).transform("size").to_numpy(dtype=np.int64) if len(series) else np.zeros(0, np.int64)


def _positions(known: Int64s, wanted: Int64s) -> Int64s:
    """Where each wanted id first stands among the known ones; -1 where it does not."""
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
        }
    )


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
    frame.insert(0, "row", np.arange(len(frame)))
    return frame


def _images(split: str, coco: CocoAnnotations, checks: Sequence[ImageCheck]) -> pd.DataFrame:
    import pandas as pd

    ids = _column(coco.images, "id")
    names = [record["file_name"] for record in coco.images]
    width, height = (
        np.array([record[side] for record in coco.images], dtype=np.float64) for side in ("width", "height")
    )
    file_width = np.array([check.width or np.nan for check in checks], dtype=np.float64)
    file_height = np.array([check.height or np.nan for check in checks], dtype=np.float64)
    decoded = ~np.isnan(file_width)
    owners = _positions(ids, _column(coco.annotations, "image_id"))
    matches = (width == file_width) & (height == file_height)
    return pd.DataFrame(
        {
            "split": split,
            "image_id": ids,
            "file_name": pd.Series(names, dtype=object),
            "width": pd.Series([record["width"] for record in coco.images], dtype=object),
            "height": pd.Series([record["height"] for record in coco.images], dtype=object),
            "boxes": np.bincount(owners[owners >= 0], minlength=len(ids)),
            "uses_of_id": _uses(ids),
            "uses_of_file": _uses(names),
            "size_is_valid": _is_pixel_count(width) & _is_pixel_count(height),
            "file_exists": np.array([check.exists for check in checks], dtype=bool),
            "defect": pd.Series([check.defect for check in checks], dtype=object),
            "complaint": pd.Series([check.complaint for check in checks], dtype=object),
            "file_width": file_width,
            "file_height": file_height,
            # Missing where the file could not be decoded: that is another rule's finding.
            "size_matches": pd.Series(np.where(decoded, matches, None), dtype=object),
        }
    )


def _is_pixel_count(side: NDArray[np.float64]) -> NDArray[np.bool_]:
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
    frame = pd.DataFrame(
        {
            "split": split,
            "annotation_id": _column(records, "id"),
            "image_id": image_ids,
            "category_id": category_ids,
            "iscrowd": np.fromiter((bool(record.get("iscrowd")) for record in records), bool, len(records)),
            "file_name": pd.Series(names[at], dtype=object),
            "left": boxes[:, 0],
            "top": boxes[:, 1],
            "box_width": boxes[:, 2],
            "box_height": boxes[:, 3],
            "image_width": sizes[:, 0],
            "image_height": sizes[:, 1],
            "uses_of_id": _uses(_column(records, "id")),
            "image_is_known": at >= 0,
            "category_is_known": _positions(_column(coco.categories, "id"), category_ids) >= 0,
            "box_is_finite": finite,
            "overhang": _overhang(boxes, sizes, finite),
        }
    )
    place = ["image_id", "category_id", "left", "top", "box_width", "box_height"]
    frame["box_is_new"] = ~frame.duplicated(place) | ~finite
    return frame


def _overhang(boxes: NDArray[np.float64], sizes: NDArray[np.float64], finite: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How far a box reaches beyond its image, in pixels; NaN where the box or the image's size is unusable."""
    with np.errstate(over="ignore", invalid="ignore"):
        far = boxes[:, :2] + boxes[:, 2:] - sizes
        beyond = np.maximum(np.maximum(-boxes[:, :2], far).max(axis=1, initial=-np.inf), 0.0)
    return np.where(finite & np.isfinite(sizes).all(axis=1), beyond, np.nan)
