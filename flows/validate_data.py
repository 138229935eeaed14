"""The Prefect flow `validate-data`: read the data source, validate the data, and publish the findings as a page.

Nothing is trained. The check is the pipeline's own `validate` stage: the next training sees exactly what passes here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.exceptions import PrefectException
from prefect.variables import Variable

from flows.markdown import escape, section, stage_table, table
from flows.runner.pipeline import Log, Pipeline, StageResult, only_run
from flows.tasks import Hours, prepare_data
from flows.tasks import fetch_reference as fetch_champions_reference
from stages.project import params as params_module
from stages.project.workspace import INGESTED
from yolov7.documents import load_json
from yolov7.errors import DataError, YoloError

REPORT = Path("reports/validation")
_FINDINGS_SHOWN = 50


@dataclass
class DataReport:
    """The result of a check of the data."""

    stages: list[StageResult] = field(default_factory=list)
    """`ingest` and `validate`, if they are up to date."""
    rules: list[dict[str, Any]] = field(default_factory=list)
    """The outcome of every rule, as the stage writes it to `results.json`."""
    findings: list[dict[str, Any]] = field(default_factory=list)
    """The records that violate a rule, as the stage writes them to `findings.json`."""
    error: str | None = None

    @property
    def broken(self) -> list[dict[str, Any]]:
        """The violated rules, blocking or not."""
        return [rule for rule in self.rules if not rule["success"]]

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.error is not None:
            return "The data does not pass." if self.rules else "The data could not be checked."
        warnings = f"; {len(self.broken)} of them only with a warning" if self.broken else ""
        return f"The data passes {len(self.rules)} rules{warnings}."


class InvalidDataError(DataError):
    """The flow has ended, and the data did not pass or could not be checked; the message says why."""

    def __init__(self, report: DataReport):
        super().__init__(report.error or report.summary)
        self.report = report


CHANGED = "yolov7.data.changed"
"""Event: new data has passed. `prefect.yaml` measures the champions on it."""
PASSED = "yolov7_data_sha256"
"""Variable of the Prefect server: the hash of the last data that passed, in any run and checkout."""


@flow(name="validate-data", persist_result=False)
def validate_data(refresh: bool = False, fetch_reference: bool = False, timeout_hours: Hours = 12.0) -> DataReport:
    """Ingest the data, validate it, and publish a page of findings. Data that does not pass fails the run.

    Args:
        refresh: read the source again even if nothing here has changed, because an archive on a server may have.
        fetch_reference: compare with the data of the current champion, fetched from MLflow first.
        timeout_hours: time limit of each of the two stages.
    """
    params = params_module.load()
    log, root = get_run_logger(), Path.cwd()
    with only_run(root, log), Pipeline(root, timeout_seconds=timeout_hours * 3600, pull=params.flow.pull) as pipeline:
        if fetch_reference:
            fetch_champions_reference(pipeline, log)
        stages, failure = prepare_data(pipeline, params, refresh=refresh)
        report = DataReport(stages, error=None if failure is None else str(failure))
        # If ingest has failed, the report in the folder is about other data.
        if stages:
            report.rules, report.findings = _read_report(root / REPORT)
    create_markdown_artifact(markdown(report), key="validate-data", description=report.summary)
    log.info("%s", report.summary)
    if report.error is not None:
        raise InvalidDataError(report)
    announce_data(root, log)
    return report


def announce_data(root: Path, log: Log) -> None:
    """Send an event if the data that has just passed differs from the last data that passed.

    The server that receives the event also remembers the data: a checkout made for one run knows no earlier run, and
    the outcome of a stage depends on code and rules too. The first data a server hears of is not a change.
    """
    try:
        present = load_json(root / INGESTED / "dataset.json")["sha256"]
    except (OSError, ValueError, KeyError) as error:
        log.warning("no event of new data: %s is not readable (%r)", INGESTED / "dataset.json", error)
        return
    try:
        before = Variable.get(PASSED)
        if before == present:
            return
        if before is not None:
            payload = {"sha256": present, "before": before}
            emit_event(CHANGED, resource={"prefect.resource.id": "yolov7.data"}, payload=payload)
        Variable.set(PASSED, present, overwrite=True)
    except (httpx.HTTPError, PrefectException) as error:  # the next run that passes compares again
        log.warning("no event of new data: the Prefect server does not answer (%r)", error)


def _read_report(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Outcomes of the rules, and findings."""
    try:
        results = load_json(folder / "results.json")
        findings = load_json(folder / "findings.json")
    except FileNotFoundError:
        return [], []  # the stage failed before it wrote them
    except ValueError as error:
        raise YoloError(f"{folder}: the report is not readable ({error}); run `dvc repro validate`") from None
    return results["results"], findings


def markdown(report: DataReport) -> str:
    """The run's page: summary, violated rules, the first findings, stages."""
    lines = ["# validate-data", "", report.summary]
    if report.error is not None:
        lines += ["", escape(report.error)]
    rules = [
        (rule["rule"], rule["severity"], f"{rule['unexpected_count']} of {rule['element_count']}")
        for rule in report.broken
    ]
    if rules:
        lines += section("Violated rules", table(("rule", "severity", "records"), rules))
    if report.findings:
        shown = [
            (each["rule"], f"{each['split']}/{each['file']}", each["value"], each["action"])
            for each in report.findings[:_FINDINGS_SHOWN]
        ]
        lines += section("Findings", table(("rule", "where", "found", "what to do"), shown))
        left = len(report.findings) - _FINDINGS_SHOWN
        lines += ["", f"{left} more in `{REPORT}/findings.json`."] if left > 0 else []
    if report.stages:
        lines += section("Stages", stage_table(report.stages))
    return "\n".join(lines) + "\n"
