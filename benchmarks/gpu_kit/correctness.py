"""The tests of `tests/gpu` on this device, a row for each function."""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path
from typing import Any

from gpu_kit.settings import FailedItem, Figures, Item, Settings, SkipItem

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "gpu"
QUICK = ("test_suppression", "test_assignment")
"""Those of a tiny run."""
SLOW = ("test_compiled", "test_exported_graph", "test_a_training_learns_stops_and_resumes")
"""Those that come last."""
DEFINED = re.compile(r"^def (test_\w+)", re.MULTILINE)


def items(settings: Settings) -> list[Item]:
    """The families first, what takes long last. A function for itself, so that what is stopped costs little."""
    files = sorted(FOLDER.glob("test_*.py"), key=lambda file: (file.stem != "test_families", file.name))
    found = [(file, name) for file in files for name in DEFINED.findall(file.read_text(encoding="utf-8"))]
    found.sort(key=lambda test: test[1] in SLOW)
    if settings.tiny:
        found = [(file, name) for file, name in found if name in QUICK and file == files[0]]
    return [
        Item(f"{file.stem}: {name}", functools.partial(run, settings, file, name), 30.0 if name in SLOW else 5.0)
        for file, name in found
    ]


class Collector:
    """Pytest plugin: what became of each test."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called for set-up, call and tear-down of each test: the worst of the three counts."""
        name = report.nodeid.split("::")[-1]
        if report.outcome != "passed" or report.when == "call":
            if self.outcomes.get(name) != "failed":
                self.outcomes[name] = report.outcome
            if report.failed:
                self.reasons[name] = _reason(report)
            elif report.skipped and isinstance(report.longrepr, tuple):
                self.reasons[name] = str(report.longrepr[2])

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported has no tests."""
        name = report.nodeid or "the file"
        if report.failed:
            self.outcomes[name], self.reasons[name] = "failed", _reason(report)
        elif report.skipped and isinstance(report.longrepr, tuple):
            self.outcomes[name], self.reasons[name] = "skipped", str(report.longrepr[2])


def _reason(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    marked = [line[1:] for line in text.split("\n") if line.startswith("E  ")]  # of a whole traceback the error alone
    text = " ".join(marked) or text
    return " ".join(text.split())[:300]


def run(settings: Settings, file: Path, function: str) -> Figures:
    """Run a test function with all its parameters in this process. Raises :class:`FailedItem` if one fails."""
    import pytest

    os.environ["YOLOV7_TEST_DEVICE"] = settings.device
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a plugin of another package may need what is not here
    # Of a file that could not be imported half a module is left, which pytest would take for the whole.
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == str(file):
            del sys.modules[name]
    seen = Collector()
    # Without the fixtures and options of the whole suite, which need the pipeline's packages.
    options = ["-o", "addopts=", "-p", "no:cacheprovider", "--import-mode=importlib"]
    options += [f"--rootdir={ROOT}", f"--confcutdir={FOLDER}", "--tb=short", "-q"]
    ended = pytest.main([*options, f"{file}::{function}"], plugins=[seen])
    counts = {outcome: list(seen.outcomes.values()).count(outcome) for outcome in ("passed", "failed", "skipped")}
    figures: Figures = {**counts, "reasons": seen.reasons}
    if counts["failed"]:
        first = next(name for name, outcome in seen.outcomes.items() if outcome == "failed")
        total = sum(counts.values())
        raise FailedItem(f"{counts['failed']} of {total} tests failed, first {first}: {seen.reasons[first]}", figures)
    # A file that is skipped as a whole does not hold the function that was asked for: an error for pytest alone.
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and not counts["skipped"]:
        raise FailedItem(f"pytest ended with {ended!r}; log.txt says why", figures)
    if not counts["passed"]:
        raise SkipItem("; ".join(dict.fromkeys(seen.reasons.values())) or "no test was found")
    return figures
