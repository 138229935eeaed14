"""AP of a short training under several warm-ups: `benchmarks/warmup.py --train A.json --val B.json --images DIR`.

The published warm-up lasts at least 1000 iterations, however short the run; ours at most half of it. Every case is the
`tiny` recipe with the same seed, and so the same samples in the same order; only the warm-up differs. One line a case.
`--arithmetic` prints the schedules alone: optimiser steps, learning rates, and the last decay of the average.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from yolov7.config import Train, train_parameters
from yolov7.data.formats.coco import read_coco
from yolov7.data.index import Index, build_index
from yolov7.model import ModelMetadata
from yolov7.train.initial import initial_model
from yolov7.train.loop import Trainer
from yolov7.train.schedule import Schedule
from yolov7.train.state import StateFolder

CASES = ("ours", "published", "published-bias-from-0", "ours-bias-from-0")


@dataclass(frozen=True, kw_only=True)
class PublishedWarmup(Schedule):
    """The schedule with the published length of the warm-up: it may exceed the run."""

    @property
    def warmup(self) -> int:
        """Iterations of the warm-up."""
        options = self.optimizer
        return max(round(options.warmup_epochs * self.batches_per_epoch), options.warmup_iterations)


def parameters(args: argparse.Namespace, case: str) -> Train:
    """The `tiny` recipe. Below 320 px, anchors and objectness gain are scaled so that all is as at 320 px."""
    share = args.image_size / 320
    values = {
        "preset": "tiny",
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "image_size": args.image_size,
        "anchor_scale": share,
        "evaluate_every": args.evaluate_every,
        "cache": "ram",
        "loss": {"objectness": 1.0 / share**2},
    }
    if case.endswith("bias-from-0"):
        values["optimizer"] = {"warmup_bias_learning_rate": 0.0}
    return train_parameters(values, recipe="tiny")


def schedule(params: Train, case: str, images: int) -> Schedule:
    """The schedule of a case."""
    kind = PublishedWarmup if case.startswith("published") else Schedule
    batches = -(-images // params.batch_size)
    return kind(
        optimizer=params.optimizer, epochs=params.epochs, batches_per_epoch=batches, batch_size=params.batch_size
    )


def arithmetic(plan: Schedule, params: Train) -> str:
    """Steps, learning rates and averaging of a run."""
    every = [plan.at(iteration) for iteration in range(plan.epochs * plan.batches_per_epoch)]
    steps = [now for iteration, now in enumerate(every) if iteration % now.accumulate == 0]
    kernels = [now.learning_rate for now in steps]
    # The gradients of a step's batches are summed, not averaged.
    summed = sum(now.learning_rate * now.accumulate for now in steps)
    biases = [now.bias_learning_rate for now in steps]
    decay = params.ema.decay * (1 - math.exp(-len(steps) / params.ema.ramp))
    return (
        f"{len(every)} iterations, warm-up {plan.warmup}, {len(steps)} steps; kernels: highest rate "
        f"{max(kernels):.4f}, sum of rate times batches {summed:.2f}; biases: last rate {biases[-1]:.4f}, "
        f"sum {sum(biases):.1f}; "
        f"last momentum {steps[-1].momentum:.3f}; last decay of the average {decay:.2f}"
    )


def train(params: Train, case: str, train_index: Index, val_index: Index, folder: Path) -> list[tuple[int, float]]:
    """(epoch, validation AP) of every validation."""
    model = initial_model(params.network or "yolov7-tiny", params, train_index)
    metadata = ModelMetadata.of(
        model,
        class_names=train_index.class_names,
        category_ids=train_index.category_ids,
        image_size=params.image_size,
    )
    states = StateFolder(folder, {"case": case})
    trainer = Trainer(
        model, train_index=train_index, val_index=val_index, params=params, states=states, metadata=metadata
    )
    trainer.schedule = trainer.reporter.schedule = schedule(params, case, len(train_index))
    history = trainer.fit().history
    return [(int(row["epoch"]) + 1, row["val/AP"]) for row in history if "val/AP" in row]


def main() -> None:
    """Print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="COCO annotations")
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder that their file names start at")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--evaluate-every", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arithmetic", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        train_index = build_index(read_coco(args.train), args.images, Path(folder) / "train")
        val_index = build_index(read_coco(args.val), args.images, Path(folder) / "val")
        for case in args.cases:
            params = parameters(args, case)
            print(f"{case}: {arithmetic(schedule(params, case, len(train_index)), params)}", flush=True)
            if args.arithmetic:
                continue
            started = time.monotonic()
            found = train(params, case, train_index, val_index, Path(folder) / case)
            minutes = (time.monotonic() - started) / 60
            figures = ", ".join(f"{epoch}: {ap:.3f}" for epoch, ap in found)
            print(f"{case}: AP by epoch {figures}; {minutes:.0f} min", flush=True)


if __name__ == "__main__":
    main()
