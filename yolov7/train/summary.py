"""Summary of a training, on one screen."""

from __future__ import annotations

import math
from pathlib import Path

from yolov7.data.tally import Tally
from yolov7.text import markdown
from yolov7.train.progress import duration
from yolov7.train.records import Outcome, loss_parts

Facts = list[tuple[str, str]]


def facts(outcome: Outcome, *, epochs: int, device: str, peak_memory_gib: float, folder: Path) -> Facts:
    """The main facts, by name. `epochs` is the requested number, `folder` holds the outputs.

    Time and images per second count training alone, over all pieces of a resumed run; the memory peak is that of the
    last piece.
    """
    history = outcome.history
    begun = outcome.best_epoch < 0  # the weights before the first epoch are the best
    best, last = outcome.start if begun else history[outcome.best_epoch], history[-1]
    seconds = sum(row["seconds"] for row in history)
    images = sum(row["images_per_second"] * row["seconds"] for row in history)
    validation = ", ".join(f"{name} {best[f'val/{name}']:.3f}" for name in ("AP", "AP50", "AP75"))
    ended = "" if len(history) == epochs else f", stopped early of {epochs}"
    return [
        ("best epoch", f"{'none' if begun else outcome.best_epoch + 1} of {len(history)}{ended}"),
        ("validation", validation),
        ("last losses", ", ".join(f"{name} {last[f'train/{name}']:.4f}" for name in loss_parts(last))),
        ("training time", f"{duration(seconds)} on {device}"),
        ("speed", f"{images / max(seconds, 1e-9):.1f} images/s"),
        ("peak memory", f"{peak_memory_gib:.1f} GiB" if math.isfinite(peak_memory_gib) else "not known here"),
        ("skipped steps", str(outcome.skipped_steps)),
        ("unreadable images", str(round(sum(row["bad_images"] for row in history)))),
        *((("objects left out", outcome.unused.summary()),) if outcome.unused is not None else ()),
        ("outputs", str(folder)),
    ]


def unused_as_markdown(counts: Tally) -> str:
    """The objects that training left out, by class and reason; empty where there are none."""
    if not counts.lost:
        return ""
    header, rows = counts.table()
    cells = [[markdown(text) for text in row] for row in [header, ["---"] * len(header), *rows]]
    return "\n".join(["## Objects left out", "", *(f"| {' | '.join(row)} |" for row in cells), ""])


def as_text(title: str, lines: Facts) -> str:
    """A block for a terminal or a log."""
    width = max(len(name) for name, _ in lines)
    return "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in lines)])


def as_markdown(title: str, lines: Facts) -> str:
    """The same as a Markdown table."""
    rows = [f"| {markdown(name)} | {markdown(value)} |" for name, value in lines]
    return "\n".join([f"# {markdown(title)}", "", "| | |", "| --- | --- |", *rows, ""])
