"""The whole pipeline in one command, without a server: `make demo`, or `python -m flows.demo`.

Runs the flow `train-variants` in this process, as params.yaml says, and prints a table and the next steps. Prefect
keeps its data in `.local/prefect`; a server is used only if PREFECT_API_URL names one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from flows.environment import PREFECT_HOME, prepare_dvc, prepare_environment
from stages.project import params as params_module
from stages.project.command import check_system
from stages.project.redaction import redacted
from stages.registry.address import DATABASE, sqlite_file, tracking_uri
from yolov7.errors import YoloError

if TYPE_CHECKING:
    from flows.report import RunReport


def main() -> int:
    """Run the flow and print its report; returns the exit code."""
    started = time.monotonic()
    console = Console()
    root = Path.cwd()
    try:
        check_system()
        params_module.load()
        prepare_environment(root)
        prepare_dvc(root)
    except YoloError as error:
        print(f"error: {redacted(error)}", file=sys.stderr)  # noqa: T201 - the one line a user sees
        return 2
    # A plain SIGTERM would leave Prefect's in-process server running; a regular exit ends it.
    signal.signal(signal.SIGTERM, _exit)
    # Prefect reads its settings from the environment when it is imported.
    from flows.train_variants import RunError, train_variants

    try:
        report, code = train_variants(), 0
    except RunError as error:
        report, code = error.report, 1
    except KeyboardInterrupt:
        console.print("\nStopped. `make demo` resumes from here.")
        return 130
    _print_report(console, report, time.monotonic() - started)
    return code


def _exit(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


def _print_report(console: Console, report: RunReport, seconds: float) -> None:
    from flows.markdown import duration
    from flows.promotion.judge import describe
    from flows.report import COLUMNS, rows

    console.print()
    console.print(results_table(COLUMNS, rows(report.variants), console.width))
    for variant in report.variants:
        if variant.decision:
            console.print(f"  {describe(variant.decision)}", highlight=False, markup=False, emoji=False)
    for failure in report.failures:
        console.print(f"  failed: {failure}", style="red", highlight=False, markup=False)
    console.print(f"\n{report.summary} {duration(seconds)} in all.", highlight=False, style="bold")
    for line in _next_steps(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def results_table(columns: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> Table:
    """The results, every name and figure whole: without lines where the terminal is narrow, else in two columns."""
    framed = Table(title="train-variants")
    plain = Table(title="train-variants", box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for table in (framed, plain):
        for column in columns:
            table.add_column(column, justify="left" if column in ("variant", "decision") else "right", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        if Measurement.get(wide := Console(width=1000), wide.options, table).maximum <= width:
            return table
    tall = Table(title="train-variants")
    tall.add_column(columns[0], overflow="fold")
    tall.add_column(", ".join(columns[1:]), overflow="fold")
    for name, *figures in lines:
        named = [f"{column} {figure}" for column, figure in zip(columns[1:], figures, strict=True) if figure != "-"]
        tall.add_row(name, ", ".join(named))
    return tall


def _next_steps(report: RunReport) -> list[str]:
    first = next((variant for variant in report.variants if variant.version is not None), None)
    lines = ["", "Where to look next:"]
    if first is not None:
        folder = f"reports/{first.variant}"
        name = first.decision.name if first.decision else first.variant
        alias = "champion" if first.decision and first.decision.champion_now is not None else "challenger"
        lines += [
            f"  the evaluation         {folder}/report.html",
            "  the checked data       reports/validation/index.html",
            "  figures and curves     .venv/bin/dvc metrics show; .venv/bin/dvc plots show",
            f"  detect in your images  .venv/bin/yolov7 predict IMAGE_OR_FOLDER --model models:/{name}@{alias}",
        ]
    return [*lines, *_servers()]


def _servers() -> list[str]:
    """Where runs, models and the flow's history are: pages of a server, or the command that shows them."""
    records, history = tracking_uri(), os.environ.get("PREFECT_API_URL", "")
    if sqlite_file(records) is not None:
        here = "sqlite:///mlflow.db"
        shown = here if sqlite_file(records) == Path.cwd() / DATABASE else redacted(records)
        records = f".venv/bin/mlflow ui --backend-store-uri {shown}   (http://127.0.0.1:5000)"
    if not history:
        home = Path(os.environ.get("PREFECT_HOME", PREFECT_HOME))
        home = home.relative_to(Path.cwd()) if home.is_relative_to(Path.cwd()) else home
        history = f"PREFECT_HOME={home} .venv/bin/prefect server start    (http://127.0.0.1:4200)"
    return [f"  runs and models        {redacted(records)}", f"  this flow's history    {redacted(history)}"]


if __name__ == "__main__":
    sys.exit(main())
