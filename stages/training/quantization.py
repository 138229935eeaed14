"""The run of a quantisation-aware training: from the weights of a finished training to `models/V/quantized`.

States, copies, locks and journal are those of every training (:mod:`stages.training.run`), in folders of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from stages.project.params import Params
from stages.project.provenance import stage_code
from stages.project.workspace import DOCUMENT, dataset_document, model_dir, quantized_dir, training_run
from stages.registry.journal import RunJournal, delivered
from stages.training.outputs import finish_journal, run_document
from stages.training.processes import loader_workers
from stages.training.run import STATES, TrainingRun, journal_of
from stages.training.run_identity import start_scales
from stages.training.state_remote import state_remote
from yolov7.artefact import QUANTIZED
from yolov7.config import Quantization, Train, identity_of
from yolov7.data.index import Index
from yolov7.errors import ConfigError, DataError
from yolov7.files import sha256_file, write_json
from yolov7.train.identity import fingerprint, run_identity
from yolov7.train.loop import Trainer
from yolov7.train.quantization import (
    OWN_PARAMETERS,
    quantization_parameters,
    student_and_teacher,
    write_quantized,
)
from yolov7.train.records import Outcome
from yolov7.train.state import StateFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantizationRun(TrainingRun):
    """The training of one variant's quantised form."""

    stage: ClassVar[str] = "quantize"
    inputs: ClassVar[tuple[str, ...]] = ("data", "weights")
    names: ClassVar[Mapping[str, str]] = OWN_PARAMETERS
    settings: Quantization = field(default_factory=Quantization)
    weights: Path = Path()
    """Of the float network."""
    weights_sha256: str = ""
    network: str = ""

    @classmethod
    def prepared(cls, params: Params, variant: str) -> QuantizationRun:
        """The run that `params.yaml`, the data and the float weights ask for.

        Raises :class:`DataError` without float weights, :class:`ConfigError` for a RepOptimizer without its scales.
        """
        settings, float_train, data = params.quantization_for(variant), params.train_for(variant), dataset_document()
        weights = model_dir(variant) / "train" / "best.safetensors"
        if not weights.is_file():
            raise DataError(f"no such file; run `dvc repro train@{variant}` first", path=weights)
        train = quantization_parameters(float_train, settings, scales=scales_for(variant, float_train, settings))
        start_scales(train)
        sha256 = sha256_file(weights)
        identity = run_identity(variant, train, data, sha256)
        own = identity_of(settings)
        identity["quantization"] = {name: own[name] for name in ("method", "calibration_images", "distillation")}
        folder = STATES / f"{variant}.quantized" / fingerprint(identity)  # no variant has a point in its name
        remote = state_remote(params.flow, folder, journal_of(folder))
        offer = remote.offer if remote else lambda state: None
        states = StateFolder(folder, identity, code=stage_code("quantize") or "", on_saved=offer)
        return cls(
            variant,
            train,
            data,
            states,
            remote,
            params.registry.experiment,
            settings=settings,
            weights=weights,
            weights_sha256=sha256,
            network=train.network,
        )

    @property
    def title(self) -> str:
        """The name of its MLflow run."""
        return f"{self.variant} quantized"

    def _trainer(self, indices: tuple[Index, Index], **how: Any) -> Trainer:
        train_index, val_index = indices
        student, teacher, metadata = student_and_teacher(self.weights, self.settings, train_index, network=self.network)
        return Trainer(
            student,
            train_index=train_index,
            val_index=val_index,
            params=self.train,
            states=self.states,
            metadata=metadata,
            workers=loader_workers(how["device"]),
            teacher=teacher,
            evaluate_first=True,
            **how,
        )

    def _tags(self) -> dict[str, str]:
        run_id = self._float_run().get("run_id")
        return {
            "role": "quantized",
            "float_sha256": self.weights_sha256,
            **({"float_run": str(run_id)} if run_id else {}),
        }

    def _float_run(self) -> dict[str, Any]:
        return delivered(training_run(self.variant, needs={"fingerprint": str}))

    def close(self, outcome: Outcome, journal: RunJournal, device: torch.device) -> None:
        """Send the last copy of the state; write `models/V/quantized` if the training is finished."""
        if self.remote is not None:
            self.remote.close(finished=outcome.finished)
        if not outcome.finished:
            journal.deliver(force=True)
            return
        out = quantized_dir(self.variant)
        figures = write_quantized(out, outcome, self.train, device, title=self.title)
        finish_journal(out, journal, weights=QUANTIZED)
        document = run_document(journal, variant=self.variant, key=self.key, seed=self.train.seed)
        float_run = {"sha256": self.weights_sha256, "run_id": self._float_run().get("run_id")}
        write_json(out / "run.json", {**document, "float": float_run})
        write_json(out / DOCUMENT, {"enabled": True, **figures})


def scales_for(variant: str, train: Train, settings: Quantization) -> tuple[str, str] | None:
    """Path and sha256 of the scales whose masks the training keeps; None for a network without, or without masks.

    Raises :class:`ConfigError` where they are needed and not here.
    """
    if not train.rep_optimizer or train.rep_optimizer == "hyper-search" or not settings.masks:
        return None
    if settings.optimizer.name != "sgd":
        log.info("%s: trained without the masks of RepOptimizer, which %s undoes", variant, settings.optimizer.name)
        return None
    if train.rep_optimizer == "target":
        return train.scales, train.scales_sha256
    first = training_run(variant, needs={"first.key": str, "first.sha256": str})["first"]
    path = STATES / variant / first["key"] / "last.safetensors"
    if not path.is_file():
        raise ConfigError(
            f"{path}: the scales of {variant}'s hyper-search are not on this machine; bring that file, or set "
            f"quantization.per_variant.{variant}.masks to false, to train without its masks on the gradients"
        )
    return path.as_posix(), first["sha256"]
