"""Outputs of a finished training in `models/V/train`, whatever the parts of its loss."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from yolov7.config import Train
from yolov7.train.outputs import write_outputs
from yolov7.train.records import Outcome


def outcome(folder: Path, parts: tuple[str, ...]) -> Outcome:
    folder.mkdir()
    for name in ("best.safetensors", "last.safetensors", "epoch-0-batch-0-labels.jpg", "state-000000001.safetensors"):
        (folder / name).write_text(name)
    figures = {"learning_rate": 0.1, "bad_images": 0, "images_per_second": 2.0, "seconds": 1.0}
    figures |= {"val/AP": 0.5, "val/AP50": 0.7, "val/AP75": 0.4}
    losses = {f"train/{part}": 1.0 + number for number, part in enumerate(parts)}
    history = [{"epoch": epoch, **losses, **figures} for epoch in range(2)]
    best, last = folder / "best.safetensors", folder / "last.safetensors"
    return Outcome(finished=True, best=best, last=last, best_ap=0.5, best_epoch=1, history=history, skipped_steps=0)


@pytest.mark.parametrize("parts", [("box", "objectness", "classification"), ("box", "dfl", "classification")])
def test_curves_are_those_of_the_history(tmp_path: Path, parts: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    write_outputs(out, outcome(tmp_path / "states", parts), Train(epochs=2), torch.device("cpu"), variant="v")
    with (out / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(dict.fromkeys(row["curve"] for row in rows)) == [*(f"{part} loss" for part in parts), "learning rate"]
    assert [row["value"] for row in rows if row["curve"] == f"{parts[1]} loss"] == ["2.0", "2.0"]
    assert {path.name for path in out.iterdir()} == {
        "best.safetensors",
        "last.safetensors",
        "pictures",
        "history.csv",
        "curves.csv",
        "summary.md",
        "metrics.json",
    }
    assert [path.name for path in (out / "pictures").iterdir()] == ["epoch-0-batch-0-labels.jpg"]
