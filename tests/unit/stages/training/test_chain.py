"""Two trainings in one stage: their own runs, resumed where they were stopped, and never trained twice."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_detector import SIDE
from small_training import same_weights, training_data

import stages.train
import stages.training.chain
import stages.training.run
from stages.project.params import Params
from stages.registry.journal import JOURNALS, RunJournal
from stages.training.chain import Trainings, hand_out
from stages.training.run import STATES, TrainingRun
from stages.training.run_identity import refuse_changed
from stages.training.state_remote import NEWEST, StateRemote, state_remote
from yolov7.config import Train
from yolov7.errors import TrainingError
from yolov7.files import sha256_file
from yolov7.model import load_checkpoint
from yolov7.model.rep_optimizer import scales_of
from yolov7.train.chain import link_of
from yolov7.train.distributed import Processes
from yolov7.train.identity import fingerprint, run_identity
from yolov7.train.state import StateFolder, TrainingState

TRAIN = {
    "cache": "none",
    "image_size": SIDE,
    "batch_size": 2,
    "epochs": 2,
    "first_epochs": 1,
    "evaluate_every": 1,
    "checkpoint_minutes": 0.0,
    "optimizer": {"nominal_batch": 4, "warmup_iterations": 2, "warmup_epochs": 0},
    "augment": {"mosaic": 0.0, "mixup": 0.0, "paste_in": 0.0},
}
CHAINS = {
    "hyper-search": {"rep_optimizer": "chain", "network": "small_rep:small_rep_network"},
    "teacher": {"distill_from": "self", "network": "small_efficient:small_efficient", "preset": "yolov6-n"},
}
"""Parameters by the role of the first training."""
WEIGHTS = {"hyper-search": "last.safetensors", "teacher": "best.safetensors"}
DOCUMENT = {"sha256": "d" * 64}
VARIANT = "chained"
ARGUMENTS = argparse.Namespace(variant=VARIANT, fresh=False)


class Killed(BaseException):
    """Ends a training as a kill does: nothing is caught, nothing is saved."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return training_data(tmp_path_factory.mktemp("images"))


@pytest.fixture
def project(tmp_path: Path, images, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A workspace with data, whose MLflow is away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunJournal, "deliver", lambda self, force=False: False)
    monkeypatch.setenv("YOLOV7_DEVICE", "cpu")
    monkeypatch.setattr(stages.train, "require", lambda *_: None)
    monkeypatch.setattr(stages.training.run, "open_index", lambda split: images)
    monkeypatch.setattr(stages.training.chain, "dataset_document", lambda: DOCUMENT)
    remotes.clear()
    monkeypatch.setattr(stages.training.run, "state_remote", kept)
    return params_with("hyper-search")


remotes: list[StateRemote] = []
"""Of the runs of a test, dead or alive."""


def kept(*arguments: Any) -> StateRemote | None:
    """`state_remote`, which keeps what it returns in `remotes`."""
    remote = state_remote(*arguments)
    remotes.extend([remote] if remote else [])
    return remote


def end_copies() -> None:
    """A real kill ends the threads that copy states; those left here would copy into the folders of the next run."""
    for remote in remotes:
        remote.close(finished=False)
    threads = [thread for thread in threading.enumerate() if thread.name == "state-remote"]
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    remotes.clear()


def params_with(role: str, **train) -> Params:
    values = {"variants": (VARIANT,), "train": {**TRAIN, **CHAINS[role], **train}, "per_variant": {VARIANT: {}}}
    return Params.model_validate({**values, "flow": {"state_remote": "copies", "state_every_minutes": 0.0}})


def trained(params: Params) -> dict:
    stages.train.main(params, ARGUMENTS)
    return json.loads((Path("models") / VARIANT / "train/run.json").read_text())


def folders() -> list[Path]:
    return sorted((STATES / VARIANT).iterdir(), key=lambda path: path.stat().st_mtime)


def killed(*_: object, **__: object) -> None:
    raise Killed


def killed_at(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    """Let the training end, as if killed, when it would save for this time."""
    left, save = saves, StateFolder.save

    def counted(self: StateFolder, *arguments: object) -> Path:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return save(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StateFolder, "save", counted)


@pytest.mark.slow
def test_two_runs_each_with_its_own_records(project, role="hyper-search"):
    record = trained(project)
    first, second = folders()
    assert record["fingerprint"] == second.name
    scales = first / WEIGHTS[role]
    assert record["first"] == {
        "role": role,
        "key": first.name,
        "sha256": sha256_file(scales),
        "run_id": None,  # MLflow is away
    }
    assert bool(scales_of(load_checkpoint(scales)[0])) is (role == "hyper-search")
    model, metadata = load_checkpoint(f"models/{VARIANT}/train/best.safetensors")
    assert not scales_of(model) and metadata.variant == VARIANT
    assert len((first / "history.csv").read_text().splitlines()) == 2
    assert len(Path(f"models/{VARIANT}/train/history.csv").read_text().splitlines()) == 3
    heads = [json.loads((JOURNALS / f"{VARIANT}-{key.name}.json").read_text()) for key in (first, second)]
    assert [head["run_name"] for head in heads] == [f"{VARIANT} {role}", VARIANT]
    events = [json.loads(line) for line in (JOURNALS / f"{VARIANT}-{second.name}.jsonl").read_text().splitlines()]
    tags = {k: v for event in events if event["kind"] == "tags" for k, v in event["values"].items()}
    assert tags["first_fingerprint"] == first.name and tags["first_sha256"] == sha256_file(scales)
    assert events[-1]["kind"] == "end"


@pytest.mark.slow
@pytest.mark.parametrize("role", CHAINS)
def test_a_kill_in_either_half_resumes_there_and_changes_nothing(project, monkeypatch, tmp_path, role):
    project = params_with(role)
    assert trained(project)["first"]["role"] == role
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    for name in ("models", ".state"):
        shutil.move(name, undisturbed / name)
    shutil.rmtree("copies")
    for saves, runs in ((3, 1), (5, 2), (4, 2)):  # an epoch saves five times
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_at(patch, saves)
            stages.train.main(project, ARGUMENTS)
        end_copies()
        assert len([folder for folder in folders() if list(folder.glob("state-*"))]) == runs
    trained(project)
    for name in ("best.safetensors", "last.safetensors"):
        out = Path("models") / VARIANT / "train" / name
        assert same_weights(out, undisturbed / out), name
    assert {path.name for path in folders()} == {path.name for path in (undisturbed / STATES / VARIANT).iterdir()}
    # Another machine has the data and the copies of the states: what is finished is not trained again.
    shutil.rmtree(".state")
    with monkeypatch.context() as patch:
        killed_at(patch, 1)
        trained(project)
        # A change of the second training alone leaves the first one as it is.
        with pytest.raises(Killed):
            stages.train.main(params_with(role, epochs=3), ARGUMENTS)
    assert len(folders()) == 3


@pytest.mark.slow
def test_a_kill_between_the_halves_completes_the_records_of_the_first(project, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(stages.training.run, "write_records", killed)
        stages.train.main(project, ARGUMENTS)
    (first,) = folders()
    assert not (first / "history.csv").exists()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 1)
        stages.train.main(project, ARGUMENTS)
    assert (first / "history.csv").exists()
    (first / "last.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"last\.safetensors: missing, though the hyper-search is finished"):
        stages.train.main(project, ARGUMENTS)
    # To start over is to start both over.
    Trainings(project, VARIANT).start_over()
    assert not list(first.glob("state-*"))


@pytest.mark.slow
def test_changed_code_trains_both_again_once_the_second_is_finished(project, monkeypatch):
    def prepared(code: str) -> bool:
        monkeypatch.setattr(stages.training.run, "stage_code", lambda stage: code)
        first = Trainings(project, VARIANT).first()
        return first.prepare(fresh=False)

    monkeypatch.setattr(stages.training.run, "stage_code", lambda stage: "one")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 8)  # in the second training
        stages.train.main(project, ARGUMENTS)
    assert len(folders()) == 2
    assert prepared("two") is False, "the change may be what the second was stopped for"
    trained(project)  # both under the new code, as far as they were not finished
    assert prepared("two") is False
    assert prepared("three") is True


def pair(params: Params, code: str) -> tuple[TrainingRun, TrainingRun]:
    """The two runs as a finished stage leaves them, with their copies."""
    trainings = Trainings(params, VARIANT)
    first = trainings.first()
    first.folder.mkdir(parents=True)
    (first.folder / "last.safetensors").write_bytes(b"scales")
    second = trainings.second(first, sha256_file(first.folder / "last.safetensors"))
    for run in (first, second):
        save(run, code, finished=True)
        assert run.remote is not None
        run.remote.close(finished=True)
    return first, second


def save(run: TrainingRun, code: str, *, finished: bool) -> None:
    run.states.code = code
    run.states.save(TrainingState({"weight": torch.zeros(1)}, {"position": {"finished": finished}}), 1)


def test_a_first_training_begun_again_for_changed_code_resumes(project, monkeypatch):
    """Until it ends, the weights that lie there are of the one before, whose second is finished."""
    monkeypatch.setattr(stages.training.run, "stage_code", lambda stage: "two")
    first, _ = pair(project, "one")
    assert Trainings(project, VARIANT).first().prepare(fresh=False) is True
    save(first, "two", finished=False)
    assert Trainings(project, VARIANT).first().prepare(fresh=False) is False
    assert first.states.last() is not None


def test_changed_code_trains_both_again_on_another_machine_too(project, monkeypatch):
    pair(project, "one")
    shutil.rmtree(".state")
    monkeypatch.setattr(stages.training.run, "stage_code", lambda stage: "one")
    assert Trainings(project, VARIANT).first().prepare(fresh=False) is False
    shutil.rmtree(".state")
    monkeypatch.setattr(stages.training.run, "stage_code", lambda stage: "two")
    assert Trainings(project, VARIANT).first().prepare(fresh=False) is True


def test_to_start_over_on_another_machine_drops_the_copies_of_both(project):
    runs = pair(project, "one")
    shutil.rmtree(".state")
    assert len(list(Path("copies").rglob(NEWEST))) == 2
    Trainings(project, VARIANT).start_over()
    assert not list(Path("copies").rglob(NEWEST))
    assert [run.states.last() for run in runs] == [None, None]


def test_changed_parameters_are_refused_in_their_own_words(project):
    first, second = pair(project, "one")
    save(second, "one", finished=False)
    other = Trainings(params_with("hyper-search", batch_size=4), VARIANT).first()
    with pytest.raises(TrainingError) as refused:
        refuse_changed(VARIANT, other.states)
    assert "before its end (train.batch_size: was 2, is now 4); restore" in str(refused.value)
    assert str(second.folder) in str(refused.value)
    # A first whose weights were lost is deleted as the error asks; the second that waits for it is no other training.
    shutil.rmtree(first.folder)
    refuse_changed(VARIANT, first.states)


def test_records_of_the_first_that_mlflow_lacks_are_sent_when_it_is_next_needed(project, monkeypatch):
    first, _ = pair(project, "one")
    sent = []
    first.open_journal(fresh=True).finish()
    monkeypatch.setattr(RunJournal, "deliver", lambda self, force=False: sent.append(force))
    assert first.is_recorded() and sent == [True]


def test_the_first_training_of_a_chain_lasts_as_long_as_its_epochs_say():
    link = link_of(Train(rep_optimizer="chain", epochs=9, optimizer={"rate_batch": 32}))
    assert link is not None and (link.role, link.first.epochs, link.first.rep_optimizer) == (
        "hyper-search",
        9,
        "hyper-search",
    )
    assert link_of(Train(rep_optimizer="chain", epochs=9, first_epochs=4)).first.epochs == 4
    second = link.second("scales.safetensors", "0" * 64)
    assert (second.rep_optimizer, second.scales, second.scales_sha256, second.epochs) == (
        "target",
        "scales.safetensors",
        "0" * 64,
        9,
    )
    assert second.optimizer.rate_batch == 0 and link.first.optimizer.rate_batch == 32
    Train.model_validate(second.model_dump() | {"loss": {}})
    with pytest.raises(ValidationError, match="each train twice"):
        Train(rep_optimizer="chain", distill_from="self")
    link = link_of(Train(distill_from="self", epochs=9, first_epochs=4))
    assert link is not None and (link.role, link.first) == ("teacher", Train(epochs=4))
    student = link.second("best.safetensors", "0" * 64)
    assert (student.distill_from, student.distill_sha256, student.epochs) == ("best.safetensors", "0" * 64, 9)
    assert link_of(student) is None
    assert link_of(Train()) is None and link_of(Train(rep_optimizer="hyper-search")) is None


def test_the_digest_of_the_scales_identifies_the_second_run_and_their_place_does_not():
    def key(**values):
        return fingerprint(run_identity("v", Train(rep_optimizer="target", **values), DOCUMENT, None))

    one = key(scales="a", scales_sha256="0" * 64)
    assert one == key(scales="b", scales_sha256="0" * 64)
    assert one != key(scales="a", scales_sha256="1" * 64)


class Other(Processes):
    """A process on another machine, which the first tells what it asks for."""

    rank = 1

    def __init__(self, content: bytes):
        self.content, self.asked = content, 0

    def on_main(self, work):
        self.asked += 1
        return self.content


def test_a_machine_without_the_file_of_the_first_process_gets_it(tmp_path):
    path, content = tmp_path / "run/last.safetensors", b"weights"
    digest = hashlib.sha256(content).hexdigest()
    other = Other(content)
    hand_out(path, digest, other)
    hand_out(path, digest, other)
    assert path.read_bytes() == content and other.asked == 1
    path.write_bytes(b"of an older run")
    hand_out(path, digest, other)
    assert path.read_bytes() == content and other.asked == 2
