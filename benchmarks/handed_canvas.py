"""Would a loader be spared if the device did the random map? Milliseconds of processor time of a mosaic in a batch.

    python benchmarks/handed_canvas.py --annotations instances.json --images FOLDER [--batches 12]

`warped`: as the library does it, each visible tile warped into the output of side S. `handed over`: the tiles copied on
a canvas of 2S, which goes to the device with its map. Both with images cached in memory, colours left to the device,
labels computed, samples copied into a batch; the same random numbers, in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from canvas import draw_canvas
from numpy.typing import NDArray

from yolov7.augment.affine import MAX_ASPECT, draw_matrix
from yolov7.augment.mosaic import Scene, _labels, gather, plan_mosaic4, plan_mosaic9, render
from yolov7.config import Augment, train_parameters
from yolov7.data.dataset import TrainDataset, _ReplacingSource
from yolov7.data.formats.coco import read_coco
from yolov7.data.index import build_index
from yolov7.model.variants import recipe_of

BATCH = 16
Way = Callable[[_ReplacingSource, Scene, NDArray[np.float64], float, int], NDArray[np.uint8]]


def warped(
    source: _ReplacingSource, scene: Scene, matrix: NDArray[np.float64], scale: float, size: int
) -> NDArray[np.uint8]:
    rendered = render(source, scene, matrix, scale, size)
    return np.asarray(cv2.cvtColor(rendered.image, cv2.COLOR_RGBA2RGB), np.uint8)


def handed_over(
    source: _ReplacingSource, scene: Scene, matrix: NDArray[np.float64], scale: float, size: int
) -> NDArray[np.uint8]:
    _labels(scene, matrix, scale, size, MAX_ASPECT)
    return np.asarray(draw_canvas(source, scene.tiles, 2 * size)[0], np.uint8)


def batch(way: Way, dataset: TrainDataset, augment: Augment, number: int) -> int:
    """Make one batch; returns its bytes."""
    size, images = dataset.image_size, []
    for index in range(number * BATCH, (number + 1) * BATCH):
        rng = np.random.default_rng([number, index])
        source = _ReplacingSource(dataset, {})
        plan = plan_mosaic9 if rng.random() < augment.mosaic9 else plan_mosaic4
        scene = gather(source, plan(source, index % len(dataset), size, rng), 2 * size)
        images.append(way(source, scene, *draw_matrix(rng, augment, 2 * size, size), size))
    return torch.from_numpy(np.stack(images)).nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO file of photographs")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--variant", default="yolov7-tiny")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--size", type=int, default=640)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    augment = train_parameters({}, recipe=recipe_of(arguments.variant)).augment
    with tempfile.TemporaryDirectory() as folder:
        index = build_index(read_coco(arguments.annotations), arguments.images, Path(folder) / "index")
        dataset = TrainDataset(index, image_size=arguments.size, augment=augment, seed=0, cache="ram")
        ways: dict[str, Way] = {"warped": warped, "handed over": handed_over}
        spent = dict.fromkeys(ways, 0.0)
        handed = dict.fromkeys(ways, 0)
        for number in range(arguments.batches):
            for name, way in ways.items():
                started = time.process_time()
                handed[name] = batch(way, dataset, augment, number)
                spent[name] += time.process_time() - started
    for name, seconds in spent.items():
        ms = seconds / (arguments.batches * BATCH) * 1e3
        print(f"{name:12s} {ms:.2f} ms a sample, {handed[name] / BATCH / 1e6:.1f} MB handed over")


if __name__ == "__main__":
    main()
