"""Ranges of a network's values, and the arithmetic of eight bits that the int8 files compute with.

A value of float32 with the range (low, high), which includes zero, becomes a byte and comes back as

    q = clip(round(x / scale) + zero_point, 0, 255)        y = (q - zero_point) * scale

with `scale, zero_point = steps(low, high)`; rounding is to the nearest, halves to even, all in float32. A weight has
one scale per output channel, of `weight_scales`, and the zero point 0: `q = round(w / scale)`. The files hold exactly
these numbers, so a training that rounds by them rounds as the files do. (Files of networks that were not trained so
have other steps of the same scales: :mod:`yolov7.export.compensate`.)

Processors without dot products of bytes (VNNI) multiply two neighbouring values by two weights and add the products in
sixteen bits. So that no sum overflows there, and a file gives the same results everywhere, the magnitudes of weights
that can meet add up to 128 at most: 255 * 128 < 2^15. Where a channel's largest weight has a small neighbour, as in
merged kernels, that leaves nearly all of the eight bits.

Sources of the methods: `entropy` is the calibration of TensorRT (Migacz, "8-bit inference with TensorRT", GTC 2017),
here with both ends of a value's range; the others are those that the YOLOv6 paper's quantisation is compared with.
"""

from __future__ import annotations

import math

import numpy as np

from yolov7.config import RangeMethod
from yolov7.errors import ModelError

Range = tuple[float, float]
"""Smallest and largest number to represent in eight bits."""

TOGETHER = 128
"""Steps of two neighbouring weights together."""
PAIR = 127
"""The same before rounding, which may add one."""
HALF = 64
"""Steps of the largest weight at least: two of that many can meet."""
PERCENTILE = 99.99
"""Share of the values below the upper end, and above the lower end, in percent."""
NOTHING: Range = (0.0, 1.0)
"""Range of a value that is always zero: any range represents it, and this one divides by nothing small."""
_BINS = 2048
_SAMPLES = 1 << 14
"""Numbers of one array that are counted, evenly spaced. Its smallest and largest always are."""
_LEVELS = 256
_SHARES = np.linspace(0.1, 1.0, 91)
"""Candidate ranges, as shares of the observed one."""
_NEVER = 1e-9
"""Probability instead of zero, where the logarithm needs one."""


class Histogram:
    """A running histogram of one value, of any number of arrays in any order.

    Bins are as wide as a power of two, and twice as wide whenever the values would need more of them. So the arrays of
    a set of images need not be kept, nor seen twice, and their order does not matter.
    """

    def __init__(self, name: str = "value"):
        self.name = name
        self.low, self.high = 0.0, 0.0
        """Ends of the observed range and zero."""
        self.zeros = 0
        """Numbers that are exactly zero: no range rounds them, and they are in no bin."""
        self.width, self._first = 0.0, 0
        self.counts, self.sums = np.zeros(_BINS), np.zeros(_BINS)
        """Numbers in each bin, and their sum."""

    def add(self, values: np.ndarray) -> None:
        """Count an array of any shape. Raises :class:`ModelError` for values that are not finite."""
        flat = values.ravel()
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(f"{self.name}: its values are not finite, so it has no range in eight bits")
        self.low, self.high = min(self.low, low), max(self.high, high)
        sampled = flat[:: max(1, flat.size // _SAMPLES)].astype(np.float64)
        counted = sampled[sampled != 0]
        self.zeros += sampled.size - counted.size
        if self.low < self.high:
            self._fit()
            bins = np.floor(counted / self.width).astype(np.int64) - self._first
            self.counts += np.bincount(bins, minlength=_BINS)
            self.sums += np.bincount(bins, counted, minlength=_BINS)

    @property
    def is_zero(self) -> bool:
        """Nothing but zero was seen."""
        return self.low == self.high

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean of the numbers in each bin that is not empty, and their count; zeros left out."""
        used = self.counts > 0
        return self.sums[used] / self.counts[used], self.counts[used]

    def edges(self) -> np.ndarray:
        """Lower ends of the bins, and the upper end of the last."""
        return (self._first + np.arange(_BINS + 1)) * self.width

    def _fit(self) -> None:
        """Let the bins reach from `low` to `high`."""
        width = max(self.width, 2.0 ** math.ceil(math.log2((self.high - self.low) / (_BINS - 2))))
        first = math.floor(self.low / width)
        if (width, first) == (self.width, self._first):
            return
        if self.width:
            doublings = round(math.log2(width / self.width))
            place = ((self._first + np.arange(_BINS)) >> doublings) - first
            inside = (place >= 0) & (place < _BINS)  # those outside are empty
            for name in ("counts", "sums"):
                old = getattr(self, name)
                setattr(self, name, np.bincount(place[inside], old[inside], minlength=_BINS))
        self.width, self._first = width, first


def range_of(histogram: Histogram, method: RangeMethod) -> Range:
    """The range of a value by `method`. It includes zero, and is :data:`NOTHING` for a value that is always zero.

    * `max`: all that was seen.
    * `percentile`: all but 0.01 % of the numbers at each end.
    * `mse`: the share of the observed range whose rounding to 256 steps and clipping have the least squared error.
    * `entropy`: the limit on the magnitude whose rounding to 256 steps and clipping change the distribution of the
      values least (Kullback-Leibler divergence).
    """
    if histogram.is_zero:
        return NOTHING
    low, high = {"max": _all, "percentile": _percentile, "mse": _least_error, "entropy": _least_divergence}[method](
        histogram
    )
    return (low, high) if low < high else (histogram.low, histogram.high)


def union(ranges: list[Range]) -> Range:
    """The smallest range that holds all of these."""
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def steps(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point (0 to 255) of a value with this range, as uint8."""
    first, last = (np.float64(np.float32(end)) for end in (min(low, 0.0), max(high, 0.0)))
    scale = (last - first) / 255.0
    if scale < np.finfo(np.float32).tiny:
        return np.float32(1.0), 0
    return np.float32(scale), int(np.round(-first / scale))


def weight_scales(weight: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Scales (C,) of a convolution's weight, float32, whose output channels C lie along `axis`: 1 where transposed.

    Two weights whose products a processor may add in sixteen bits have magnitudes of at most 128 together: neighbours
    along the inputs or along the kernel, in either order of the axes. The largest magnitude is a whole number of steps,
    64 to 127 (the weight that matters most is not rounded). A channel of zeros has the scale 1.
    """
    magnitudes = np.abs(np.moveaxis(weight, axis, 0)).astype(np.float32)
    orders = [order.reshape(len(order), -1) for order in (magnitudes, np.moveaxis(magnitudes, 1, -1))]
    largest = orders[0].max(axis=1)
    pairs = [(order[:, 1:] + order[:, :-1]).max(axis=1, initial=0.0) for order in orders]
    together = np.maximum(largest, np.maximum(*pairs)).clip(min=np.finfo(np.float32).tiny)
    return _not_zero(largest / np.floor(largest / together * np.float32(PAIR)).clip(HALF, PAIR))


def full_weight_scales(weight: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Scales (C,) with the largest magnitude at 127, for TensorRT. A channel of zeros has the scale 1."""
    largest = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis)).astype(np.float32)
    return _not_zero((2 * largest.astype(np.float64) / 254.0).astype(np.float32))


def _not_zero(scales: np.ndarray) -> np.ndarray:
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(1.0), scales)


def _all(histogram: Histogram) -> Range:
    return histogram.low, histogram.high


def _percentile(histogram: Histogram) -> Range:
    edges, below = histogram.edges(), np.cumsum(histogram.counts)
    total = below[-1] + histogram.zeros
    below += np.where(edges[:-1] >= 0, histogram.zeros, 0)  # zeros are in no bin
    tail = total * (1 - PERCENTILE / 100)
    low = float(edges[int(np.searchsorted(below, tail, side="right"))])
    high = float(edges[int(np.searchsorted(below, total - tail)) + 1])
    if histogram.counts[edges[:-1] >= 0].sum() <= tail:
        high = 0.0  # not the end of the bin that the zeros lie in
    return max(histogram.low, min(0.0, low)), min(histogram.high, max(0.0, high))


def _least_error(histogram: Histogram) -> Range:
    values, counts = histogram.means()
    best, least = _all(histogram), np.inf
    for share in _SHARES[::-1]:
        low, high = histogram.low * float(share), histogram.high * float(share)
        step = (high - low) / (_LEVELS - 1)
        zero = np.round(-low / step)
        back = (np.clip(np.round(values / step) + zero, 0, _LEVELS - 1) - zero) * step
        error = float((counts * (values - back) ** 2).sum())
        if error < least:
            best, least = (low, high), error
    return best


def _least_divergence(histogram: Histogram) -> Range:
    edges, largest = histogram.edges(), max(-histogram.low, histogram.high)
    best, least = _all(histogram), np.inf
    for share in _SHARES[::-1]:
        limit = largest * float(share)
        low, high = max(histogram.low, -limit), min(histogram.high, limit)
        start = int(np.searchsorted(edges, low, side="right")) - 1
        end = max(start + 1, int(np.searchsorted(edges, high)))
        divergence = _divergence(histogram.counts, start, end)
        if divergence < least:
            best, least = (low, high), divergence
    return best


def _divergence(counts: np.ndarray, start: int, end: int) -> float:
    """Of the distribution clipped to these bins from the same rounded to 256 levels; numbers of each level are spread
    evenly over its bins that are not empty."""
    inside = counts[start:end]
    if not inside.any():
        return math.inf
    clipped = inside.copy()
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[end:].sum()
    level = np.arange(len(inside)) * _LEVELS // max(len(inside), _LEVELS)
    used = np.bincount(level, inside > 0)
    spread = np.where(inside > 0, (np.bincount(level, inside) / np.maximum(used, 1))[level], 0.0)
    p, q = clipped / clipped.sum(), np.maximum(spread / spread.sum(), _NEVER)
    return float((p * np.log(np.maximum(p, _NEVER) / q)).sum())
