"""Copies of training states: only whole ones are seen, the newer one wins, nothing that fails stops a training."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

from stages.project.params import Flow
from stages.training import state_remote as module
from stages.training.folder_store import Folder
from stages.training.state_remote import NEWEST, SWITCH, StateRemote, open_store, state_remote
from stages.training.state_store import StoreError
from yolov7.train.state import StateFolder, TrainingState, newest_iteration

KEY = "0123456789ab"


class Machine:
    """A project folder with the state folder of one run, and its copies in `store`."""

    def __init__(self, root: Path, store: Folder, **more):
        self.folder = root / ".state/train/v" / KEY
        self.folder.mkdir(parents=True)
        self.journal = root / f"v-{KEY}.jsonl"
        self.remote = StateRemote(store, self.folder, self.journal, **{"every": 0.0, "first_pause": 0.0, **more})
        self.states = StateFolder(self.folder, {"run": 1}, on_saved=self.remote.offer)

    def save(self, iteration: int) -> None:
        self.states.save(TrainingState({"w": torch.full((3,), float(iteration))}, {"at": iteration}), iteration)

    def settle(self) -> None:
        with self.remote._changed:
            assert self.remote._changed.wait_for(lambda: self.remote._waiting is None and not self.remote._busy, 60)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    return Folder(str(tmp_path / "remote"))


def listed(store: Folder) -> dict:
    return json.loads((Path(store.address) / NEWEST).read_text())


def test_another_machine_resumes_from_the_newest_copy(store, tmp_path):
    first = Machine(tmp_path / "a", store)
    (first.folder / "best.safetensors").write_bytes(b"best")
    (first.folder / "epoch-0-batch-0-labels.jpg").write_bytes(b"picture")
    first.journal.write_text('{"kind": "metrics"}\n')
    first.journal.with_suffix(".json").write_text('{"run_id": "7"}')
    for iteration in (5, 9):
        first.save(iteration)
        first.settle()
    first.remote.close(finished=False)
    second = Machine(tmp_path / "b", store)
    assert second.remote.bring()
    assert second.states.newest().values == {"at": 9}
    assert (second.folder / "best.safetensors").read_bytes() == b"best"
    assert (second.folder / "epoch-0-batch-0-labels.jpg").read_bytes() == b"picture"
    assert second.journal.read_text() == '{"kind": "metrics"}\n'
    assert second.journal.with_suffix(".json").read_text() == '{"run_id": "7"}', "it goes on in the same MLflow run"
    assert not list((tmp_path / ".state/upload").rglob("*.safetensors")), "no link keeps an old state on the disk"
    # What is listed is all there is: the state before is gone, the weights were sent once.
    names = {entry["object"] for entry in listed(store)["files"].values()} | {NEWEST}
    assert {path.name for path in Path(store.address).iterdir()} == names


def test_a_local_state_that_is_newer_than_the_remote_stays(store, tmp_path):
    first, second = Machine(tmp_path / "a", store), Machine(tmp_path / "b", store)
    first.save(5)
    first.settle()
    second.states.on_saved = lambda path: None
    second.save(6)
    second.journal.write_text("mine")
    assert not second.remote.bring()
    assert newest_iteration(second.folder) == 6 and second.journal.read_text() == "mine"


def test_a_copy_is_due_after_a_while_and_at_the_end(store, tmp_path):
    now = [0.0]
    machine = Machine(tmp_path / "a", store, every=600.0, clock=lambda: now[0])
    machine.save(1)
    machine.settle()
    now[0] = 599.0
    machine.save(2)
    machine.settle()
    assert listed(store)["iteration"] == 1
    now[0] = 600.0
    machine.save(3)
    machine.settle()
    assert listed(store)["iteration"] == 3
    machine.save(4)
    machine.remote.close(finished=True)
    assert listed(store)["iteration"] == 4


class Failing(Folder):
    """Raises the given errors on the next puts, and then works."""

    def __init__(self, address: str, *failures: StoreError):
        super().__init__(address)
        self.failures, self.tries = list(failures), 0

    def put(self, source: Path, name: str) -> None:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        super().put(source, name)


def test_transient_failures_are_retried_and_refusals_are_not(store, tmp_path, caplog):
    caplog.set_level("INFO")
    away = StoreError("no answer", lasting=False)
    remote = Failing(store.address, away, away)
    machine = Machine(tmp_path / "a", remote)
    machine.save(1)
    machine.settle()
    assert remote.tries == 4 and listed(store)["iteration"] == 1 and caplog.records == []
    remote.failures, remote.tries = [StoreError("the credentials may not do that (403)", lasting=True)] * 2, 0
    for iteration in (2, 3):
        machine.save(iteration)
        machine.settle()
    assert remote.tries == 2, "each save asks once"
    assert [record.getMessage() for record in caplog.records] == [
        f"the training state could not be copied to {store.address}: the credentials may not do that (403); "
        "the training continues, the next save tries again"
    ]
    machine.save(4)
    machine.settle()
    assert caplog.messages[1:] == [f"{store.address}: copies of the training state arrive again"]
    assert listed(store)["iteration"] == 4


def test_a_store_that_hangs_blocks_neither_the_saves_nor_the_end(store, tmp_path, monkeypatch, caplog):
    held, reached = threading.Event(), threading.Event()

    class Hanging(Folder):
        def put(self, source: Path, name: str) -> None:
            reached.set()
            held.wait(120)
            super().put(source, name)

    monkeypatch.setattr(module, "LAST_COPY_SECONDS", {True: 0.0, False: 0.0})
    machine = Machine(tmp_path / "a", Hanging(store.address))
    for iteration in range(1, 6):
        machine.save(iteration)
    assert reached.wait(60) and newest_iteration(machine.folder) == 5
    machine.remote.close(finished=True)
    assert "the last state had not arrived when the training ended" in caplog.text
    held.set()


def test_a_copy_that_was_cut_off_or_damaged_is_not_taken(store, tmp_path, caplog):
    first = Machine(tmp_path / "a", store)
    first.save(5)
    first.settle()
    entry = next(value for name, value in listed(store)["files"].items() if name.startswith("state-"))
    (Path(store.address) / entry["object"]).write_bytes(b"half")
    second = Machine(tmp_path / "b", store)
    assert not second.remote.bring() and newest_iteration(second.folder) == -1
    assert f"{entry['object']} is damaged; resuming from the local state" in caplog.text
    (Path(store.address) / NEWEST).write_text('{"iteration": 9, "files": {"../escaped": {"object": "x"}}}')
    third = Machine(tmp_path / "c", store)
    assert not third.remote.bring() and not (third.folder.parent / "escaped").exists()
    (Path(store.address) / NEWEST).write_text("{")
    assert not Machine(tmp_path / "d", store).remote.bring()


def test_a_run_that_never_saw_the_remote_does_not_replace_a_newer_state(store, tmp_path):
    first, second = Machine(tmp_path / "a", store), Machine(tmp_path / "b", store)
    first.save(9)
    first.settle()
    second.save(2)
    second.settle()
    assert listed(store)["iteration"] == 9
    second.remote.forget()
    second.save(3)
    second.settle()
    assert listed(store)["iteration"] == 3, "a start afresh does"


def test_the_destination_of_copies_comes_from_params_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    at = (tmp_path / "v" / KEY, tmp_path / "j.jsonl")
    assert state_remote(Flow(), *at) is None
    assert state_remote(Flow(state_remote="/share/"), *at).store.address == f"/share/v/{KEY}"
    monkeypatch.setenv(SWITCH, "s3://bucket/states")
    assert state_remote(Flow(), *at).store.address == f"s3://bucket/states/v/{KEY}"
    monkeypatch.setenv(SWITCH, "")
    assert state_remote(Flow(state_remote="/share"), *at) is None
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(StoreError):
        open_store(str(blocked)).put(blocked, "name")
