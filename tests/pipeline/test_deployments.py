"""The flows behind the other deployments, and prefect.yaml against the flows it names; a real Prefect server."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Crashed
from prefect.utilities.callables import parameter_schema

from flows import promote as promotion
from flows import train_variants as training
from flows import validate_data as data
from flows.evaluate_champion import DriftError, DriftReport, evaluate_champion
from flows.promote import PromotionError, promote
from flows.promotion.models import chosen_models
from flows.report import VariantReport
from flows.runner.pipeline import Pipeline, StageOutcome, StageResult, only_run
from flows.tasks import PROMOTION_LIMIT, alone, held
from flows.validate_data import InvalidDataError, validate_data
from stages.project import params as params_module
from stages.registry.versions import CHALLENGER, CHAMPION, ModelRegistry
from tests.pipeline.project import configure, make_trouble
from tests.pipeline.servers import PrefectServer, running, wait_for
from yolov7.errors import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.thorough]
REPOSITORY = Path(__file__).resolve().parents[2]
VARIANT = "yolov7-tiny"
DEPLOYMENTS = {one["name"]: one for one in yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]}

# Replaces the package `stages` of the project, whose own commands need real models.
EVALUATE = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
for name in ("variant", "model", "output"):
    parser.add_argument("--" + name, required=True)
args = parser.parse_args()
assert args.variant == "yolov7-tiny", args.variant
figures = {"AP": 0.5, "AP_low": 0.45, "AP_high": 0.55, "images": 7, "test_data_sha256": "new"}
pathlib.Path(args.output).write_text(json.dumps(figures))
pathlib.Path("evaluated").write_text(args.model)
"""


@pytest.fixture
def here(project: Path, prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    configure(project, (VARIANT,))
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def registry(here: Path, mlflow_file: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelRegistry]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_file)
    yield ModelRegistry()
    import mlflow

    mlflow.set_tracking_uri(None)


def version_of(registry: ModelRegistry, model: str, alias: str, ap: float) -> int:
    """A version as far as flows look at one: tags and an alias."""
    if not registry.aliases(model):
        registry.client.create_registered_model(model)
    tags = {"AP": str(ap), "variant": VARIANT, "test_data_sha256": "old"}
    tags |= {"artefact_verification": "passed", "data_validation": "passed"}
    number = int(registry.client.create_model_version(model, "file:///nowhere", tags=tags).version)
    registry.set_aliases(model, {alias: number})
    return number


def with_findings(project: Path) -> None:
    """Outputs of the real stage for a check with one warning."""
    folder = project / "reports/validation"
    folder.mkdir(parents=True)
    rule = {"rule": "box-tiny", "severity": "warning", "success": False, "element_count": 9, "unexpected_count": 1}
    passed = {**rule, "rule": "ids-unique", "success": True, "unexpected_count": 0}
    finding = {"rule": "box-tiny", "split": "train", "file": "a|b.jpg", "value": "1 px", "action": "look at it"}
    (folder / "results.json").write_text(json.dumps({"success": True, "results": [rule, passed], "skipped": []}))
    (folder / "findings.json").write_text(json.dumps([finding]))


def flow_of(deployment: dict[str, Any]) -> Flow[..., Any]:
    module, _, name = deployment["entrypoint"].rpartition(".")
    return getattr(importlib.import_module(module), name)


# prefect.yaml --------------------------------------------------------------------------------------------------------


def test_every_flow_has_its_deployment() -> None:
    flows = {name: flow_of(deployment).name for name, deployment in DEPLOYMENTS.items()}
    assert flows == {
        "nightly": "train-variants",
        "by-revision": "train-variant",
        "weekly": "validate-data",
        "gate": "promote",
        "drift": "evaluate-champion",
        "choice": "choose-model",
        "search": "search-parameters",
    }


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_deployment_fits_its_flow(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    flow = flow_of(deployment)
    documented = parameter_schema(flow).properties
    given = deployment["parameters"]
    assert set(given) == set(documented), "prefect.yaml shows every parameter there is"
    assert flow.validate_parameters(given).keys() == given.keys()
    for parameter, about in documented.items():
        assert about.get("description"), f"{parameter} is not documented"
        assert "type" in about or "anyOf" in about, f"{parameter} has no type"
    assert deployment["tags"] and deployment["description"]
    assert deployment["work_pool"]["job_variables"]["env"]["DO_NOT_TRACK"] == "1"
    for schedule in deployment.get("schedules", []):
        assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"]).cron


def test_wrong_parameters_are_refused_before_anything_runs() -> None:
    from prefect.exceptions import ParameterTypeError

    wrong: list[tuple[Flow[..., Any], dict[str, Any]]] = [
        (evaluate_champion, {"on_drop": "ignore"}),
        (evaluate_champion, {"max_ap_drop": -0.1}),
        (promote, {"models": "yolov7-tiny"}),
        (validate_data, {"timeout_hours": 0}),
    ]
    for flow, values in wrong:
        with pytest.raises(ParameterTypeError):
            flow.validate_parameters(values)
    with pytest.raises(ConfigError, match="models: name at least one"):
        chosen_models([], params_module.Params())  # an empty list is not "all"


def test_the_gate_waits_for_the_event_that_a_run_without_gate_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    (trigger,) = (DeploymentEventTrigger.model_validate(one) for one in DEPLOYMENTS["gate"]["triggers"])
    sent: list[tuple[str, dict[str, str], dict[str, Any]]] = []
    monkeypatch.setattr(
        training, "emit_event", lambda event, resource, payload: sent.append((event, resource, payload))
    )
    params = params_module.Params(variants=("yolov7-tiny", "yolov7", "yolov7-x"))
    new, old, failed = (VariantReport(variant, version=3) for variant in params.variants)
    new.stages = [StageResult("register@yolov7-tiny", StageOutcome.RAN, 1.0)]
    old.stages = [StageResult("register@yolov7", StageOutcome.UNCHANGED, 1.0)]
    failed.stages = [StageResult("train@yolov7-x", StageOutcome.RAN, 1.0)]
    training.announce_versions(params, [new, old, failed])
    ((event, resource, payload),) = sent
    assert event in trigger.expect and trigger.match.includes([resource])
    assert payload == {"model": "yolov7-tiny", "version": 3, "variant": "yolov7-tiny"}


def test_the_champions_are_measured_on_the_event_of_new_data(
    here: Path, prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trigger,) = (DeploymentEventTrigger.model_validate(one) for one in DEPLOYMENTS["drift"]["triggers"])
    sent: list[tuple[str, dict[str, str], dict[str, str]]] = []
    monkeypatch.setattr(data, "emit_event", lambda event, resource, payload: sent.append((event, resource, payload)))
    prefect_server.client.delete(f"/variables/name/{data.PASSED}")

    def ingested(folder: Path, sha256: str) -> Path:
        (folder / "data/ingested").mkdir(parents=True, exist_ok=True)
        (folder / "data/ingested/dataset.json").write_text(json.dumps({"sha256": sha256}))
        return folder

    log = logging.getLogger(__name__)
    data.announce_data(here / "nothing there", log)
    data.announce_data(ingested(here, "1"), log)
    data.announce_data(ingested(here / "a fresh clone", "1"), log)
    assert sent == [], "the first, and the same again elsewhere"
    data.announce_data(ingested(here, "2"), log)
    data.announce_data(here, log)
    ((event, resource, payload),) = sent
    assert event in trigger.expect and trigger.match.includes([resource])
    assert payload == {"sha256": "2", "before": "1"}

    # Data that a nightly run brings are announced too, whatever comes of the run; those that do not pass are not.
    ingested(here, "3")
    make_trouble(here, "validate", "always 2")
    with pytest.raises(training.RunError):
        training.train_variants()
    assert len(sent) == 1
    (here / "trouble/validate").unlink()
    make_trouble(here, f"train@{VARIANT}", "always 2")
    with pytest.raises(training.RunError):
        training.train_variants()
    assert [one[2]["before"] for one in sent] == ["1", "2"]


@pytest.fixture
def deployed(here: Path, prefect_server: PrefectServer) -> Iterator[dict[str, Any]]:
    """The deployments of prefect.yaml on the server, by name; no worker runs them."""
    shutil.copy(REPOSITORY / "prefect.yaml", here)
    # Another test may have made the pool.
    prefect_server.client.post("/work_pools/", json={"name": "local", "type": "process"})
    command, log = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"], here / "deploy.log"
    with running(command, log, env=prefect_server.environment, cwd=here) as process:
        assert process.wait(240) == 0, log.read_text()
    found = {one["name"]: one for one in prefect_server.ask("/deployments/filter", {})}
    try:
        yield found
    finally:
        for one in found.values():
            prefect_server.client.delete(f"/deployments/{one['id']}")


def test_events_start_what_they_should(deployed: dict[str, Any], prefect_server: PrefectServer) -> None:
    assert set(DEPLOYMENTS) <= set(deployed)
    assert deployed["drift"]["parameters"] == DEPLOYMENTS["drift"]["parameters"]

    def started(name: str) -> list[dict[str, Any]]:
        runs = prefect_server.ask("/flow_runs/filter", {"deployments": {"name": {"any_": [name]}}})
        return [run for run in runs if (run["created_by"] or {}).get("type") == "AUTOMATION"]

    # A version is registered.
    event = {"id": str(uuid.uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": training.REGISTERED}
    event |= {"resource": {"prefect.resource.id": "yolov7.model.mine"}, "payload": {"model": "mine", "version": 1}}
    changed = {
        **event,
        "id": str(uuid.uuid4()),
        "event": data.CHANGED,
        "resource": {"prefect.resource.id": "yolov7.data"},
    }
    prefect_server.client.post("/events", json=[event, changed]).raise_for_status()
    # A nightly run crashes.
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(uuid.UUID(deployed["nightly"]["id"]))
        client.set_flow_run_state(run.id, Crashed(), force=True)

    wait_for("the event starts the gate", lambda: started("gate"), 120)
    (gate,) = started("gate")
    assert gate["parameters"] == {"models": ["mine"], "dry_run": False, "new_classes": False, "timeout_hours": 12}
    wait_for("the crash starts another run", lambda: started("nightly"), 120)
    (again,) = started("nightly")
    assert again["parameters"] == DEPLOYMENTS["nightly"]["parameters"]
    wait_for("new data starts the measurement", lambda: started("drift"), 120)
    assert len(started("drift")) == 1 and not started("weekly")


def test_deployments_of_earlier_releases_keep_their_entrypoints(
    here: Path, prefect_server: PrefectServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_flow_from_entrypoint("flows.promote_models.promote").name == "promote"
    renamed = load_flow_from_entrypoint("flows.train_family.train_family")
    assert renamed.name == "train-family", "deployments are addressed by it"
    assert parameter_schema(renamed).properties.keys() == DEPLOYMENTS["nightly"]["parameters"].keys()
    report = renamed(promote_challengers=False)
    assert len(report.stages) == 7 and not report.failures
    assert "the flow train-family is now called train-variants" in caplog.text
    assert "7 of 7 stages ran" in prefect_server.page("train-variants")


def test_automations_are_accepted(prefect_server: PrefectServer) -> None:
    (automation,) = yaml.safe_load((REPOSITORY / "flows/automations.yaml").read_text())["automations"]
    answer = prefect_server.client.post("/automations/", json=automation)
    assert answer.status_code == 201, answer.text
    assert answer.json()["trigger"]["within"] == 90
    prefect_server.client.delete(f"/automations/{answer.json()['id']}").raise_for_status()
    every = int(DEPLOYMENTS["nightly"]["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert every * 2 < automation["trigger"]["within"], "one late heartbeat is no crash"


# validate-data -------------------------------------------------------------------------------------------------------


def test_findings_are_on_the_page(here: Path, prefect_server: PrefectServer) -> None:
    with_findings(here)
    report = validate_data()
    assert [stage.stage for stage in report.stages] == ["ingest", "validate"]
    assert "The data passes 2 rules; 1 of them only with a warning." in prefect_server.page("validate-data")
    assert "| box-tiny | train/a\\|b.jpg | 1 px | look at it |" in prefect_server.page("validate-data")
    assert not (here / "models").exists(), "nothing is trained"
    again = validate_data(refresh=True)
    assert [stage.outcome for stage in again.stages] == [StageOutcome.RAN, StageOutcome.UNCHANGED], (
        "the source, and no more"
    )


def test_data_that_does_not_pass_fails_the_run(here: Path, prefect_server: PrefectServer) -> None:
    with_findings(here)
    make_trouble(here, "validate", "always 2")
    with pytest.raises(InvalidDataError, match="stage validate failed with exit code 2: the disk of validate is on"):
        validate_data()
    text = prefect_server.page("validate-data")
    assert "The data does not pass." in text and "is on fire; log: .local/logs/validate.log" in text
    make_trouble(here, "ingest", "always 2")
    with pytest.raises(InvalidDataError, match="stage ingest failed") as caught:
        validate_data(refresh=True)
    assert caught.value.report.summary == "The data could not be checked.", "the old report is not about this data"


def test_a_second_run_in_the_same_folder_waits(here: Path) -> None:
    said: list[str] = []
    waiting = threading.Event()

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            if "waiting for it to end" in said[-1]:
                waiting.set()

    log, listen = logging.getLogger("prefect.flow_runs"), Listen()
    outcome: list[Any] = []
    second = threading.Thread(target=lambda: outcome.append(validate_data()))
    log.addHandler(listen)
    try:
        with only_run(here, logging.getLogger(__name__)):
            second.start()
            wait_for("the second run says that it waits", waiting.is_set, 120)
            assert not (here / "data").exists(), "it has not begun"
        second.join(120)
    finally:
        log.removeHandler(listen)
    assert any(f"another run is working in {here}" in line for line in said)
    assert [stage.outcome for stage in outcome[0].stages] == [StageOutcome.RAN, StageOutcome.RAN], (
        "then it does its work"
    )


RUN = """
import logging, pathlib
from flows.runner.pipeline import Pipeline, only_run
root, log = pathlib.Path.cwd(), logging.getLogger()
with only_run(root, log), Pipeline(root) as pipeline:
    pipeline.reproduce("ingest", log)
"""


def test_processes_left_by_a_killed_run_end_before_the_next(project: Path) -> None:
    make_trouble(project, "ingest", "sleep 0")
    log = logging.getLogger(__name__)
    killed = subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=project, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    started = project / "started"
    wait_for("the stage runs", lambda: started.is_file() and started.read_text(), 120)
    stage = psutil.Process(int(started.read_text()))
    wait_for("its child runs", stage.children, 60)
    left = [stage, *stage.children()]
    killed.kill()
    killed.wait()
    assert all(one.is_running() for one in left)
    (project / "trouble/ingest").unlink()
    with only_run(project, log), Pipeline(project) as pipeline:
        assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in left)
        assert pipeline.reproduce("ingest", log).outcome is StageOutcome.RAN


WAIT = """
import pathlib, time
pathlib.Path("waiting").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.1)
print("unharmed")
"""


def test_processes_of_a_living_run_are_left_alone(project: Path) -> None:
    log, said = logging.getLogger(__name__), []
    with Pipeline(project) as pipeline:
        other = threading.Thread(target=lambda: said.extend(pipeline.run("wait", [sys.executable, "-c", WAIT], log)))
        other.start()
        wait_for("it runs", (project / "waiting").exists, 60)
        with only_run(project, log):
            (project / "go").touch()
        other.join(60)
    assert said == ["unharmed"]


# promote -------------------------------------------------------------------------------------------------------------


def test_gate_decides_and_records(registry: ModelRegistry, prefect_server: PrefectServer) -> None:
    number = version_of(registry, VARIANT, CHALLENGER, 0.6)
    here = Path.cwd()
    assert not (here / "data").exists(), "a fresh checkout"
    trial = promote(dry_run=True)
    assert trial.summary == f"{VARIANT}: version {number} would be promoted."
    assert (here / "data/index.json").is_file(), "the gate measures on it"
    assert registry.by_alias(VARIANT, CHAMPION) is None
    assert "A dry run: nothing was changed." in prefect_server.page("promote")
    with pytest.raises(PromotionError, match=r"promote@unknown: .*no model 'unknown' with the alias") as caught:
        promote(models=["unknown", VARIANT, VARIANT])
    assert registry.aliases(VARIANT)[CHAMPION] == number, "one that cannot be judged does not stop the others"
    assert caught.value.report.summary == f"{VARIANT}: version {number} promoted; 1 could not be judged."
    text = prefect_server.page("promote")
    assert f"- `{VARIANT}`: **version {number} promoted**, there was no champion" in text and "## Not judged" in text
    make_trouble(here, "validate", "always 2")
    (here / "source.txt").write_text("2")
    with pytest.raises(PromotionError, match="stage validate failed with exit code 2") as caught:
        promote()
    assert not caught.value.report.decisions, "without data nothing is measured"


def test_gates_of_one_server_take_turns(
    registry: ModelRegistry, prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = prefect_server.ask("/v2/concurrency_limits/", {"name": PROMOTION_LIMIT, "limit": 1})["id"]
    version_of(registry, "turns", CHALLENGER, 0.6)
    gate, asks = threading.Thread(target=lambda: promote(models=["turns"])), threading.Event()

    def its_turn() -> AbstractContextManager[None]:
        asks.set()
        return alone()

    monkeypatch.setattr(promotion, "alone", its_turn)
    try:
        with held(PROMOTION_LIMIT):
            gate.start()
            wait_for("the gate asks for its turn", asks.is_set, 120)
            time.sleep(1)  # long enough for a gate that does not wait
            assert CHAMPION not in registry.aliases("turns")
        gate.join(120)
    finally:
        prefect_server.client.delete(f"/v2/concurrency_limits/{limit}")
    assert CHAMPION in registry.aliases("turns")


def test_new_classes_are_accepted_for_models_that_are_named(here: Path) -> None:
    with pytest.raises(ConfigError, match="name the models"):
        promote(new_classes=True)


# evaluate-champion ---------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(here: Path, registry: ModelRegistry) -> Callable[[float], str]:
    """Gives the champion of a model a recorded AP; the current one is 0.5."""
    (here / "stages").mkdir()
    (here / "stages/__init__.py").touch()
    (here / "stages/evaluate.py").write_text(EVALUATE)

    def champion(ap: float) -> str:
        return f"models:/drifting/{version_of(registry, 'drifting', CHAMPION, ap)}"

    return champion


def test_a_champion_that_fell_too_far_fails_the_run(
    here: Path, measured: Callable[[float], str], registry: ModelRegistry, prefect_server: PrefectServer
) -> None:
    uri = measured(0.6)
    report = evaluate_champion(models=["drifting", "absent"], max_ap_drop=0.03, on_drop="warn")
    assert (here / "evaluated").read_text() == uri, "by number, not by alias"
    assert report.absent == ["absent"] and len(report.fallen) == 1
    text = prefect_server.page("evaluate-champion")
    assert "0.6000 | 0.5000 | 0.4500 to 0.5500 | **-0.1000** | 7 | other than recorded |" in text
    assert DriftReport(0.2, report.measured).fallen == [], "a fall within the limit"
    with pytest.raises(DriftError, match=r"AP 0\.5000 on the current test data, 0\.1000 below the recorded 0\.6000"):
        evaluate_champion(models=["drifting"], max_ap_drop=0.03)

    # It was measured with test-time augmentation, which is off now.
    champion = registry.resolve(uri)
    registry.set_tags(champion, {"evaluation": f"{params_module.Evaluate().conditions} augment=True"})
    report = evaluate_champion(models=["drifting"], max_ap_drop=0.03)
    assert report.summary == "0 of 0 champions fell by more than 0.03; 1 measured otherwise than recorded."
    text = prefect_server.page("evaluate-champion")
    assert "0.6000 | 0.5000 | 0.4500 to 0.5500 | measured otherwise | 7 |" in text
    assert "that was measured with confidence=0.001 iou=0.65 max_detections=300 augment=True, params.yaml" in text
