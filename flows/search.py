"""The Prefect flow `search-parameters`: trials of training parameters, then the report (`params.yaml: search`).

Optuna's study decides what is tried; its database is shared by all workers, of this run and of runs in other folders
or on other machines. Trials train by `python -m stages.search_worker`, in processes of their own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.markdown import section, table
from flows.runner.pipeline import Pipeline, only_run
from flows.tasks import Failure, Slots, prepare_data, retried, wait_for, worth_retrying
from stages.project import params as params_module
from stages.project.params import Params
from stages.search.space import Space
from yolov7.documents import load_json
from yolov7.errors import YoloError

FIGURES, PAGE, BEST = (Path("reports/search") / name for name in ("search.json", "index.html", "best.yaml"))
Workers = Annotated[int, Field(ge=1, le=64)]
WORKER, REPORT = "stages.search_worker", "stages.search_report"
THREADS: Any = ThreadPoolTaskRunner(max_workers=64)


@dataclass
class SearchReport:
    """The result of a search."""

    figures: dict[str, Any]
    """As the report writes them to `search.json`."""
    errors: list[str] = field(default_factory=list)
    """Failures of workers that others made up for."""

    @property
    def summary(self) -> str:
        """One sentence."""
        found, default = self.figures, self.figures["default_AP"]
        against = "" if default is None else f", the present setting {default:.4f}"
        return f"{found['variant']}: AP {found['best_AP']:.4f} is the best of {found['trials']} trials{against}."


class SearchError(YoloError):
    """The search has ended without its result; the message says why."""


@task(name="search-worker", task_run_name="worker-{number}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def work(pipeline: Pipeline, slots: Slots, number: int) -> None:
    """Train trials until none is left. A retry resumes the trial that it was stopped in."""
    with slots.one():
        pipeline.run(f"search-worker-{number}", [sys.executable, "-m", WORKER], get_run_logger())


@task(name="search-report", task_run_name="report", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def write_report(pipeline: Pipeline, slots: Slots) -> dict[str, Any]:
    """Train default and best setting with further seeds, and write `reports/search`."""
    with slots.one():
        pipeline.run("search-report", [sys.executable, "-m", REPORT], get_run_logger())
    figures: dict[str, Any] = load_json(pipeline.root / FIGURES)
    return figures


@flow(name="search-parameters", task_runner=THREADS, persist_result=False)
def search_parameters(workers: Workers = 1) -> SearchReport:
    """Search better training parameters for one variant on the current data, as `params.yaml: search` says.

    A run that was killed continues: finished trials are kept, the others resume. Runs in other folders or on other
    machines take part in the same study if `search.storage` names one database.

    Args:
        workers: trials that train at the same time in this folder; each needs an accelerator slot.
    """
    params = params_module.load()
    Space.of(params)
    log, root = get_run_logger(), Path.cwd()
    timeout = params.flow.stage_timeout_hours * 3600
    with only_run(root, log), Pipeline(root, timeout_seconds=timeout, pull=params.flow.pull) as pipeline:
        _, failure = prepare_data(pipeline, params)
        if failure is not None:
            raise SearchError(str(failure))
        report = _search(pipeline, params, workers)
    create_markdown_artifact(markdown(report), key="search-parameters", description=report.summary)
    for line in report.errors:
        log.warning("%s", line)
    log.info("%s %s, %s", report.summary, PAGE, BEST)
    return report


def _search(pipeline: Pipeline, params: Params, workers: int) -> SearchReport:
    slots = Slots(max(workers, params.flow.accelerator_slots))
    worker: Any = retried(work, params)
    futures = [worker.submit(pipeline, slots, number) for number in range(1, workers + 1)]
    ended = [wait_for(future, f"worker-{number}") for number, future in enumerate(futures, 1)]
    errors = [str(each) for each in ended if isinstance(each, Failure)]
    if len(errors) == len(ended):
        raise SearchError(" / ".join(errors))
    figures = wait_for(retried(write_report, params).submit(pipeline, slots), "report")
    if isinstance(figures, Failure):
        raise SearchError(str(figures))
    return SearchReport(figures, errors)


def markdown(report: SearchReport) -> str:
    """The run's page: the best setting, the comparison with the present one, the importance of each parameter."""
    found = report.figures
    lines = ["# search-parameters", "", report.summary, "", f"Page: `{PAGE}`. Write the best setting into params.yaml:"]
    lines += ["", f"    python -m stages.apply_params {BEST}"]
    lines += section("Best setting", table(("parameter", "value"), [(f"`{k}`", v) for k, v in found["best"].items()]))
    rows = [(each["seed"], _ap(each["default"]), _ap(each["best"])) for each in found["confirmed"]]
    lines += section("By seed", table(("seed", "present setting", "best"), rows))
    shares = [(f"`{name}`", f"{share:.0%}") for name, share in found["importances"].items()]
    lines += section("Importance", table(("parameter", "share of the variation of AP"), shares) if shares else [])
    return "\n".join(lines) + "\n"


def _ap(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
