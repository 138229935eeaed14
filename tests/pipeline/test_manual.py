"""The commands of the documents, run as they are written and in their order, on real servers.

`tests/unit/docs/test_commands.py` checks the arguments of all commands and that each block is run here or elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from manual import ROOT, RUN_BY_MANUAL, Block, blocks, commands

from stages.project.command import environment
from tests.pipeline.project import make_project
from tests.pipeline.servers import PrefectServer, free_port, prefect_serving

pytestmark = [pytest.mark.slow, pytest.mark.thorough]
STARTED_BY_FIXTURES = (["server", "start"], ["worker", "start"])
"""They run until they are stopped."""


def of_document(name: str) -> list[Block]:
    return [block for block in blocks("sh") if block.name.startswith(name) and block.name.startswith(RUN_BY_MANUAL)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's root, without anything that a test could change."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("flows", "stages", "yolov7", "prefect.yaml", "params.yaml", "dvc.yaml", "infra"):
        (folder / name).symlink_to(ROOT / name)
    return folder


class Console:
    """Runs the commands of Prefect, each once, with the identifiers that the server has given."""

    def __init__(self, server: PrefectServer, folder: Path):
        self.server, self.folder = server, folder
        self.done: set[tuple[str, ...]] = set()

    def run(self, block: Block) -> None:
        for words in commands(block.text):
            arguments = words[1:]
            if words[0] != "prefect" or arguments[:2] in STARTED_BY_FIXTURES or tuple(arguments) in self.done:
                continue
            self.done.add(tuple(arguments))
            known = [self.identifier(arguments) if word == "ID" else word for word in arguments]
            self.server.command(self.folder, *known)

    def identifier(self, arguments: list[str]) -> str:
        if arguments[0] == "automation":
            return str(self.server.ask("/automations/filter", {})[0]["id"])
        if arguments[0] == "flow-run":
            return str(self.server.ask("/flow_runs/filter", {})[0]["id"])
        return str(self.schedule(arguments[3])["id"])

    def schedule(self, name: str) -> dict[str, Any]:
        wanted = {"deployments": {"name": {"any_": [name.split("/")[1]]}}}
        (deployment,) = self.server.ask("/deployments/filter", wanted)
        return dict(deployment["schedules"][0])

    def enabled(self) -> list[bool]:
        return [bool(one["enabled"]) for one in self.server.ask("/automations/filter", {})]


@pytest.mark.timeout(1500)  # each command of Prefect takes seconds to start
def test_the_commands_of_prefect(tmp_path: Path, checkout: Path) -> None:
    # On a server of its own: the commands leave limits, pools and automations.
    with prefect_serving(tmp_path, free_port()) as server:
        check_the_commands(server, checkout)


def check_the_commands(server: PrefectServer, checkout: Path) -> None:
    console = Console(server, checkout)
    for block in [*of_document("README.md: prefect"), *of_document("docs/operations.md")]:
        console.run(block)
    assert len(console.done) > 20
    assert not console.schedule("train-variants/nightly")["active"], "paused, as the command says"
    assert not all(console.enabled())
    server.command(checkout, "deploy", "--all")
    assert not console.schedule("train-variants/nightly")["active"], "a new deployment leaves it paused"
    server.command(checkout, "work-pool", "resume", "local")


def run_as_written(block: Block, folder: Path) -> None:
    """The whole block in one shell that ends at the first failure."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    author = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org"}
    author |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env={**environment(), **author, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_folder_on_more_than_one_machine(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    (project / "datasets/mine").mkdir(parents=True)
    (project / "datasets/mine/image.txt").write_text("an image")
    (project / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    remote = ["-m", "dvc", "remote", "add", "--default", "store", str(tmp_path / "store")]
    subprocess.run([sys.executable, *remote], cwd=project, check=True, env=environment(), capture_output=True)
    (block,) = of_document("docs/data.md: dvc add")
    run_as_written(block, project)
    assert any(path.is_file() for path in (tmp_path / "store").rglob("*"))


def test_the_check_for_tensorrt(export: Path, tmp_path: Path) -> None:
    (tmp_path / "models/V").mkdir(parents=True)
    (tmp_path / "models/V/export").symlink_to(export)
    (block,) = of_document("docs/export.md")
    line, _ = block.text.splitlines()  # the other one builds an engine, which needs a GPU
    run_as_written(Block(block.document, "sh", line), tmp_path)
