"""The shipped deployment on a real server with a real worker: a schedule fires, a cancelled run leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.pipeline.project import configure, make_trouble
from tests.pipeline.servers import PrefectServer, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.thorough]
REPOSITORY = Path(__file__).resolve().parents[2]
VARIANT = "yolov7-tiny"


@pytest.fixture
def deployed(project: Path, prefect_server: PrefectServer) -> Iterator[Path]:
    """The repository's prefect.yaml deployed from the small project, every few seconds instead of every night."""
    document = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    (nightly,) = (one for one in document["deployments"] if one["name"] == "nightly")
    assert nightly["schedules"][0]["cron"] == "0 2 * * *"
    nightly["schedules"] = [{"interval": 20, "slug": "soon"}]
    nightly["parameters"]["promote_challengers"] = False  # the stages here make no real model
    (project / "prefect.yaml").write_text(yaml.safe_dump(document))
    configure(project, (VARIANT,))
    prefect_server.command(project, "work-pool", "create", "local", "--type", "process", "--overwrite")
    prefect_server.command(project, "deploy", "--name", "nightly")
    with prefect_server.worker(project, "local"):
        yield project


def flow_runs(server: PrefectServer, *states: str) -> list[dict[str, Any]]:
    wanted = {"flow_runs": {"state": {"type": {"any_": list(states)}}}, "deployments": {"name": {"any_": ["nightly"]}}}
    return server.ask("/flow_runs/filter", wanted)


def test_scheduled_run_completes_and_cancelled_run_leaves_nothing(
    deployed: Path, prefect_server: PrefectServer
) -> None:
    log = deployed / "worker.log"
    wait_for("a scheduled run completes", lambda: flow_runs(prefect_server, "COMPLETED"), 150, log)
    done = flow_runs(prefect_server, "COMPLETED")[0]
    assert done["auto_scheduled"], "the schedule started it, nobody else did"
    assert (deployed / f"models/{VARIANT}/registered.json").is_file()

    # From here on one run at a time: on a slow machine the next scheduled one may already wait for the folder.
    deployment = f"/deployments/{done['deployment_id']}"
    prefect_server.client.post(f"{deployment}/pause_deployment").raise_for_status()
    unfinished = ("SCHEDULED", "PENDING", "RUNNING")
    wait_for("the schedule is at rest", lambda: not flow_runs(prefect_server, *unfinished), 150, log)
    make_trouble(deployed, f"train@{VARIANT}", "sleep 0")
    (deployed / "source.txt").write_text("2")
    run = prefect_server.ask(f"{deployment}/create_flow_run", {})
    started = deployed / "started"
    wait_for("the next run reaches its training", lambda: started.is_file() and started.read_text(), 150, log)
    stage = psutil.Process(int(started.read_text()))
    wait_for("the training's child", stage.children, 30)
    family = [stage, *stage.children()]
    answer = prefect_server.client.post(
        f"/flow_runs/{run['id']}/set_state", json={"state": {"type": "CANCELLING", "name": "Cancelling"}}
    )
    answer.raise_for_status()
    wait_for("the run is cancelled", lambda: flow_runs(prefect_server, "CANCELLED"), 90, log)
    wait_for("nothing of it is left", lambda: not any(one.is_running() for one in family), 60, log)
