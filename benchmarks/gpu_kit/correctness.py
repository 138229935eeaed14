"""The tests of `tests/gpu` on this device, a row for each file."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from gpu_kit.settings import FailedItem, Figures, Item, Settings, SkipItem

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "gpu"
QUICK = "suppression or assignment"
"""Tests of a tiny run."""


def items(settings: Settings) -> list[Item]:
    """The families first."""
    files = sorted(FOLDER.glob("test_*.py"), key=lambda file: (file.stem != "test_families", file.name))
    chosen = files[:1] if settings.tiny else files
    return [Item(file.name, functools.partial(run, settings, file), 25.0) for file in chosen]


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
        if report.failed:
            self.outcomes[report.nodeid], self.reasons[report.nodeid] = "failed", _reason(report)
        elif report.skipped and isinstance(report.longrepr, tuple):
            self.outcomes[report.nodeid], self.reasons[report.nodeid] = "skipped", str(report.longrepr[2])


def _reason(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return " ".join(text.split())[:300]


def run(settings: Settings, file: Path) -> Figures:
    """Run the tests of a file in this process. Raises :class:`FailedItem` if any fails."""
    import pytest

    os.environ["YOLOV7_TEST_DEVICE"] = settings.device
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a plugin of another package may need what is not here
    seen = Collector()
    # Without the fixtures and options of the whole suite, which need the pipeline's packages.
    options = ["-o", "addopts=", "-p", "no:cacheprovider", "--import-mode=importlib"]
    options += [f"--rootdir={ROOT}", f"--confcutdir={FOLDER}", "--tb=short", "-q"]
    ended = pytest.main([*options, *(["-k", QUICK] if settings.tiny else []), str(file)], plugins=[seen])
    counts = {outcome: list(seen.outcomes.values()).count(outcome) for outcome in ("passed", "failed", "skipped")}
    figures: Figures = {**counts, "reasons": seen.reasons}
    if counts["failed"]:
        first = next(name for name, outcome in seen.outcomes.items() if outcome == "failed")
        total = sum(counts.values())
        raise FailedItem(f"{counts['failed']} of {total} tests failed, first {first}: {seen.reasons[first]}", figures)
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise FailedItem(f"pytest ended with {ended!r}; log.txt says why", figures)
    if not counts["passed"]:
        raise SkipItem("; ".join(dict.fromkeys(seen.reasons.values())) or "no test was found")
    return figures
