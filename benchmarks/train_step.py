"""Time of a training step by part: `python benchmarks/train_step.py [--variants yolov7-tiny yolov7]`.

Data (one process, mosaic, affine, HSV and paste as in the published recipe, JPEGs of 640 x 480), forward pass,
assignment and loss (forward and back to the raw maps), backward pass of the network, optimiser with averaging. One line
a case: milliseconds an image and shares of the step. The parts are those of the trainer, called one after the other; on
an accelerator each waits for the device.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from yolov7.config import Train, train_parameters
from yolov7.data.dataset import TrainDataset
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import Index, build_index
from yolov7.data.loader import TrainLoader
from yolov7.device import autocast, autocast_dtype, choose_device, gradient_scaler, step_memory_kept
from yolov7.loss import create_criterion
from yolov7.model import create_model
from yolov7.model.variants import recipe_of
from yolov7.train.ema import AveragedModel
from yolov7.train.optimizer import create_optimizer

PARTS = ("data", "forward", "assignment+loss", "backward", "optimiser")
CLASSES, OBJECTS, IMAGES = 80, 7, 32  # classes and objects an image as in COCO


def photographs(folder: Path, count: int = IMAGES) -> Index:
    """`count` JPEGs of smooth colour fields with noise, with random boxes; 32 different ones, again and again."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(count):
        if number < IMAGES:
            _picture(folder / f"{number}.jpg", rng)
        else:
            (folder / f"{number}.jpg").hardlink_to(folder / f"{number % IMAGES}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 640, "height": 480})
        for _ in range(OBJECTS):
            width, height = rng.uniform(20, 300), rng.uniform(20, 240)
            box = [rng.uniform(0, 640 - width), rng.uniform(0, 480 - height), width, height]
            label = int(rng.integers(CLASSES))
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": box})
    categories = [{"id": number, "name": str(number)} for number in range(CLASSES)]
    return build_index(CocoAnnotations(folder / "a.json", images, annotations, categories), folder, folder / "index")


def _picture(file: Path, rng: np.random.Generator) -> None:
    coarse = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    noisy = np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)
    cv2.imwrite(str(file), noisy, [cv2.IMWRITE_JPEG_QUALITY, 75])


class Clock:
    """Seconds by part."""

    def __init__(self, device: torch.device):
        self.device = device
        self.rows: list[list[float]] = []

    def start(self) -> None:
        self.rows.append([])
        self.last = self._now()

    def part(self) -> None:
        now = self._now()
        self.rows[-1].append(now - self.last)
        self.last = now

    def medians(self, untimed: int) -> list[float]:
        return [statistics.median(column) for column in zip(*self.rows[untimed:], strict=True)]

    def _now(self) -> float:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()
        return time.perf_counter()


def measure(index: Index, variant: str, params: Train, steps: int, device: torch.device) -> list[float]:
    """Median seconds of each part."""
    dataset = TrainDataset(
        index, image_size=params.image_size, augment=params.augment, seed=0, epochs=None, cache=params.cache
    )
    loader = TrainLoader(dataset, batch_size=params.batch_size)
    model = create_model(variant, CLASSES).to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    criterion = create_criterion(model, image_size=params.image_size, **params.loss.model_dump())
    optimizer = create_optimizer(model, params.optimizer, weight_decay=params.optimizer.weight_decay)
    average = AveragedModel(model, params.ema)
    dtype = autocast_dtype(device, params.precision)
    scaler, clock, untimed = gradient_scaler(device, dtype), Clock(device), 1
    batches = (batch for epoch in range(10**6) for batch in loader.epoch(epoch))
    for _ in range(steps + untimed):
        clock.start()
        batch = next(batches)
        images = batch.images.to(device).contiguous(memory_format=torch.channels_last).float().div_(255)
        targets = batch.targets.to(device)
        clock.part()
        with autocast(device, dtype):
            raw = model.raw(images)
        clock.part()
        # Back to the raw maps, which is the loss's work too.
        gradients = torch.autograd.grad(scaler.scale(criterion(raw, targets).total), raw)
        clock.part()
        torch.autograd.backward(raw, gradients)
        clock.part()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        clock.part()
    return clock.medians(untimed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=["yolov7-tiny", "yolov7"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[160, 320])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder, step_memory_kept(device):
        index = photographs(Path(folder))
        print(f"{'':24}" + "".join(f"{part:>22}" for part in (*PARTS, "step")))
        for variant in arguments.variants:
            for size in arguments.sizes:
                values = {"image_size": size, "batch_size": arguments.batch_size, "precision": arguments.precision}
                parts = measure(
                    index, variant, train_parameters(values, recipe=recipe_of(variant)), arguments.steps, device
                )
                step = sum(parts)
                cells = [f"{1e3 * p / arguments.batch_size:9.1f} ms ({100 * p / step:4.1f} %)" for p in parts]
                total = f"{1e3 * step / arguments.batch_size:.1f} ms an image"
                print(f"{variant:16} {size:4d} px" + "".join(f"{cell:>22}" for cell in (*cells, total)), flush=True)


if __name__ == "__main__":
    main()
