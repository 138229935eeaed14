"""Files of a finished training: weights, pictures, history, curves, figures, summary."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from yolov7.config import Train
from yolov7.device import peak_memory_gib
from yolov7.files import atomic_path, write_json, write_text
from yolov7.folders import replace_folder
from yolov7.text import csv_text
from yolov7.train.records import Outcome, loss_parts
from yolov7.train.summary import as_markdown, as_text, facts, unused_as_markdown

log = logging.getLogger(__name__)

PICTURES = "epoch-*-batch-*.jpg"


def write_outputs(out: Path, outcome: Outcome, train: Train, device: torch.device, *, variant: str) -> None:
    """Write everything but `run.json`, and log the summary."""
    out.mkdir(parents=True, exist_ok=True)
    for source in (outcome.best, outcome.last):
        with atomic_path(out / source.name) as temporary:
            shutil.copyfile(source, temporary)
    with replace_folder(out / "pictures") as folder:
        for picture in outcome.best.parent.glob(PICTURES):
            shutil.copyfile(picture, folder / picture.name)
    write_text(out / "curves.csv", _csv(["epoch", "curve", "value"], _curves(outcome.history)))
    write_records(out, outcome, train, device, title=variant)
    figures = {
        "val_AP": outcome.best_ap,
        "val_AP50": outcome.history[outcome.best_epoch]["val/AP50"],
        "best_epoch": outcome.best_epoch + 1,
        "epochs": len(outcome.history),
        "skipped_steps": outcome.skipped_steps,
    }
    write_json(out / "metrics.json", figures)


def write_records(folder: Path, outcome: Outcome, train: Train, device: torch.device, *, title: str) -> None:
    """Write history and summary, and log the summary."""
    rows = [*([{"epoch": -1, **outcome.start}] if outcome.start else []), *outcome.history]
    columns = list(dict.fromkeys(name for row in (*outcome.history, *rows) for name in row))
    write_text(folder / "history.csv", _csv(columns, rows))
    title = f"{title}: AP {outcome.best_ap:.3f} on the validation images"
    memory = peak_memory_gib(device)
    lines = facts(outcome, epochs=train.epochs, device=device.type, peak_memory_gib=memory, folder=folder)
    lines.append(("state", str(outcome.best.parent)))
    unused = "" if outcome.unused is None else unused_as_markdown(outcome.unused)
    write_text(folder / "summary.md", as_markdown(title, lines) + (f"\n{unused}" if unused else ""))
    log.info("%s", as_text(title, lines))


def _curves(history: Sequence[Mapping[str, float]]) -> list[dict[str, float | str]]:
    """One row per epoch and curve: `dvc plots` draws a panel per curve from them."""
    titles = {f"train/{part}": f"{part} loss" for part in loss_parts(history[0])}
    titles["learning_rate"] = "learning rate"
    return [
        {"epoch": row["epoch"], "curve": title, "value": row[name]} for name, title in titles.items() for row in history
    ]


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, float | str]]) -> str:
    return csv_text(columns, ([row.get(name, "") for name in columns] for row in rows))
