"""Cores that feed a GPU: images a second of one core for the published recipes, beside what the GPU could train.

    python benchmarks/feeding.py --annotations instances.json --images FOLDER [--samples 240] [--tflops 198]

Six ways of each variant's recipe at 640 px: images decoded every time, so with `augment.reduced_decode`, and cached in
memory (`train.cache: ram`), each with the jitter of colours in the loader and on the device (`augment.hsv_on_device`).
Rates count processor time. The last columns are the cores that are needed if the GPU computes `--tflops` 10^12
operations a second in training (by default a fifth of an H200's 989) and a step costs three forward passes.
`benchmarks/gpu.py` measures it on a GPU.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path

import cv2
import torch

from yolov7.catalogue import VariantInfo, listed_infos
from yolov7.config import train_parameters
from yolov7.data.dataset import TrainDataset
from yolov7.data.formats.coco import read_coco
from yolov7.data.index import Index, build_index
from yolov7.data.loader import TrainLoader
from yolov7.model.variants import recipe_of

VARIANTS = ["yolov7-tiny", "yolov7", "yolov7-w6", "yolov9-c", "yolov6-s"]
WAYS = (
    ("none", False, False), ("none", True, False), ("none", False, True), ("none", True, True),
    ("ram", False, False), ("ram", True, False),
)  # fmt: skip
"""Cache, whether colours are changed on the device, whether JPEGs are decoded no larger than they are shown."""
BATCH = 16


def rate(index: Index, variant: str, side: int, cache: str, on_device: bool, reduced: bool, samples: int) -> float:
    """Images per second of processor time, of one process."""
    augment = train_parameters({}, recipe=recipe_of(variant)).augment
    augment = augment.model_copy(update={"hsv_on_device": on_device, "reduced_decode": reduced})
    dataset = TrainDataset(index, image_size=side, augment=augment, seed=0, cache=cache)  # type: ignore[arg-type]
    loader = TrainLoader(dataset, batch_size=BATCH)
    batches = (batch for epoch in range(10**6) for batch in loader.epoch(epoch))
    next(batches)
    started, seen = time.process_time(), 0
    while seen < samples:
        seen += len(next(batches))
    return seen / (time.process_time() - started)


def trained(info: VariantInfo, side: int, tflops: float) -> float:
    """Images per second that a GPU of this rate trains."""
    return tflops * 1e3 / (3 * info.gflops_training * (side / info.image_size) ** 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO file of photographs")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--samples", type=int, default=240)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--tflops", type=float, default=198.0)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        index = build_index(read_coco(arguments.annotations), arguments.images, Path(folder) / "index")
        heads = ("decoded", "decoded, device", "reduced", "reduced, device", "cached", "cached, device")
        columns = ["images/s a core:", *heads, "trained/s", *(f"cores: {head}" for head in heads)]
        print("| " + " | ".join(columns) + " |\n| --- " + "| ---: " * (len(columns) - 1) + "|")
        for info in listed_infos(arguments.variants):
            rates = [rate(index, info.variant, arguments.size, *way, arguments.samples) for way in WAYS]
            wanted = trained(info, arguments.size, arguments.tflops)
            cores = [math.ceil(wanted / one) for one in rates]
            cells = [info.variant, *(f"{one:.0f}" for one in (*rates, wanted)), *map(str, cores)]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
