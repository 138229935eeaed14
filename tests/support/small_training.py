"""A training of the small detector on a few images: seconds for many epochs, for tests of what happens on the way."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from small_detector import SIDE, metadata_of, pictures, small_detector, small_index

from yolov7.config import Train, train_parameters
from yolov7.data.index import Index
from yolov7.model import Detector
from yolov7.predict import Predictor, TorchRuntime
from yolov7.train.loop import Trainer
from yolov7.train.records import Outcome
from yolov7.train.state import StateFolder

TIMES = {"seconds", "images_per_second"}


def training_data(folder: Path, images: int = 6) -> Index:
    """Images of various shapes whose truth is what the small detector finds, about."""
    folder.mkdir(parents=True, exist_ok=True)
    runtime = TorchRuntime(small_detector().reparameterize(), metadata_of(small_detector()))
    shown = pictures(images)
    found = Predictor(runtime, confidence=0.3, iou=0.5, max_detections=12).predict(shown)
    return small_index(folder, found, shown, runtime.metadata)


def parameters(recipe: str = "p5", **over) -> Train:
    """Batches of two in accumulation windows of two; `recipe` names the family."""
    values = {
        "preset": "small",
        "cache": "none",
        "image_size": SIDE,
        "batch_size": 2,
        "epochs": 3,
        "evaluate_every": 1,
        "anchors": "keep",
        "ema": {"decay": 0.9, "ramp": 5.0},
        "optimizer": {"nominal_batch": 4, "warmup_iterations": 2, "warmup_epochs": 0},
    }
    return train_parameters({**values, **over}, recipe=recipe)


def trainer(index: Index, folder: Path, params: Train, model: Detector | None = None, **more) -> Trainer:
    """A trainer of the small detector, whose weights are the same every time, or of another model."""
    model = model or small_detector()
    states = StateFolder(folder, {"epochs": params.epochs, "seed": params.seed})
    given = {"train_index": index, "val_index": index, "metadata": metadata_of(model), **more}
    return Trainer(model, params=params, states=states, **given)


class Watcher:
    """A listener that keeps every record."""

    def __init__(self, on_step=lambda report: None):
        self.on_step = on_step
        self.pictured, self.reports, self.notes = [], [], []

    def started(self, report) -> None: ...

    def assigned(self, batch) -> None:
        self.pictured.append(batch)

    def stepped(self, report) -> None:
        self.reports.append(report)
        self.on_step(report)

    def epoch_ended(self, row, *, best) -> None: ...

    def note(self, message) -> None:
        self.notes.append(message)


def same_weights(first: Path, second: Path) -> bool:
    ours, theirs = load_file(first), load_file(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def same_outcome(first: Outcome, second: Outcome) -> bool:
    """Weights bit for bit, and all figures but the times."""
    histories = [[{k: v for k, v in row.items() if k not in TIMES} for row in one.history] for one in (first, second)]
    figures = [(one.finished, one.best_ap, one.best_epoch, one.skipped_steps) for one in (first, second)]
    files = same_weights(first.best, second.best) and same_weights(first.last, second.last)
    return files and histories[0] == histories[1] and figures[0] == figures[1]
