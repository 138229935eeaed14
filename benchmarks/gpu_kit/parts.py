"""The parts in order of worth, and the process that runs one of them item by item.

An item fails alone: its error is recorded and the next one begins. Where an error leaves the device unusable, as an
illegal memory access does, the process ends, and a new one goes on behind that item.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_kit.needs import missing_by_part
from gpu_kit.settings import Expectations, FailedItem, Item, Settings, SkipItem

BROKEN_DEVICE = 3
"""Exit status of a process whose device can no longer be used."""


@dataclass(frozen=True)
class Part:
    """A table of the report."""

    name: str
    share: float
    """Its share of the time, beside those of the parts still to come."""
    module: str
    items: str = "items"
    """Function of the module: settings -> items, the most wanted first."""

    def listed(self, settings: Settings) -> list[Item]:
        """Its items."""
        if self.name in settings.fail:
            raise RuntimeError(f"{self.name} was asked to fail")
        make: Callable[[Settings], list[Item]] = getattr(importlib.import_module(self.module), self.items)
        return make(settings)


PARTS = (
    Part("correctness", 1.5, "gpu_kit.correctness"),
    Part("inference", 3.0, "gpu_kit.inference"),
    Part("training", 4.0, "gpu_kit.training"),
    Part("loader", 2.0, "gpu_kit.loading"),
    Part("profile", 0.7, "gpu_kit.steps"),
    Part("tensorrt", 1.0, "gpu_kit.engines"),
    Part("compiled", 2.0, "gpu_kit.inference", "compiled_items"),
)


def run_part(name: str, settings: Settings, deadline: float, log: str, done: tuple[str, ...]) -> None:
    """Run a part's items that are not `done` until `deadline` (of `time.monotonic`), writing a JSON line for each.

    Runs in a process of its own. Lines: `{"listed": [...]}` all items; `{"begun": item}` before an item, its row after
    it; a row without a name for the error for which a part has no items. Without the name of a part: `{"missing": ...}`
    packages by part, and `{"device": ...}` its facts.
    """
    os.setsid()  # what it starts, compilers for example, ends with it
    with (settings.folder / "log.txt").open("a", encoding="utf-8") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    with Path(log).open("a", encoding="utf-8") as lines:

        def say(row: dict[str, Any]) -> None:
            lines.write(json.dumps(row) + "\n")
            lines.flush()

        try:
            if not name:
                say({"missing": missing_by_part(tuple(part.name for part in PARTS))})
                say({"device": _described(settings)})
                return
            part = next(part for part in PARTS if part.name == name)
            listed = part.listed(settings)
        except BaseException as error:  # noqa: BLE001  whatever it is, the other parts go on
            say({"item": "", "status": "failed", "why": one_line(error), "seconds": 0.0, "figures": {}})
            return
        say({"listed": [item.name for item in listed]})
        expectations = Expectations()
        for item in listed:
            if item.name not in done:
                _run_item(item, settings, expectations, deadline, say)
    sys.stdout.flush()


def _described(settings: Settings) -> dict[str, Any]:
    from gpu_kit import card

    return card.describe(settings)


def _run_item(
    item: Item, settings: Settings, expectations: Expectations, deadline: float, say: Callable[[dict[str, Any]], None]
) -> None:
    left, expected = deadline - time.monotonic(), expectations.of(item)
    if left < (0 if settings.tiny else expected):
        why = f"takes about {expected:.0f} s, {max(left, 0):.0f} s are left"
        say({"item": item.name, "status": "skipped", "why": why, "seconds": 0.0, "figures": {}})
        return
    say({"begun": item.name})
    started = time.monotonic()
    row: dict[str, Any] = {"item": item.name, "status": "ok", "why": "", "figures": {}}
    broken = False
    try:
        row["figures"] = item.measure()
    except SkipItem as why:
        row |= {"status": "skipped", "why": str(why)}
    except FailedItem as error:
        row |= {"status": "failed", "why": str(error), "figures": error.figures}
    except BaseException as error:  # noqa: BLE001  an item fails alone
        traceback.print_exc()
        row |= {"status": "failed", "why": one_line(error)}
        broken = not _usable(settings)
    row["seconds"] = round(time.monotonic() - started, 3)
    expectations.saw(item, row["seconds"])
    say(row)
    if broken:
        os._exit(BROKEN_DEVICE)


def _usable(settings: Settings) -> bool:
    """False if the device answers no more."""
    import torch

    gc.collect()
    if torch.device(settings.device).type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return bool((torch.ones(8, device=settings.device).sum() == 8).item())
    except RuntimeError:
        return False


def one_line(error: BaseException) -> str:
    """Kind of an error, its text in one line, and the place of this project that it passed last."""
    text = " ".join(str(error).split())
    root = str(Path(__file__).parents[2])
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(root)]
    place = f" ({Path(places[-1].filename).relative_to(root)}:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {text[:400]}{place}"
