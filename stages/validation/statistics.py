"""Statistics of a data version in a few kilobytes, and the distance between two of them.

The statistics of every validated version are an output of the stage and go to the registry with the model trained on
it; a later version is compared with those of the champion (`validation/reference.json`).

Distances are between 0 and 1. Shares of classes: Jensen-Shannon divergence to base 2 (Lin, IEEE Transactions on
Information Theory 37, 1991). Sizes and brightness: the two-sample Kolmogorov-Smirnov statistic, the largest gap
between the two cumulative distributions, taken at the edges of fixed bins. Two samples of one source differ as well;
`chance` is the distance they stay below in 999 of 1000 cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from scipy.special import rel_entr
from scipy.stats import chi2

from yolov7.config import Group
from yolov7.documents import load_json
from yolov7.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from stages.validation.records import RecordTable, SplitAnnotations, SplitImages

FORMAT = 1
CLASS_SHARES = "class_shares"
_KOLMOGOROV_999 = 1.9495
"""Of the Kolmogorov distribution, at 0.999: sqrt(-ln(0.001 / 2) / 2)."""


@dataclass(frozen=True)
class Quantity:
    """A number that every box or image has, and the bins it is counted in."""

    name: str
    title: str
    low: float
    high: float
    bins: int
    octaves: bool = False
    """Bins are even in the logarithm to base 2, and `low` and `high` are exponents."""

    def count(self, values: NDArray[np.float64]) -> list[int]:
        """Counts per bin; values beyond the ends count in the outer bins, non-finite ones nowhere."""
        values = values[np.isfinite(values)]
        if self.octaves:
            values = np.log2(values[values > 0])
        places = np.floor((values - self.low) / (self.high - self.low) * self.bins).clip(0, self.bins - 1)
        return np.bincount(places.astype(np.int64), minlength=self.bins).tolist()

    def edge(self, number: int) -> float:
        """Lower edge of bin `number`."""
        place = self.low + (self.high - self.low) * number / self.bins
        return 2.0**place if self.octaves else place


BOX_SIZES = Quantity("box_sizes", "Side of a box, as a share of the image's longer side", -10, 0, 40, octaves=True)
BOX_SHAPES = Quantity("box_shapes", "Width of a box to its height", -4, 4, 32, octaves=True)
BOXES_PER_IMAGE = Quantity("boxes_per_image", "Boxes on an image", 0, 40, 40)
IMAGE_SIZES = Quantity("image_sizes", "Side of an image in pixels", 4, 14, 40, octaves=True)
BRIGHTNESS = Quantity("brightness", "Mean brightness of an image (0 to 255)", 0, 256, 32)
QUANTITIES = (BOX_SIZES, BOX_SHAPES, BOXES_PER_IMAGE, IMAGE_SIZES, BRIGHTNESS)


class SplitStatistics(Group):
    """Counts of one split. Crowds do not count."""

    images: int = Field(ge=0)
    boxes: int = Field(ge=0)
    classes: dict[str, int]
    """Boxes by class name."""
    histograms: dict[str, list[int]]
    """Counts by the name of the quantity, in its bins; brightness is missing where images were not decoded."""


class Statistics(Group):
    """Counts of a version of the data."""

    format: int = Field(default=FORMAT, ge=FORMAT, le=FORMAT)
    data_sha256: str
    """Of the ingested data, as in its `dataset.json`."""
    champion: str | None = None
    """The model version that was trained on it, where this is a reference."""
    splits: dict[str, SplitStatistics]


def describe_data(
    classes: pd.DataFrame,
    images: RecordTable[SplitImages],
    annotations: RecordTable[SplitAnnotations],
    sha256: str,
) -> Statistics:
    """The statistics of the tables of the same names."""
    splits = [part.split for part in images.parts]
    counts = {split: {quantity.name: [0] * quantity.bins for quantity in QUANTITIES} for split in splits}
    boxes = dict.fromkeys(splits, 0)
    for frame in annotations.frames(["split", "iscrowd", "relative_size", "box_width", "box_height"]):
        for split, own in _by_split(frame[~frame["iscrowd"].to_numpy(bool)]):
            boxes[split] += len(own)
            _count(counts[split], BOX_SIZES, own["relative_size"])
            _count(counts[split], BOX_SHAPES, own["box_width"] / own["box_height"].where(own["box_height"] > 0))
    for frame in images.frames(["split", "real_boxes", "mean_side", "brightness"]):
        for split, own in _by_split(frame):
            _count(counts[split], BOXES_PER_IMAGE, own["real_boxes"])
            _count(counts[split], IMAGE_SIZES, own["mean_side"])
            _count(counts[split], BRIGHTNESS, own["brightness"])
    return Statistics(
        data_sha256=sha256,
        splits={
            split: SplitStatistics(
                images=len(images.part(split)),
                boxes=boxes[split],
                classes=_class_counts(classes, split),
                histograms=_without_brightness(counts[split]),
            )
            for split in splits
        },
    )


def _by_split(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for split in frame["split"].unique():
        yield str(split), frame[frame["split"] == split]


def _count(counts: dict[str, list[int]], quantity: Quantity, values: pd.Series) -> None:
    found = quantity.count(values.to_numpy(np.float64))
    counts[quantity.name] = [before + more for before, more in zip(counts[quantity.name], found, strict=True)]


def _class_counts(classes: pd.DataFrame, split: str) -> dict[str, int]:
    return {str(name): int(count) for name, count in classes.groupby("name", sort=True)[split].sum().items()}


def _without_brightness(histograms: dict[str, list[int]]) -> dict[str, list[int]]:
    """The histograms; none of the brightness if no image was decoded."""
    lit = any(histograms[BRIGHTNESS.name])
    return {name: counts for name, counts in histograms.items() if lit or name != BRIGHTNESS.name}


def read_statistics(path: Path) -> Statistics:
    """A statistics document. Raises :class:`DataError` for one that is damaged or of another format."""
    try:
        found = Statistics.model_validate(load_json(path))
    except (OSError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        advice = "fetch it again with `python -m stages.data_reference`, or remove it"
        raise DataError(f"no statistics of data ({' '.join(str(reason).split())}); {advice}", path=path) from None
    if "train" not in found.splits:
        raise DataError("statistics of no training data", path=path)
    for split in found.splits.values():
        for quantity in QUANTITIES:
            if len(split.histograms.get(quantity.name, [0] * quantity.bins)) != quantity.bins:
                raise DataError(f"{quantity.name} has other bins than are counted here", path=path)
    return found


@dataclass(frozen=True)
class Distance:
    """Distance of two samples, and the distance that chance explains (NaN if one is empty)."""

    value: float
    chance: float

    @property
    def beyond(self) -> float:
        """The part that chance does not explain."""
        return max(0.0, self.value - self.chance) if math.isfinite(self.value) else math.nan


def distances(one: SplitStatistics, other: SplitStatistics) -> dict[str, Distance]:
    """Distances of two splits: class shares, and every quantity."""
    found = {CLASS_SHARES: _jensen_shannon(one.classes, other.classes)}
    for quantity in QUANTITIES:
        ours, theirs = one.histograms.get(quantity.name, []), other.histograms.get(quantity.name, [])
        found[quantity.name] = _kolmogorov_smirnov(np.array(ours, np.float64), np.array(theirs, np.float64))
    return found


def _jensen_shannon(ours: Mapping[str, int], theirs: Mapping[str, int]) -> Distance:
    names = sorted(ours.keys() | theirs.keys())
    counts = np.array([[part.get(name, 0) for name in names] for part in (ours, theirs)], np.float64)
    counts = counts[:, counts.sum(0) > 0]
    totals = counts.sum(1, keepdims=True)
    if counts.shape[1] == 0 or not totals.all():
        return Distance(math.nan, math.nan)
    shares = counts / totals
    # Not by scipy's jensenshannon: of shares that hardly differ, its sum may round below 0, and its root is then NaN.
    distance = max(0.0, float(rel_entr(shares, shares.mean(0)).sum()) / (2 * math.log(2)))
    # For samples of one source, 8 ln 2 JS / (1/n + 1/m) is approximately chi-squared.
    quantile = float(chi2.ppf(0.999, counts.shape[1] - 1)) if counts.shape[1] > 1 else 0.0
    return Distance(distance, min(1.0, quantile * float((1 / totals).sum()) / (8 * math.log(2))))


def _kolmogorov_smirnov(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Distance:
    if not ours.sum() or not theirs.sum():
        return Distance(math.nan, math.nan)
    gap = np.abs(np.cumsum(ours) / ours.sum() - np.cumsum(theirs) / theirs.sum()).max()
    return Distance(float(gap), min(1.0, _KOLMOGOROV_999 * math.sqrt(1 / ours.sum() + 1 / theirs.sum())))
