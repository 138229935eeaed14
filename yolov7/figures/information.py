"""What networks with random weights keep of an image, by depth (YOLOv9 paper, section 3, figures 2 and 6).

    python -m yolov7.figures.information --image IMAGE [--out FOLDER] [--size 160] [--seed 0] [--seeds 5]

writes `information.jpg`, the maps of the four networks of `stacks.py`, and `information.svg`, the share of the image
that a linear readout finds in them; the shares are printed too. The paper shows maps and gives no figure; the measure
is ours, see :func:`explained`.

Dimension letters: C channels, h w cells of a map, S seeds, D depths.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from yolov7.data.decode import read_image
from yolov7.errors import ConfigError, DataError
from yolov7.figures import picture
from yolov7.figures.command import outcome, parser
from yolov7.figures.curve import Curve, curves
from yolov7.figures.stacks import BLOCKS, KINDS, STAGE, STRIDE, random_stack
from yolov7.files import write_text
from yolov7.tables import print_table

TILE = 4
"""Side in cells of the tiles that a readout is fitted on or judged by."""
RIDGE = 1e-6
"""Penalty of the readout for each standardised channel, per cell."""
SIDES = (32, 1024)
"""Smallest and largest side of the image in pixels."""
SHOWN_SIDE = 132


@dataclass(frozen=True)
class Readout:
    """A linear readout of an image from a map."""

    share: float
    """Of the image's variance, 0 to 1."""
    image: NDArray[np.float64]
    """The prediction for each cell (h, w), by the regression that has not seen it."""


def explained(features: Tensor, target: Tensor) -> Readout:
    """Share of the variance of `target` (h, w) that ridge regression finds in the channels of `features` (C, h, w).

    Each cell is predicted from its own channels. The cells are parted like a chessboard of tiles of 4 x 4 cells; the
    regression fitted on the black tiles predicts the white ones, and the other way round. The share is 1 - squared
    errors / squared deviations from the mean of the tiles fitted on, both summed over all cells; below 0 it is 0. So
    the image's own channels have 1, and maps that are constant, or have nothing to do with it, 0.
    Raises :class:`DataError` for a target without variance.
    """
    channels, h, w = features.shape
    x = features.detach().double().flatten(1).T
    spread = x.std(0, correction=0)
    x = (x - x.mean(0)) / torch.where(spread > 0, spread, 1.0)
    y = target.double().flatten()
    rows, columns = torch.meshgrid(torch.arange(h) // TILE, torch.arange(w) // TILE, indexing="ij")
    white = ((rows + columns) % 2 == 1).flatten()
    predicted, mean = torch.empty_like(y), torch.empty_like(y)
    for judged in (white, ~white):
        fitted = ~judged
        centre, mean[judged] = x[fitted].mean(0), y[fitted].mean()
        a = x[fitted] - centre
        penalty = RIDGE * len(a) * torch.eye(channels, dtype=a.dtype)
        weights = torch.linalg.solve(a.T @ a + penalty, a.T @ (y[fitted] - y[fitted].mean()))
        predicted[judged] = (x[judged] - centre) @ weights + mean[judged]
    total = float((y - mean).square().sum())
    if total < 1e-9 * len(y):
        raise DataError("the image has one brightness: there is nothing to find in a map")
    share = max(1 - float((y - predicted).square().sum()) / total, 0.0)
    return Readout(share, predicted.reshape(h, w).numpy())


def prepared(path: Path, side: int) -> NDArray[np.uint8]:
    """The middle square of an image file, (side, side, 3) RGB."""
    if not SIDES[0] <= side <= SIDES[1] or side % (STRIDE * TILE):
        raise ConfigError(f"--size: {side} is not a multiple of {STRIDE * TILE} from {SIDES[0]} to {SIDES[1]}")
    image = read_image(path)
    height, width = image.shape[:2]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    cut = image[top : top + square, left : left + square]
    way = cv2.INTER_AREA if square > side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cut, (side, side), interpolation=way), np.uint8)


@dataclass(frozen=True)
class Kept:
    """What the networks of one kind keep."""

    kind: str
    depths: tuple[int, ...]
    shares: NDArray[np.float64]
    """(S, D)."""
    maps: dict[int, NDArray[np.float64]]
    """Mean over the channels (h, w), for the first seed, at the ends of the stages."""
    readouts: dict[int, NDArray[np.float64]]
    """What its readout predicts there (h, w), 0 to 1."""


@torch.no_grad()
def kept(kind: str, image: NDArray[np.uint8], seeds: Sequence[int], *, depth: int = 200, blocks: int = 1) -> Kept:
    """Run networks of one kind on an image (h, w, 3); one map is held at a time."""
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
    target = F.avg_pool2d(x.mean(1, keepdim=True), STRIDE)[0, 0]
    shares: list[list[float]] = []
    maps, readouts, depths = {}, {}, [0]
    for number, seed in enumerate(seeds):
        shares.append([])
        depths = []
        for layers, y in random_stack(kind, seed=seed, depth=depth, blocks=blocks).maps(x):
            found = explained(y[0], target)
            shares[-1].append(found.share)
            depths.append(layers)
            if number == 0 and layers % STAGE == 0:
                maps[layers] = y[0].double().mean(0).numpy()
                readouts[layers] = found.image
    return Kept(kind, tuple(depths), np.array(shares), maps, readouts)


def draw(image: NDArray[np.uint8], found: Sequence[Kept]) -> NDArray[np.uint8]:
    """The image, and the maps and readouts of each kind by depth."""
    depths = sorted(found[0].maps)
    rows, labels = [], []
    for one in found:
        first = dict(zip(one.depths, one.shares[0], strict=True))
        rows.append([image, *(picture.heat(one.maps[depth]) for depth in depths)])
        labels.append(f"{one.kind}\nmean of\nchannels")
        rows.append([image, *(picture.grey(one.readouts[depth]) for depth in depths)])
        labels.append("\n".join(["linear", "readout", *(f"{depth}: {first[depth]:.2f}" for depth in depths)]))
    return picture.grid(
        rows, columns=["image", *(f"layer {depth}" for depth in depths)], labels=labels, side=SHOWN_SIDE
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module."""
    args = _parser().parse_args(arguments)
    if args.seeds < 1:
        raise ConfigError(f"--seeds: at least 1 is needed, got {args.seeds}")
    image = prepared(args.image, args.size)
    seeds = range(args.seed, args.seed + args.seeds)
    found = [kept(kind, image, seeds, depth=args.depth, blocks=args.blocks) for kind in KINDS]
    picture.save(args.out / "information.jpg", draw(image, found))
    lines = [Curve(one.kind, one.depths, one.shares.mean(0), one.shares.min(0), one.shares.max(0)) for one in found]
    write_text(args.out / "information.svg", curves(lines, x="layers", y="share of the image's variance"))
    depths = found[0].depths
    print_table(
        ["network", *(f"layer {depth}" for depth in depths)],
        [
            [
                line.name,
                *(f"{m:.2f} ({a:.2f}-{b:.2f})" for m, a, b in zip(line.middle, line.low, line.high, strict=True)),
            ]
            for line in lines
        ],
        left=1,
    )


def _parser() -> argparse.ArgumentParser:
    made = parser(__spec__, __doc__)
    made.add_argument("--image", type=Path, required=True, help="an image file; its middle square is taken")
    made.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where the pictures go (here)")
    made.add_argument("--size", type=int, default=160, help="side of the image in pixels (160)")
    made.add_argument("--seed", type=int, default=0, help="of the first network of each kind, whose maps are drawn (0)")
    made.add_argument("--seeds", type=int, default=5, help="networks of each kind (5)")
    made.add_argument("--depth", type=int, default=200, help="layers of each network, a multiple of 50 (200)")
    made.add_argument(
        "--blocks", type=int, default=1, choices=BLOCKS, help="blocks that share the 48 layers of a stage (1)"
    )
    return made


if __name__ == "__main__":
    sys.exit(outcome(main))
