"""The range of pixel values that becomes 0 to 255, decided for a whole data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from yolov7.data.depth import DARK, TAIL, UNIT, PixelRange, declared_maximum, decode_deep
from yolov7.data.header import ImageHeader
from yolov7.data.image_kind import kind_of
from yolov7.data.sandbox import run_limited
from yolov7.errors import DataError
from yolov7.text import listed

KEY = "data.pixel_range"
_PER_PROCESS = 16
_SAMPLES = 1 << 20
"""Most pixels of an image that its quantiles are taken from."""
_SENSOR = 14
"""Most bits of a camera; a set that uses 15 of 16 is a dim one of 16."""
_OWN_DEPTH = frozenset({"AVIF", "Radiance HDR"})
"""Formats that declare the depth of their values; decoders scale them."""


@dataclass(frozen=True)
class Values:
    """The values of an image of more than 8 bits a channel."""

    floating: bool
    low: float
    high: float
    """The largest, or the one that the file declares."""
    dark: float
    """All but a share of `TAIL` of the pixels are above, and below `bright`."""
    bright: float


@dataclass(frozen=True)
class Depth:
    """The range for all images of a data set."""

    range: PixelRange | None = None
    """None: the upper 8 of 16 bits, or no such image."""
    images: int = 0
    """Number of images with more than 8 bits a channel."""
    notes: tuple[str, ...] = ()

    def describe(self) -> dict[str, float | int] | None:
        """For dataset.json; None without such images."""
        if not self.images:
            return None
        used = self.range or PixelRange(0, 65535)
        return {"low": used.low, "high": used.high, "images": self.images}


def is_deep(header: ImageHeader | None) -> bool:
    """True if an image may have more than 8 bits a channel."""
    return header is None or header.bits > 8


def decide(images: Sequence[tuple[str, Path]], asked: PixelRange | None) -> Depth:
    """The range for the images (name and file) of a data set that may have more than 8 bits a channel.

    `asked` decides if it is given. Otherwise: as many bits as the largest value needs, at least 8; for floating values
    0 to 1 if they lie there; for negative ones, smallest to largest. Raises :class:`DataError` where floating values
    from 0 to 1 and integers are mixed: nothing tells how bright one is beside the other.
    """
    found = run_limited(measure, [path for _, path in images], per_process=_PER_PROCESS)
    measured = [
        (name, values)
        for (name, _), values in zip(images, found, strict=True)
        if isinstance(values, Values)  # damaged ones, and those that break the limits, are reported when rewritten
    ]
    if not measured:
        return Depth()
    chosen = asked or _chosen([values for _, values in measured])
    notes = (_scaled_note(measured, chosen, asked=asked is not None), *_dark_notes(measured, chosen))
    return Depth(chosen, len(measured), tuple(note for note in notes if note))


def measure(path: Path) -> Values | None:
    """The values of an image; None if it has 8 bits or is damaged. Runs under :func:`run_limited`."""
    try:
        data = path.read_bytes()
        kind = kind_of(data[:1024])
        pixels = None if kind is None or not kind.read or kind.name in _OWN_DEPTH else decode_deep(data)
    except (OSError, cv2.error):
        return None
    if pixels is None or pixels.dtype == np.uint8:
        return None
    floating = pixels.dtype.kind == "f"
    flat = pixels.reshape(-1)
    low, high = (float(np.min(flat)), float(np.max(flat)))
    if floating:
        flat = flat[np.isfinite(flat)]
        low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 0.0)
    sample = flat[:: -(-flat.size // _SAMPLES)] if flat.size else np.zeros(1)
    dark, bright = np.quantile(sample.astype(np.float64), [TAIL, 1 - TAIL]).tolist()
    declared = declared_maximum(data)
    if declared is not None and declared < 65535:  # many write 65535 whatever the values are
        high = max(high, float(declared))
    return Values(floating, low, high, dark, bright)


def _chosen(values: Sequence[Values]) -> PixelRange | None:
    low, high = min(image.low for image in values), max(image.high for image in values)
    floating = [image for image in values if image.floating]
    unit = [image for image in floating if image.low >= 0 and image.high <= 1]
    if len(unit) == len(values):
        return UNIT
    if unit and len(floating) < len(values):
        raise DataError(
            f"{len(unit)} images hold floating values from 0 to 1, and {len(values) - len(floating)} others integers up"
            f" to {high:g}: no range fits both; save them alike, or set {KEY}"
        )
    if low < 0:
        return PixelRange(low, high if high > low else low + 1)
    bits = max(8, int(np.ceil(np.log2(high + 1))))
    if not floating and _SENSOR < bits <= 16:
        return None
    return PixelRange(0, float(2**bits - 1))


def _scaled_note(measured: Sequence[tuple[str, Values]], chosen: PixelRange | None, *, asked: bool) -> str:
    if chosen is None:
        return ""
    why = f"as {KEY} says" if asked else "the range that the set uses"
    return (
        f"{len(measured)} images have more than 8 bits a channel: their values from {chosen} became 0 to 255 ({why});"
        f" predict with --pixel-range {chosen.low:g} {chosen.high:g}"
    )


def _dark_notes(measured: Sequence[tuple[str, Values]], chosen: PixelRange | None) -> Iterator[str]:
    """Warnings about images that end up nearly black, or nearly of one brightness, with the setting that helps."""
    used = chosen or PixelRange(0, 65535)
    factor = 255 / (used.high - used.low)
    black = [name for name, values in measured if (values.bright - used.low) * factor < DARK]
    flat = [
        name
        for name, values in measured
        if (values.bright - used.low) * factor >= DARK and (values.bright - values.dark) * factor < DARK
    ]
    low, high = min(values.dark for _, values in measured), max(values.bright for _, values in measured)
    for names, what in ((black, "are nearly black"), (flat, "are nearly of one brightness")):
        if names:
            yield (
                f"{len(names)} of {len(measured)} images with more than 8 bits a channel {what} at the range {used}:"
                f" {listed(list(map(repr, names)))}; if they should not be, set {KEY}: 99% of their values lie in"
                f" [{low:g}, {high:g}]"
            )
