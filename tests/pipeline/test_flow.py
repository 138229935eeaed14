"""The flow train-variants in this process, against a real Prefect server and real DVC."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.runner.pipeline import LOGS, StageOutcome
from flows.tasks import Slots
from flows.train_variants import RunError, train_variants
from stages.registry.versions import ModelRegistry
from tests.pipeline.export_folder import another, image_bytes
from tests.pipeline.project import configure, make_trouble, with_code, with_real_registration
from tests.pipeline.servers import PrefectServer, loopback_environment
from yolov7.errors import ConfigError

pytestmark = pytest.mark.slow
VARIANT = "yolov7-tiny"


@pytest.fixture
def here(project: Path, prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def test_runs_everything_once_and_then_nothing(here: Path, prefect_server: PrefectServer) -> None:
    configure(here, ("yolov7-tiny",))
    first = train_variants(promote_challengers=False)
    assert [result.stage for result in first.data] == ["ingest", "validate"]
    assert {result.outcome for result in first.stages} == {StageOutcome.RAN} and len(first.stages) == 7
    assert (here / "models/yolov7-tiny/registered.json").is_file()
    assert "7 of 7 stages ran" in prefect_server.page("train-variants")
    second = train_variants(promote_challengers=False)
    assert {result.outcome for result in second.stages} == {StageOutcome.UNCHANGED} and len(second.stages) == 7
    assert "Nothing was recomputed: all 7 stages are up to date." in prefect_server.page("train-variants")


def test_changed_code_is_seen_before_dvc_is_asked_what_is_stale(here: Path) -> None:
    configure(here, ("yolov7-tiny",))
    with_code(here)
    assert {result.outcome for result in train_variants(promote_challengers=False).stages} == {StageOutcome.RAN}
    (here / "code.txt").write_text("2")
    second = train_variants(promote_challengers=False)
    assert [result.stage for result in second.data] == ["ingest", "validate"], "the lists are no result"
    assert {result.outcome for result in second.stages} == {StageOutcome.RAN} and len(second.stages) == 7
    third = train_variants(promote_challengers=False)
    assert {result.outcome for result in third.stages} == {StageOutcome.UNCHANGED}
    (here / "code.txt").write_text("3")
    make_trouble(here, "code", "always 2")
    with pytest.raises(RunError, match="stage code failed with exit code 2: the disk of code is on fire"):
        train_variants(promote_challengers=False)


def test_a_failed_variant_does_not_stop_the_others(here: Path, prefect_server: PrefectServer) -> None:
    configure(here, retries=1)
    make_trouble(here, "train@yolov7-tiny", "always 2")
    make_trouble(here, "export@yolov7", "once 75")
    with pytest.raises(RunError) as caught:
        train_variants(promote_challengers=False)
    report = caught.value.report
    tiny, large = report.variants
    assert tiny.error is not None and "stage train of variant yolov7-tiny failed with exit code 2" in tiny.error
    assert "is on fire" in tiny.error and f"{LOGS}/train@yolov7-tiny.log" in tiny.error
    assert tiny.stages == [] and not (here / "models/yolov7-tiny/export").exists(), "nothing behind it was started"
    assert large.error is None and len(large.stages) == 5, "one failure that may pass was tried again"
    assert "## Failures" in prefect_server.page("train-variants")
    wanted = {
        "task_runs": {"name": {"any_": ["train@yolov7-tiny", "export@yolov7"]}},
        "sort": "EXPECTED_START_TIME_DESC",
    }
    counts: dict[str, int] = {}
    for run in prefect_server.ask("/task_runs/filter", wanted)[:2]:
        counts[run["name"]] = run["run_count"]
    assert counts == {"train@yolov7-tiny": 1, "export@yolov7": 2}, "a lasting mistake is not retried"


def test_bad_data_stops_everything(here: Path) -> None:
    make_trouble(here, "validate", "always 2")
    with pytest.raises(RunError, match="stage validate failed with exit code 2: the disk of validate is on fire"):
        train_variants(promote_challengers=False)
    assert (here / "data/ingested.json").is_file() and not (here / "models").exists()


def test_unknown_variant_is_refused_by_name(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"'yolov7-tinny' is not in params.yaml.*did you mean 'yolov7-tiny'"):
        train_variants(variants=["yolov7-tinny"])
    assert not (here / "data").exists()


def test_slots_bound_what_runs_at_the_same_time() -> None:
    slots, now, most = Slots(2), 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal now, most
        with slots.one():
            with guard:
                now += 1
                most = max(most, now)
            time.sleep(0.1)
            with guard:
                now -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


@pytest.mark.thorough
def test_demo_without_a_server(project: Path, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(project, (VARIANT,))
    with_real_registration(project, export, image_bytes(), ap=0.61)
    env = {name: value for name, value in loopback_environment().items() if not name.startswith("MLFLOW_TRACKING")}
    command = [sys.executable, "-m", "flows.demo"]

    def demo() -> str:
        done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        return " ".join(done.stdout.split())

    first = demo()
    assert "7 of 7 stages ran" in first and "0.610" in first
    assert f"{VARIANT}: version 1 promoted: there was no champion" in first
    assert (project / ".local/prefect").is_dir(), "the user's own Prefect settings are left alone"

    # Another artefact is registered meanwhile; DVC has the first one, and so has the champion.
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    registry = ModelRegistry()
    other = another(project / "other/export", export, "newer")
    run_id = registry.run_for({}, experiment="tests", name="newer")
    newer, _ = registry.register(other, name=VARIANT, run_id=run_id, origin={}, measured={"AP": "0.9"})
    assert registry.aliases(VARIANT) == {"champion": 1, "challenger": newer.number}
    second = demo()
    assert "Nothing was recomputed: all 7 stages are up to date." in second
    assert f"{VARIANT}: version 1 unchanged: the challenger is the champion already" in second
    assert registry.aliases(VARIANT) == {"champion": 1, "challenger": 1}, "the challenger is what the stages made"
