"""Where trained networks look: maps of the neck, and their energy inside the objects (YOLOv9 paper, figure 7).

    python -m yolov7.figures.attention FIRST SECOND --data INDEX [--images 3] [--out attention.jpg]

draws the maps that the predictions are made of, for two checkpoints on the first images of a data set, and prints how
far their energy is inside the objects: the paper shows maps of a GELAN with and without PGI, and gives no figure. The
measure is ours, see :func:`focus`.

Dimension letters: C channels, h w cells of a map, L levels, I images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolov7 import letterbox
from yolov7.data.decode import read_image
from yolov7.data.index import Index
from yolov7.errors import ConfigError, DataError
from yolov7.figures import picture
from yolov7.figures.command import outcome, parser
from yolov7.model import Detector, load_checkpoint
from yolov7.tables import print_table

RESAMPLES = 2000
CONFIDENCE = 0.95
SHOWN_SIDE = 132
_BOX = (255, 64, 64)


def energy(features: Tensor) -> NDArray[np.float64]:
    """Energy of the cells of a map (C, h, w): squared deviation from the channel's mean over the cells, summed over
    the channels (h, w). What a channel has everywhere says nothing about a place.
    """
    values = features.detach().double()
    return (values - values.mean((1, 2), keepdim=True)).square().sum(0).numpy()


def focus(energies: NDArray[np.float64], inside: NDArray[np.float64], valid: NDArray[np.float64]) -> float:
    """Energy (h, w) per area inside the objects, over that per area of the whole image; 1: it does not tell them apart.

    `inside` (h, w) is the share of each cell that is covered by an object, `valid` that covered by the image, not by
    the grey around it. A map without energy has 1. NaN without objects.
    """
    area = inside.sum() / valid.sum()
    if area == 0:
        return float("nan")
    total = (energies * valid).sum()
    return float((energies * inside).sum() / total / area) if total > 0 else 1.0


@dataclass(frozen=True)
class Subject:
    """An image with its objects, fitted to a network's input."""

    image: NDArray[np.uint8]
    """(H, W, 3)."""
    objects: NDArray[np.bool_]
    """(H, W): inside an object's box."""
    valid: NDArray[np.bool_]
    """(H, W): of the image."""
    boxes: NDArray[np.int64]
    """(n, 4) xyxy in input pixels."""

    def covered(self, mask: NDArray[np.bool_], h: int, w: int) -> NDArray[np.float64]:
        """Share of each cell (h, w) in the mask."""
        return np.asarray(cv2.resize(mask.astype(np.float64), (w, h), interpolation=cv2.INTER_AREA))


def subject(index: Index, i: int, side: int) -> Subject:
    """Image `i` of a data set for an input of `side` pixels."""
    fitted = letterbox.fit(read_image(index.image_path(i)), side, side)
    height, width = fitted.size
    (x, y), (across, down) = fitted.pad, fitted.scale
    valid = np.zeros((side, side), bool)
    valid[y : y + round(height * down), x : x + round(width * across)] = True
    moved = index.boxes(i) * [across, down, across, down] + [x, y, x, y]
    corners = np.clip(np.rint(moved), 0, side).astype(np.int64)
    objects = np.zeros_like(valid)
    for left, top, right, bottom in corners:
        objects[top:bottom, left:right] = True
    return Subject(fitted.image, objects & valid, valid, corners)


@dataclass(frozen=True)
class Looks:
    """How one network looks at the images of a data set."""

    name: str
    strides: tuple[int, ...]
    focus: NDArray[np.float64]
    """(I, L), NaN for images without objects."""
    maps: list[list[NDArray[np.float64]]]
    """Root of the energies of each level (h, w), for the first images."""


@torch.no_grad()
def looks(model: Detector, name: str, subjects: Iterable[Subject], *, shown: int) -> Looks:
    """Run a network in eval mode on the subjects, one at a time; the maps of the first `shown` are kept, the subjects
    themselves are not.
    """
    rows, maps = [], []
    names = model.spec.head.reads("deploy")
    for number, one in enumerate(subjects):
        x = torch.from_numpy(one.image).permute(2, 0, 1)[None].float() / 255
        found = model.features(x)
        energies = [energy(found[level][0]) for level in names]
        rows.append([focus(e, one.covered(one.objects, *e.shape), one.covered(one.valid, *e.shape)) for e in energies])
        if number < shown:
            maps.append([np.sqrt(e) for e in energies])
    strides = tuple(model.spec.maps()[level].stride for level in names)
    return Looks(name, strides, np.array(rows), maps)


@dataclass(frozen=True)
class Mean:
    """A mean over images with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def mean_over_images(values: NDArray[np.float64], *, seed: int = 0) -> Mean:
    """Mean of values (I,) without NaN, and its 95 % interval over images drawn again. Differences of two networks on
    the same images are given as such, so that their common luck cancels out.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        raise DataError("no image has an object")
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[drawn].mean(1), (tail, 1 - tail))
    return Mean(float(values.mean()), float(low), float(high))


def draw(subjects: Sequence[Subject], found: Sequence[Looks]) -> NDArray[np.uint8]:
    """The first images with their objects, and the maps of each network, small stride to large."""
    rows, labels = [], []
    for number in range(len(found[0].maps)):
        one = subjects[number]
        image = one.image.copy()
        for left, top, right, bottom in one.boxes.tolist():
            cv2.rectangle(image, (left, top), (right - 1, bottom - 1), _BOX, 1)
        rows.append([image, *(picture.heat(level) for each in found for level in each.maps[number])])
        labels.append("")
    columns = ["image, objects", *(f"{each.name}, {stride}" for each in found for stride in each.strides)]
    return picture.grid(rows, columns=columns, labels=labels, side=SHOWN_SIDE)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module."""
    args = _parser().parse_args(arguments)
    picture.check_name(args.out)
    index = Index.open(args.data)
    if not 1 <= args.images <= len(index):
        raise ConfigError(f"--images: 1 to {len(index)} is expected, got {args.images}")
    found: list[Looks] = []
    sides = set()
    for path in (args.first, args.second):
        model, metadata = load_checkpoint(path)
        sides.add(metadata.image_size)
        if len(sides) > 1:
            raise ConfigError(f"{path}: trained at {metadata.image_size} pixels, {args.first} at another size")
        subjects = (subject(index, i, metadata.image_size) for i in range(len(index)))
        found.append(looks(model, metadata.variant, subjects, shown=args.images))
    first, second = found
    if first.strides != second.strides:
        raise ConfigError(f"{args.second}: has levels of strides {second.strides}, {args.first} of {first.strides}")
    drawn = [subject(index, i, metadata.image_size) for i in range(args.images)]
    picture.save(args.out, draw(drawn, found))
    lines = []
    for level, stride in enumerate(first.strides):
        a, b = first.focus[:, level], second.focus[:, level]
        lines.append([f"stride {stride}", *(str(mean_over_images(values)) for values in (a, b, b - a))])
    print_table(["focus", f"{first.name}, first", f"{second.name}, second", "second - first"], lines, left=1)


def _parser() -> argparse.ArgumentParser:
    made = parser(__spec__, __doc__)
    made.add_argument("first", type=Path, help="a checkpoint (.safetensors), of a GELAN for example")
    made.add_argument("second", type=Path, help="the one to compare it with, of the YOLOv9 of that size for example")
    made.add_argument("--data", type=Path, required=True, metavar="INDEX", help="index of the data, data/index/val say")
    made.add_argument(
        "--images", type=int, default=3, metavar="N", help="draw the first N images (3); all are measured"
    )
    made.add_argument("--out", type=Path, default=Path("attention.jpg"), help="the picture, .jpg or .png")
    return made


if __name__ == "__main__":
    sys.exit(outcome(main))
