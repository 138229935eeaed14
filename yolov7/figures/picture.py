"""Pictures of maps: colours for values, tiles in a grid with words around them, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.errors import ConfigError
from yolov7.files import write_atomic

Image = NDArray[np.uint8]
KINDS = (".jpg", ".png")
_GAP = 4
_LINE = 18
"""Height of a line of words."""
_QUALITY = 82
_INK = (32, 32, 32)


def heat(values: NDArray[np.floating]) -> Image:
    """Values (h, w) as colours (h, w, 3) RGB, dark for low to yellow for high; the extreme 1 % on both sides cut off.

    A map of one value is dark.
    """
    return np.asarray(cv2.applyColorMap(_levels(values), cv2.COLORMAP_VIRIDIS)[..., ::-1], np.uint8)


def grey(values: NDArray[np.floating]) -> Image:
    """Values (h, w) from 0, black, to 1, white: (h, w, 3)."""
    levels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, 2)


def _levels(values: NDArray[np.floating]) -> Image:
    low, high = np.percentile(values, (1, 99))
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def grid(rows: Sequence[Sequence[Image]], *, columns: Sequence[str], labels: Sequence[str], side: int) -> Image:
    """Square tiles of `side` pixels, words above each column and left of each row (lines parted by `\\n`)."""
    left = max((_width(line) for label in labels for line in label.split("\n")), default=0) + 2 * _GAP
    height = _LINE + _GAP + len(rows) * (side + _GAP)
    canvas = np.full((height, left + len(columns) * (side + _GAP), 3), 255, np.uint8)
    for number, word in enumerate(columns):
        _write(canvas, word, left + number * (side + _GAP) + (side - _width(word)) // 2, _LINE - _GAP)
    for row, (tiles, label) in enumerate(zip(rows, labels, strict=True)):
        top = _LINE + _GAP + row * (side + _GAP)
        for line, word in enumerate(label.split("\n")):
            _write(canvas, word, _GAP, top + _LINE * (line + 1))
        for column, tile in enumerate(tiles):
            x = left + column * (side + _GAP)
            grows = tile.shape[0] < side
            way = cv2.INTER_NEAREST if grows else cv2.INTER_AREA
            canvas[top : top + side, x : x + side] = cv2.resize(tile, (side, side), interpolation=way)
    return canvas


def _width(word: str) -> int:
    (width, _), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
    return int(width)


def _write(canvas: Image, word: str, x: int, y: int) -> None:
    cv2.putText(canvas, word, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)


def check_name(path: Path) -> None:
    """Raise :class:`ConfigError` if :func:`save` cannot write a file of this name."""
    if path.suffix.lower() not in KINDS:
        raise ConfigError(f"{path}: the name of a picture ends in {' or '.join(KINDS)}")


def save(path: Path, image: Image) -> None:
    """Write a picture (h, w, 3) RGB as its name says, in one step."""
    check_name(path)
    kind = path.suffix.lower()
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY] if kind == ".jpg" else []
    encoded = cv2.imencode(kind, image[..., ::-1], options)[1]
    write_atomic(path, lambda file: file.write(encoded.tobytes()))
