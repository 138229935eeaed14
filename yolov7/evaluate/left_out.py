"""Objects that an evaluation does not count, and detections that it does not look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yolov7.data.index import Index
from yolov7.data.tally import Tally, tally

TOOL_LIMIT = 100
"""Detections of an image and class that the COCO tool counts."""

CROWD = "crowds, which the COCO tool ignores"
BEYOND_TOOL = f"beyond the {TOOL_LIMIT} detections of a class and image that the COCO tool counts"


def uncounted_objects(index: Index, *, max_detections: int) -> Tally:
    """The objects of `index` that no detection can find, by reason and class: crowds, and objects of images with more
    of them than detections are kept or counted. Of the latter the last of the annotations are named.
    """
    crowd = index.left_out()["crowd"]
    images, labels = index.image_numbers(), index.all_labels()
    of_class = np.zeros(len(labels), np.int64)
    of_image = np.zeros(len(labels), np.int64)
    real = np.flatnonzero(~crowd)
    of_class[real] = _ranks(images[real] * index.num_classes + labels[real])
    over = of_class >= TOOL_LIMIT
    counted = np.flatnonzero(~crowd & ~over)
    of_image[counted] = _ranks(images[counted])
    cut = of_image >= max_detections
    lost = {
        CROWD: index.counts(crowd),
        BEYOND_TOOL: index.counts(over),
        f"beyond the {max_detections} detections that are kept of an image": index.counts(cut),
    }
    return tally("evaluation", index.class_names, index.counts(), lost)


def images_cut_short(results: Sequence[Mapping[str, Any]], *, max_detections: int) -> int:
    """The number of images whose detections reach `max_detections`: those with lower scores are not looked at."""
    return sum(count >= max_detections for count in Counter(result["image_id"] for result in results).values())


def _ranks(keys: np.ndarray) -> np.ndarray:
    """(n,) how often each key has come before."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys)) - np.searchsorted(ranked, ranked)
    return ranks
