"""`train_detector`: a data set in, a folder with weights, curves and pictures out."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from yolov7.config import Train, merge, train_parameters
from yolov7.data.workers import default_workers
from yolov7.device import choose_device
from yolov7.errors import ConfigError, TrainingError, nearest
from yolov7.files import sha256_file
from yolov7.model import ModelMetadata, load_checkpoint
from yolov7.model.variants import find_variant, recipe_of
from yolov7.runs.data import DataSet, OpenedData, open_data
from yolov7.runs.folder import RunFolder
from yolov7.runs.trained import TrainedDetector
from yolov7.text import listed
from yolov7.train.chain import Link, link_of
from yolov7.train.identity import run_identity
from yolov7.train.initial import initial_model
from yolov7.train.loop import Trainer
from yolov7.train.outputs import write_outputs
from yolov7.train.pictures import AssignedBatch, draw_batch
from yolov7.train.progress import ProgressDisplay
from yolov7.train.records import Listener, Outcome, StartReport, StepReport
from yolov7.train.state import StateFolder, differences
from yolov7.train.stopping import StopRequests, stop_requests
from yolov7.train.teacher import SELF, load_teacher
from yolov7.weights.fetch import origin_of, published_file
from yolov7.weights.releases import RELEASED, is_published_name

log = logging.getLogger(__name__)

WHERE = "train"
"""Begins the names of training parameters in messages."""


def train_detector(
    variant: str | os.PathLike[str],
    *,
    data: DataSet,
    out: str | os.PathLike[str],
    device: str = "auto",
    workers: int | None = None,
    resume: bool = True,
    data_options: Mapping[str, Any] | None = None,
    drop_bad_boxes: bool = False,
    progress: bool = True,
    **options: Any,
) -> TrainedDetector:
    """Train a detector on `data` and leave everything in the folder `out`; the same call resumes a stopped training.

    `variant` is a name of :func:`yolov7.list_variants`, MODULE:FUNCTION of your own network, or a `.safetensors` file
    to start from. `data` is a YOLO `data.yaml`, a folder in the layout of COCO, YOLO or Pascal VOC, or for COCO
    `{"train": {"images": FOLDER, "annotations": JSON}, "val": ...}`. It must have validation images: they choose the
    best weights. `data_options` are those of its reader (:mod:`yolov7.data.sources.parameters`); `drop_bad_boxes`
    leaves out boxes that would be refused. `options` are the training parameters (:class:`yolov7.config.Train`),
    nested groups as dictionaries: `epochs=50, image_size=320, augment={"mixup": 0.0}`; those left out are the variant's
    published recipe. `weights` may name a variant, whose published file is fetched. `workers` load data (default: none
    on a CPU, up to 8 for an accelerator). With `resume=False` the states and results in the folder are deleted before
    the first batch. Neither `workers` nor stops change the result.

    Raises :class:`ConfigError` for unknown or impossible options, naming the nearest known one; :class:`DataError` for
    data that is missing or wrong, with file and record; :class:`ModelError` for an unknown variant or weights that do
    not fit; :class:`TrainingError` for a folder with another training, or one that cannot continue. SIGINT and SIGTERM
    save the state first; then they act as they would have without this call (KeyboardInterrupt for SIGINT).
    """
    name, params = parameters_of(variant, options, Path(out))
    chosen = choose_device(device)
    if workers is not None and workers < 0:
        raise ConfigError(f"workers: a number from 0 on is expected, got {workers}")
    folder = RunFolder(Path(out))
    for key in ("weights", "distill_from", "scales"):
        file = getattr(params, key)
        if file and folder.writes_over(Path(file)):
            raise ConfigError(f"{WHERE}.{key}: {file} is written over by this training; train into another folder")
    digest = _start_digest(params)
    with folder.lock():
        opened = open_data(
            data, folder.data, splits=("train", "val"), options=data_options, drop_bad_boxes=drop_bad_boxes
        )
        how = {"given": _as_json(data), "options": dict(data_options or {}), "drop_bad_boxes": drop_bad_boxes}
        run = _Run(name, params, opened, how, folder, chosen, workers, progress, fresh=not resume)
        with _signals() as stop:
            outcome = run.fit(digest, stop)
            if not outcome.finished:
                log.warning("the state is saved in %s; the same call or command resumes it", folder.path)
        if stop.signals and not outcome.finished:
            _hand_on(stop.signals[0])
        if not outcome.finished:
            raise TrainingError(f"{folder.path}: stopped before the end; the same call resumes it")
        write_outputs(folder.path, outcome, params, chosen, variant=name)
        folder.draw_curves(outcome.history)
    return TrainedDetector(folder.path)


def parameters_of(variant: str | os.PathLike[str], options: Mapping[str, Any], out: Path) -> tuple[str, Train]:
    """The network's name and its parameters, read from the arguments of :func:`train_detector`."""
    variant = os.fspath(variant)
    values = {name: os.fspath(one) if isinstance(one, os.PathLike) else one for name, one in options.items()}
    if variant.endswith(".safetensors"):
        if values.get("weights"):
            raise ConfigError(
                f"{variant} is a file to start from, and so is `weights`: name a variant beside one of them"
            )
        _, metadata = load_checkpoint(variant, network=values.get("network") or None)
        values["weights"], variant = variant, metadata.variant
    elif variant.endswith((".pt", ".pth")):
        raise ConfigError(
            f"{variant}: does not say which network it holds; name the variant, and this file as `weights`"
        )
    elif ":" in variant:
        values = merge({"network": variant}, values)
        variant = find_variant(variant).name
    if not values.get("network"):
        find_variant(variant)  # an unknown name is told before anything else
    values.setdefault("cache_folder", str(out / "cache"))
    recipe = "p5" if values.get("network") else recipe_of(variant)
    return variant, train_parameters(values, where=WHERE, recipe=recipe)


def _start_digest(params: Train) -> str | None:
    """The sha256 of the start weights, which are fetched if they are a published file that is not here."""
    if is_published_name(params.weights):
        found: str | None = published_file(params.weights, "training").sha256
    else:
        if params.weights and not Path(params.weights).exists() and (hint := nearest(params.weights, list(RELEASED))):
            raise ConfigError(f"{WHERE}.weights: {params.weights}: no such file, and not the name of a variant{hint}")
        found = _digest(params.weights, f"{WHERE}.weights")
    if params.weights_sha256 and found != params.weights_sha256:
        raise ConfigError(
            f"{WHERE}.weights_sha256: {params.weights_sha256} is expected, but {params.weights} has {found}"
        )
    return found


def _digest(file: str, where: str) -> str | None:
    if not file:
        return None
    if not Path(file).is_file():
        raise ConfigError(f"{where}: {file}: no such file")
    return sha256_file(file)


@dataclass(frozen=True)
class _Run:
    """One call of :func:`train_detector`."""

    variant: str
    params: Train
    data: OpenedData
    how: Mapping[str, Any]
    """The data as the caller named them, with the options of reading."""
    folder: RunFolder
    device: torch.device
    workers: int | None
    progress: bool
    fresh: bool
    """Start over, whatever the folder holds."""

    def record(self) -> None:
        """Write what the run is made of, before it begins."""
        index = self.data.indices["train"]
        self.folder.write_record(
            {
                "variant": self.variant,
                "train": self.params.model_dump(mode="json"),
                "data": {
                    **self.how,
                    "source": self.data.source,
                    "sha256": self.data.sha256,
                    "images": {split: len(one) for split, one in self.data.indices.items()},
                    "classes": list(index.class_names),
                },
                "device": str(self.device),
                "torch": torch.__version__,
            }
        )

    def fit(self, digest: str | None, stop: StopRequests) -> Outcome:
        """The training, or two in a row."""
        link = link_of(self.params)
        if link is None:
            return self._train(self.params, self.folder.states, digest, stop, fresh=self.fresh)
        if not self.fresh:
            self._refuse_unlinked(link, digest)
        first = self._train(link.first, self.folder.first, digest, stop, fresh=self.fresh)
        if not first.finished or stop():
            return replace(first, finished=False)
        file = self.folder.first / link.weights
        if not file.is_file():
            raise TrainingError(f"{file}: missing, though the {link.role} is finished; delete its folder to repeat it")
        second = link.second(str(file), sha256_file(file))
        return self._train(second, self.folder.states, digest, stop)

    def _refuse_unlinked(self, link: Link, start: str | None) -> None:
        """Raise :class:`TrainingError` before the first training, not after it, if the second will be refused."""
        last = StateFolder(self.folder.states, {}).last()
        if last is None:
            return
        # What the first leaves is not known yet: it is taken to be what the second there began with.
        before = last.identity.get("train", {})
        digest = before.get("distill_sha256") or before.get("scales_sha256") or "not trained yet"
        second = link.second(str(self.folder.first / link.weights), digest)
        identity = run_identity(self.variant, second, {"sha256": self.data.sha256}, start)
        _refuse_other(StateFolder(self.folder.states, identity))

    def _train(
        self, params: Train, states_folder: Path, digest: str | None, stop: StopRequests, *, fresh: bool = False
    ) -> Outcome:
        train, val = self.data.indices["train"], self.data.indices["val"]
        if params.distill_from and params.distill_from != SELF:
            found = _digest(params.distill_from, f"{WHERE}.distill_from")
            params = params.model_copy(update={"distill_sha256": found})
        if params.scales:
            params = params.model_copy(update={"scales_sha256": _digest(params.scales, f"{WHERE}.scales")})
        identity = run_identity(self.variant, params, {"sha256": self.data.sha256}, digest)
        states = StateFolder(states_folder, identity)
        if not fresh:
            _refuse_other(states)
            if states_folder == self.folder.states and states.last() is None and self.folder.best.exists():
                raise TrainingError(
                    f"{self.folder.path}: holds the results of a training, without the states to resume it; train into "
                    "another folder, or start over with --fresh (resume=False)"
                )
        model = initial_model(self.variant, params, train)
        metadata = ModelMetadata.of(
            model,
            class_names=tuple(train.class_names),
            category_ids=tuple(train.category_ids),
            image_size=params.image_size,
            extra={"data_sha256": self.data.sha256, **origin_of(params.weights, network=params.network)},
        )
        teacher = load_teacher(params, model.spec, metadata.class_names)
        # What has failed so far, or was refused, has left the training that is there, and its record.
        if fresh:
            self.folder.start_over()
        if states_folder == self.folder.states or not self.folder.has_record():
            self.record()
        display = ProgressDisplay()
        listeners: list[Listener] = [display] if self.progress else []
        if states_folder == self.folder.states:
            listeners.append(_Pictures(states_folder, metadata.class_names))
        trainer = Trainer(
            model,
            train_index=train,
            val_index=val,
            params=params,
            states=states,
            metadata=metadata,
            listeners=listeners,
            device=self.device,
            workers=default_workers(self.device) if self.workers is None else self.workers,
            stop=stop,
            teacher=teacher,
        )
        try:
            return trainer.fit()
        finally:
            display.close()


def _as_json(data: DataSet) -> Any:
    """Where the data are, as JSON: absolute, so that a run folder may be opened from anywhere."""
    if not isinstance(data, Mapping):
        return str(Path(data).resolve())
    return {split: {key: str(Path(path).resolve()) for key, path in one.items()} for split, one in data.items()}


def _refuse_other(states: StateFolder) -> None:
    """Raise :class:`TrainingError` if the folder holds another training, before anything is built."""
    last = states.last()
    changes = [] if last is None else differences(last.identity, states.identity)
    if changes:
        raise TrainingError(
            f"{states.folder.parent}: holds a training with other parameters, data or weights "
            f"({listed([_short(change) for change in changes], joint='; ')}): repeat those to resume it, train into "
            "another folder, or start over with --fresh (resume=False)"
        )


def _short(change: str) -> str:
    return change if len(change) <= 160 else change[:157] + "..."


class _Pictures:
    """A listener that draws the first batches with their labels and assignment."""

    def __init__(self, folder: Path, class_names: tuple[str, ...]):
        self.folder, self.class_names = folder, class_names

    def started(self, report: StartReport) -> None:
        """Nothing to draw."""

    def assigned(self, batch: AssignedBatch) -> None:
        """Draw a batch."""
        draw_batch(batch, self.class_names, self.folder)

    def stepped(self, report: StepReport) -> None:
        """Nothing to draw."""

    def epoch_ended(self, row: dict[str, float], *, best: bool) -> None:
        """Nothing to draw."""

    def note(self, message: str) -> None:
        """Nothing to draw."""


def _signals() -> Any:
    """Requests to stop by signals; none outside of the main thread, which alone may handle them."""
    if threading.current_thread() is threading.main_thread():
        return stop_requests()
    return nullcontext(StopRequests(lambda: False))


def _hand_on(number: int) -> None:
    """Let a signal do what it would have done without the training: KeyboardInterrupt, or the caller's handler."""
    signal.raise_signal(number)
