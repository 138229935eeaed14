"""Quantisation-aware training of a trained network: its parameters, its first weights, its teacher.

Source: reference sheet: yolov6-training, section 11. The trainer is that of every other network; the student is the
quantised form (:mod:`yolov7.model.quantized`), and the teacher the float network, whose norms are folded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolov7.artefact import QUANTIZED
from yolov7.config import AlignedLoss, HeadOptions, Quantization, Train
from yolov7.data.annotated import read_annotated
from yolov7.data.calibration import checked
from yolov7.data.index import Index
from yolov7.errors import ConfigError
from yolov7.files import atomic_path
from yolov7.model import Detector, ModelMetadata, load_checkpoint
from yolov7.model.quantized import calibrate, quantized
from yolov7.predict import Predictor, TorchRuntime
from yolov7.predict.predictor import stack
from yolov7.train.outputs import write_records
from yolov7.train.records import Outcome

OWN_PARAMETERS = {
    "train.epochs": "quantization.epochs",
    "train.batch_size": "quantization.batch_size (0: train.batch_size)",
    "train.augment.close_mosaic_epochs": "quantization.close_mosaic_epochs",
    "train.optimizer": "quantization.optimizer",
    "train.ema": "quantization.ema",
}
"""Parameters of the training -> where they are set. All others are those of the training of the weights."""


def quantization_parameters(train: Train, settings: Quantization, *, scales: tuple[str, str] | None = None) -> Train:
    """The parameters of the training of a network that `train` made.

    `scales` are path and sha256 of the scales of a network of RepOptimizer, whose masks it keeps.
    """
    augment = train.augment.model_copy(update={"close_mosaic_epochs": settings.close_mosaic_epochs})
    loss = train.loss
    if isinstance(loss, AlignedLoss):
        loss = loss.model_copy(update={"atss_epochs": min(settings.atss_epochs, loss.atss_epochs)})
    path, sha256 = scales or ("", "")
    return train.model_copy(
        update={
            "epochs": settings.epochs,
            "first_epochs": 0,
            "batch_size": settings.batch_size or train.batch_size,
            "weights": "",
            "weights_sha256": "",
            "distill_from": "",
            "distill_sha256": "",
            "distillation": settings.distillation,
            "rep_optimizer": "target" if scales else "",
            "scales": path,
            "scales_sha256": sha256,
            "pgi": "",
            "head": HeadOptions(),
            "freeze": (),
            "sync_batchnorm": False,
            "compile": False,
            "evaluate_every": 1,
            "patience": 0,
            "augment": augment,
            "loss": loss,
            "optimizer": settings.optimizer,
            "ema": settings.ema,
        }
    )


def student_and_teacher(
    weights: Path, settings: Quantization, train_index: Index, *, network: str = ""
) -> tuple[Detector, Detector, ModelMetadata]:
    """The quantised form of the network in `weights`, calibrated on training images; its teacher; its description.

    Raises :class:`ModelError` for a file that is missing, damaged or already quantised, and :class:`ConfigError` for
    one of other classes than the data have.
    """
    trained, metadata = load_checkpoint(weights, network=network)
    if metadata.form == "quantized":
        raise ConfigError(f"{weights}: is quantised already; the float network it was made of is expected")
    if metadata.class_names != tuple(train_index.class_names):
        raise ConfigError(f"{weights}: its classes are not those of the data; train the network on these data first")
    teacher = trained.inference()
    student = quantized(teacher)
    images = calibration_images(teacher, metadata, train_index, settings.calibration_images)
    calibrate(student, images, settings.method)
    return student, teacher, replace(metadata, form=student.form)


def write_quantized(out: Path, outcome: Outcome, train: Train, device: torch.device, *, title: str) -> dict[str, Any]:
    """Write the weights, the history and the summary of a finished training; returns its figures."""
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / QUANTIZED) as temporary:
        shutil.copyfile(outcome.best, temporary)
    write_records(out, outcome, train, device, title=title)
    return {
        "val_AP": outcome.best_ap,
        "calibrated_val_AP": outcome.start["val/AP"],
        "best_epoch": outcome.best_epoch + 1,
        "epochs": len(outcome.history),
        "skipped_steps": outcome.skipped_steps,
    }


def calibration_images(model: Detector, metadata: ModelMetadata, index: Index, count: int) -> Iterator[Tensor]:
    """`count` images, evenly spread over the index and fitted as in an evaluation: (1, 3, H, W) in [0, 1].

    Raises :class:`DataError` for images of a single colour; images that are all the same give a warning.
    """
    preparer = Predictor(TorchRuntime(model, metadata))
    positions = torch.linspace(0, len(index) - 1, min(count, len(index))).round().int().unique().tolist()
    prepared = (stack([preparer.prepare(read_annotated(index, position)).image]).numpy() for position in positions)
    for images in checked(prepared, "quantization"):
        yield torch.from_numpy(images).float() / 255
