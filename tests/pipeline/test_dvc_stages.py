"""DVC stages as child processes: what is said about them, how they fail, and that nothing is left running."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from flows.promotion.models import compared_now
from flows.runner.pipeline import LOGS, Pipeline, StageError, StageOutcome, only_run
from stages.registry.versions import Version
from tests.pipeline.project import make_trouble

LOG = logging.getLogger("test")
VARIANT = "yolov7-tiny"


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants_of_stage(project: Path) -> list[int]:
    """Process ids of a sleeping stage and of the child it started, once both are there."""
    started = project / "started"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if started.is_file() and started.read_text():
            stage = psutil.Process(int(started.read_text()))
            if children := stage.children():
                return [stage.pid, *(child.pid for child in children)]
        time.sleep(0.1)
    raise AssertionError("the stage did not start")


def test_says_what_dvc_did(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Pipeline(project) as pipeline:
        assert pipeline.reproduce("ingest", LOG).outcome is StageOutcome.RAN
        assert "working on ingest" in caplog.messages
        written = (project / LOGS / "ingest.log").read_text()
        assert "working on ingest" in written
        assert pipeline.reproduce("ingest", LOG).outcome is StageOutcome.UNCHANGED
        assert (project / LOGS / "ingest.log").read_text() == written, "a run that did nothing left the log alone"
        assert pipeline.up_to_date(["ingest", "validate"]) == {"ingest"}
        (project / "source.txt").write_text("2")
        assert pipeline.up_to_date(["ingest", "validate"]) == set()
        assert pipeline.reproduce("ingest", LOG).outcome is StageOutcome.RAN
        (project / "source.txt").write_text("1")
        assert pipeline.reproduce("ingest", LOG).outcome is StageOutcome.RESTORED
        assert pipeline.reproduce("ingest", LOG, force=True).outcome is StageOutcome.RAN


def test_failure_names_stage_variant_cause_and_log(project: Path) -> None:
    make_trouble(project, f"train@{VARIANT}", "always 2")
    with Pipeline(project) as pipeline:
        pipeline.reproduce("ingest", LOG)
        pipeline.reproduce("validate", LOG)
        with pytest.raises(StageError) as caught:
            pipeline.reproduce(f"train@{VARIANT}", LOG)
        message = str(caught.value)
        assert message.startswith(f"stage train of variant {VARIANT} failed with exit code 2: the disk of ")
        assert f".local/logs/train@{VARIANT}.log" in message
        assert caught.value.lasting
        make_trouble(project, f"train@{VARIANT}", "always 75")
        with pytest.raises(StageError, match="exit code 75") as again:
            pipeline.reproduce(f"train@{VARIANT}", LOG)
        assert not again.value.lasting
        with pytest.raises(StageError, match="nonsense"):
            pipeline.reproduce("nonsense", LOG)


def test_time_limit_ends_the_whole_tree(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(600)"
    parent = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {sleep!r}]).pid); {sleep}"
    with Pipeline(tmp_path, timeout_seconds=3) as pipeline, pytest.raises(StageError, match="within 3 s") as caught:
        pipeline.run("push", [sys.executable, "-c", parent], LOG)
    assert not caught.value.lasting, "what hung may succeed the next time"
    assert not alive(int((tmp_path / LOGS / "push.log").read_text()))


def test_a_measurement_that_takes_too_long_is_not_made_again(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    version = Version("tiny", 1)
    with Pipeline(tmp_path, timeout_seconds=0.5) as pipeline:
        with pytest.raises(StageError, match=r"within 0\.5 s") as caught:
            pipeline.run("evaluate", sleep, LOG, measures=True)
        assert caught.value.lasting
        with pytest.raises(StageError, match=r"stage compare-tiny-1-1 did not end within 0\.5 s") as caught:
            compared_now(pipeline)(version, version)
        assert caught.value.lasting
    with Pipeline(tmp_path, timeout_seconds=0.01) as pipeline:  # no DVC is that quick
        for stage, again in (("evaluate@yolov7-tiny", False), ("train@yolov7-tiny", True)):
            with pytest.raises(StageError, match="did not end") as caught:
                pipeline.reproduce(stage, LOG)
            assert caught.value.lasting is not again


@contextmanager
def reproducing(pipeline: Pipeline, stage: str) -> Iterator[list[StageError]]:
    """Reproduce a stage in a thread until the end of the block; gives the errors it ended with."""
    errors: list[StageError] = []

    def reproduce() -> None:
        try:
            pipeline.reproduce(stage, LOG)
        except StageError as error:
            errors.append(error)

    thread = threading.Thread(target=reproduce)
    thread.start()
    yield errors
    thread.join(60)
    assert not thread.is_alive()


def test_close_ends_the_whole_tree_even_after_dvc_has_died(project: Path) -> None:
    make_trouble(project, "ingest", "sleep 0")
    pipeline = Pipeline(project)
    with reproducing(pipeline, "ingest") as errors:
        pids = descendants_of_stage(project)
        # The shell and DVC above the stage die first, as the kernel might choose: the stage is left without a parent.
        for parent in psutil.Process(pids[0]).parents():
            if parent.pid == psutil.Process().pid:
                break
            parent.kill()
    assert not any(alive(pid) for pid in pids)
    assert len(errors) == 1 and not errors[0].lasting
    pipeline.close()
    with pytest.raises(StageError, match="was not started"):
        pipeline.reproduce("ingest", LOG)


def test_close_from_another_thread(project: Path) -> None:
    make_trouble(project, "ingest", "sleep 0")
    pipeline = Pipeline(project)
    with reproducing(pipeline, "ingest") as errors:
        pids = descendants_of_stage(project)
        pipeline.close()
    assert not any(alive(pid) for pid in pids)
    assert "was stopped" in str(errors[0]) and errors[0].lasting, "a run that is ending is not retried"


def test_one_run_at_a_time_in_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    order: list[str] = []

    def second() -> None:
        with only_run(tmp_path, LOG):
            order.append("second")

    with only_run(tmp_path, LOG):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert "another run is working in" in caplog.text
