"""Train one variant on the validated data: `python -m stages.train --variant V`.

The resumable state lies in `.state/train/V/<fingerprint>`, outside DVC's outputs, which DVC deletes before it runs a
stage. The fingerprint covers parameters and data, so the same command after a crash goes on where it stopped, and a
changed parameter starts a run of its own.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from stages.project.command import EXIT_ERROR, EXIT_RESUMABLE, Interrupted, run_stage
from stages.project.folders import replace_folder
from stages.project.locks import file_lock
from stages.project.params import Params
from stages.project.provenance import UNTRACKED, dvc_hash, git_revision, stage_code
from stages.project.redaction import redacted
from stages.project.workspace import INGESTED, dataset_document
from stages.registry.journal import JOURNALS, RunJournal, journal_lock
from stages.training.processes import loader_workers, restarted, start_processes, stop_requests
from stages.training.state_remote import StateRemote, state_remote
from yolov7.config import Train
from yolov7.data.index import Index
from yolov7.device import choose_device, peak_memory_gib
from yolov7.errors import ConfigError, TrainingError, YoloError
from yolov7.files import atomic_path, sha256_file, write_json, write_text
from yolov7.model import ModelMetadata
from yolov7.model.spec_json import network_to_json
from yolov7.model.variants import find_variant
from yolov7.train.distributed import Processes, is_echo, join_processes, local_rank
from yolov7.train.initial import initial_model
from yolov7.train.loop import LOSS_PARTS, Outcome, StepReport, Trainer
from yolov7.train.pictures import AssignedBatch, draw_assignment, draw_labels
from yolov7.train.progress import ProgressDisplay
from yolov7.train.state import StateFolder, differences, prune
from yolov7.train.summary import as_markdown, as_text, facts

log = logging.getLogger(__name__)

STATES = Path(".state/train")
PICTURES = "epoch-*-batch-*.jpg"
INDEX = Path("data/index")
_KEPT_RUNS = 3
# What a run may change without becoming another run.
_NOT_IDENTITY = (
    "checkpoint_minutes",
    "cache",
    "cache_folder",
    "max_bad_batches",
    "max_bad_images",
    "preset",
    "weights_sha256",  # what it names is in the identity itself
)


def main(params: Params, args: argparse.Namespace) -> None:
    """Train, and write `models/V/train`."""
    variant = args.variant
    train = params.train_for(variant)
    weights = start_weights(train)
    document = dataset_document()
    identity = run_identity(variant, train, document, weights)
    key = fingerprint(identity)
    folder = STATES / variant / key
    path = JOURNALS / f"{variant}-{key}.jsonl"
    remote = state_remote(params.flow, variant, key, folder, path)
    states = StateFolder(
        folder, identity, code=stage_code("train") or "", on_saved=remote.offer if remote else lambda state: None
    )

    def forget() -> None:
        with file_lock(folder / "lock"), journal_lock(path):
            _forget(states, remote)
            RunJournal(path, experiment=params.registry.experiment, run_name=variant, fresh=True)

    # Before there are any processes: those that are started again after a failure must not begin anew.
    command = ["-m", "stages.train", "--variant", variant]
    before = forget if args.fresh else lambda: None
    status = start_processes(command, batch_size=train.batch_size, before=before)
    if status is not None:
        sys.exit(status)
    fresh = args.fresh and not restarted()  # under a torchrun of the user's they all have --fresh
    device = choose_device(os.environ.get("YOLOV7_DEVICE", "auto"), local_rank=local_rank())
    with (
        join_processes(device) as processes,
        file_lock(folder / "lock") if processes.main else nullcontext(),
        journal_lock(path) if processes.main else nullcontext(),
    ):
        try:
            fresh = processes.on_main(lambda: _prepare(variant, states, remote, fresh=fresh))
            journal = None
            if processes.main:
                journal = RunJournal(path, experiment=params.registry.experiment, run_name=variant, fresh=fresh)
            outcome = _train(variant, train, states, journal, document, device, processes)
            if remote is not None and processes.main:
                remote.close(finished=outcome.finished)
            if journal is not None and outcome.finished:
                _write_outputs(Path("models") / variant / "train", variant, key, outcome, journal, train, device)
            elif journal is not None:
                journal.deliver(force=True)
            processes.wait()
        except YoloError as error:
            if processes.main or not is_echo(error):
                raise
            sys.exit(EXIT_ERROR)  # the first process prints it
    if not outcome.finished:
        if not processes.main:
            sys.exit(EXIT_RESUMABLE)
        raise Interrupted(f"the state is saved in {folder}; the same command goes on from it")


def _prepare(variant: str, states: StateFolder, remote: StateRemote | None, *, fresh: bool) -> bool:
    """Make the folder of states ready; whether the run begins anew."""
    if not fresh:
        if remote is not None:
            remote.bring()
        refuse_changed(variant, states)  # before pruning: what is refused must not push older runs out
        fresh = _made_by_other_code(variant, states)
    if fresh:
        _forget(states, remote)
    prune(states.folder.parent, _KEPT_RUNS, states.folder)
    return fresh


def _forget(states: StateFolder, remote: StateRemote | None) -> None:
    states.clear()
    if remote is not None:
        remote.forget()


def _made_by_other_code(variant: str, states: StateFolder) -> bool:
    """Whether the run here had come to its end by code that has changed since: its result is then out of date.

    An unfinished one goes on, for a mistake may just have been mended in mid-run; the log says so.
    """
    last = states.last()
    if last is None or not last.code or not states.code or last.code == states.code:
        return False
    if last.finished:
        log.info("%s: the code has changed since this training ended: it is trained anew", variant)
        return True
    log.warning(
        "%s: the code has changed since the last state; the training goes on from there all the same "
        "(`python -m stages.train --variant %s --fresh` starts afresh)",
        variant,
        variant,
    )
    return False


def start_weights(train: Train) -> str | None:
    """The sha256 of `train.weights`, None without any. Raises :class:`ConfigError` where params.yaml names another.

    DVC follows params.yaml and not that file: only a digest there makes other weights another training.
    """
    if not train.weights:
        return None
    path, tracked = Path(train.weights), Path(f"{train.weights}.dvc")
    if not path.is_file():
        how = f"`dvc pull {tracked}` brings it" if tracked.is_file() else "put it there"
        raise ConfigError(f"params.yaml: train.weights: {path}: no such file; {how}")
    found = sha256_file(path)
    if not train.weights_sha256:
        raise ConfigError(
            f"params.yaml: train.weights_sha256: missing beside `weights: {path}`, which DVC does not look into; "
            f"write `weights_sha256: {found}`"
        )
    if found != train.weights_sha256:
        how = f"`dvc checkout {tracked}` or `dvc pull {tracked}`" if tracked.is_file() else "put that file back"
        raise ConfigError(
            f"params.yaml: train.weights_sha256: {train.weights_sha256} is to be trained from, and {path} is {found}; "
            f"write that one to train from this file, or bring the other: {how}"
        )
    return found


def run_identity(variant: str, train: Train, document: dict[str, Any], weights: str | None) -> dict[str, Any]:
    """What makes a run this run: network, parameters that change the result, data and start weights by content."""
    parameters = {k: v for k, v in train.model_dump(mode="json").items() if k not in _NOT_IDENTITY}
    # A network of the user's own may change behind its name.
    network = network_to_json(find_variant(variant, source=train.network)) if train.network else None
    return {"variant": variant, "network": network, "train": parameters, "data": document["sha256"], "weights": weights}


def fingerprint(identity: dict[str, Any]) -> str:
    """Twelve hex digits of the identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def refuse_changed(variant: str, states: StateFolder) -> None:
    """Raise :class:`TrainingError` with the differences if a stopped training would be left behind unnoticed.

    That is one of this variant on the same data whose parameters are no longer those of params.yaml, while there is no
    state with the present ones. New data make a new run without a question.
    """
    if any(states.folder.glob("state-*.safetensors")):
        return
    for folder in sorted(states.folder.parent.glob("*")):
        last = None if folder == states.folder else StateFolder(folder, {}).last()
        old = {} if last is None or last.finished else last.identity
        if old and old.get("data") == states.identity["data"]:
            raise TrainingError(
                f"{folder}: a training of {variant} with other parameters was stopped before its end "
                f"({'; '.join(differences(old, states.identity))}); give the old parameters back to go on with it, "
                f"or start afresh: remove that folder, or run `python -m stages.train --variant {variant} --fresh`"
            )


def _train(
    variant: str,
    train: Train,
    states: StateFolder,
    journal: RunJournal | None,
    document: dict[str, Any],
    device: torch.device,
    processes: Processes,
) -> Outcome:
    if not processes.main:
        logging.getLogger().setLevel(logging.WARNING)  # the rest is told once
    train_index = Index.open(INDEX / "train", image_root=INGESTED / "train/images")
    val_index = Index.open(INDEX / "val", image_root=INGESTED / "val/images")
    model = initial_model(variant, train, train_index)
    metadata = ModelMetadata.of(
        model,
        class_names=tuple(train_index.class_names),
        category_ids=tuple(train_index.category_ids),
        image_size=train.image_size,
        extra={"data_sha256": document["sha256"]},
    )
    if journal is not None and journal.empty:
        journal.parameters({"variant": variant, **train.model_dump(mode="json")})
        journal.tags(
            {
                "variant": variant,
                "fingerprint": states.folder.name,  # by it the run is found where run.json has no id of it yet
                "git_revision": git_revision(),
                "data_sha256": document["sha256"],
                "data_dvc": dvc_hash("data/ingested") or UNTRACKED,
                "data_source": document.get("source", ""),
                "device": device.type,
                "processes": processes.world_size,
            }
        )
    display = ProgressDisplay()
    recorders = () if journal is None else (display, _Recorder(journal, states.folder, metadata.class_names))
    with stop_requests() as stop:
        trainer = Trainer(
            model,
            train_index=train_index,
            val_index=val_index,
            params=train,
            states=states,
            metadata=metadata,
            listeners=recorders,
            device=device,
            workers=loader_workers(device),
            stop=stop,
            processes=processes,
        )
        try:
            return trainer.fit()
        finally:
            display.close()


class _Recorder:
    """Sends what happens to MLflow, and draws batches with their labels and with what learned them."""

    def __init__(self, journal: RunJournal, folder: Path, class_names: tuple[str, ...]):
        self.journal, self.folder, self.class_names = journal, folder, class_names

    def started(self, trainer: Trainer) -> None:
        """A run that had ended (stopped on request, or failed) is running again."""
        if not trainer.position.finished:
            self.journal.reopen()

    def assigned(self, batch: AssignedBatch) -> None:
        for what, draw in (("labels", draw_labels), ("assignment", draw_assignment)):
            path = self.folder / f"{batch.name}-{what}.jpg"
            try:
                draw(batch, self.class_names, path)
            except OSError as error:  # a full disk, as a rule: the next state that is saved says what to do
                log.warning("no picture %s: %s", path.name, error)
            else:
                self.journal.artifact(path, "pictures")

    def stepped(self, report: StepReport) -> None:
        """Steps are summed up by the epoch."""

    def epoch_ended(self, row: dict[str, float], *, best: bool) -> None:
        self.journal.metrics({k: v for k, v in row.items() if k != "epoch"}, step=int(row["epoch"]))

    def note(self, message: str) -> None:
        """Notes are for the person at the terminal."""


def _write_outputs(
    out: Path, variant: str, key: str, outcome: Outcome, journal: RunJournal, train: Train, device: torch.device
) -> None:
    peak = peak_memory_gib(device)
    out.mkdir(parents=True, exist_ok=True)
    for source in (outcome.best, outcome.last):
        with atomic_path(out / source.name) as temporary:
            shutil.copyfile(source, temporary)
    with replace_folder(out / "pictures") as folder:
        for picture in outcome.best.parent.glob(PICTURES):
            shutil.copyfile(picture, folder / picture.name)
    columns = list(dict.fromkeys(name for row in outcome.history for name in row))
    write_text(out / "history.csv", _csv(columns, outcome.history))
    write_text(out / "curves.csv", _csv(["epoch", "curve", "value"], _curves(outcome.history)))
    title = f"{variant}: AP {outcome.best_ap:.3f} on the validation images"
    lines = facts(outcome, epochs=train.epochs, device=device.type, peak_memory_gib=peak, folder=out)
    lines.append(("state", str(outcome.best.parent)))
    write_text(out / "summary.md", as_markdown(title, lines))
    log.info("%s", as_text(title, lines))
    best = outcome.history[outcome.best_epoch]
    figures = {
        "val_AP": outcome.best_ap,
        "val_AP50": best["val/AP50"],
        "best_epoch": outcome.best_epoch + 1,
        "epochs": len(outcome.history),
        "skipped_steps": outcome.skipped_steps,
    }
    write_json(out / "metrics.json", figures)
    if not journal.ended:
        journal.artifact(out / outcome.best.name, "checkpoint")
        journal.artifact(out / "history.csv")
        journal.artifact(out / "summary.md")
        journal.finish()
    run = {
        "run_id": journal.run_id,
        "experiment": journal.experiment,
        "tracking_uri": redacted(os.environ.get("MLFLOW_TRACKING_URI", "local")),
        "variant": variant,
        "fingerprint": key,
        "seed": train.seed,
    }
    write_json(out / "run.json", run)


def _curves(history: list[dict[str, float]]) -> list[dict[str, float | str]]:
    """A row for every epoch of every curve, as `dvc plots` wants them for panels of one figure."""
    names = {**{f"train/{part}": f"{part} loss" for part in LOSS_PARTS}, "learning_rate": "learning rate"}
    return [
        {"epoch": row["epoch"], "curve": shown, "value": row[name]} for name, shown in names.items() for row in history
    ]


def _csv(columns: list[str], rows: Sequence[Mapping[str, float | str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    run_stage(
        main,
        variant=True,
        options=[("--fresh", {"action": "store_true", "help": "start anew even if a state to go on from is there"})],
    )
