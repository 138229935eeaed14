"""The teacher of a self-distillation: a finished training of the same network, or of one that fits.

Source: reference sheet: yolov6-training, sections 7.5 to 7.7.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch.nn.modules.batchnorm import _BatchNorm

from yolov7.config import Distillation, Train
from yolov7.errors import ConfigError, YoloError
from yolov7.files import sha256_file
from yolov7.loss import require_fit
from yolov7.model import Detector, load_checkpoint
from yolov7.model.spec import Network
from yolov7.model.trained import training_network
from yolov7.text import listed

log = logging.getLogger(__name__)

SELF = "self"
"""`train.distill_from` for a teacher that is trained first."""
BINS = 17
"""Of a teacher whose student has distributions beside its distances."""


def teacher_parameters(params: Train) -> Train:
    """The parameters of the first training of `distill_from: self`, whose best weights are the teacher.

    It is the same training without a teacher, so one that was made before is not repeated. Where the student has
    distributions beside its distances, the teacher predicts distributions (3.0, N and S).
    """
    head = params.head
    if head.distributions:
        head = head.model_copy(update={"distributions": False, "bins": BINS})
    plain = {"distill_from": "", "distill_sha256": "", "distillation": Distillation()}
    return params.model_copy(update={**plain, "head": head})


def student_parameters(params: Train, path: Path | str, sha256: str) -> Train:
    """The parameters of the second training of `distill_from: self`: its teacher is the file at `path`.

    An anchor-aided branch is for the teacher alone, as published for 3.0.
    """
    head = params.head.model_copy(update={"anchor_aided": False})
    return params.model_copy(update={"distill_from": str(path), "distill_sha256": sha256, "head": head})


def require_self_fits(variant: str, params: Train) -> None:
    """Raise :class:`ConfigError`, before the first of two trainings, for a second one that could not use it."""
    if params.distill_from == SELF:
        teacher = training_network(variant, teacher_parameters(params))
        require_fit(training_network(variant, student_parameters(params, "", "")), teacher, params.distillation)


def load_teacher(
    params: Train, student: Network, class_names: Sequence[str], path: Path | None = None
) -> Detector | None:
    """The teacher of a training of `student` on these classes, frozen; None if `params` asks for none.

    `path` is the file where `params.distill_from` is an address. It is read again for every resume, so its sha256 is
    compared with `params.distill_sha256`. Raises :class:`ConfigError` for a file that is missing or changed, and a
    teacher that the student cannot be compared with.
    """
    if not params.distill_from:
        return None
    file = path or Path(params.distill_from)
    where = f"train.distill_from: {file}"
    _require_file(file, where, params.distill_sha256)
    try:
        teacher, metadata = load_checkpoint(file, network=params.network)
    except YoloError as error:
        raise ConfigError(f"train.distill_from: {error}") from None
    _require_classes(metadata.class_names, class_names, where)
    if metadata.form != "training" and params.distillation.statistics == "batch":
        raise ConfigError(
            f"{where}: holds a {metadata.variant} in {metadata.form} form, which has no batch norms: name the file of "
            "its training (best.safetensors), or set train.distillation.statistics to running"
        )
    try:
        require_fit(student, teacher.spec, params.distillation)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if len(class_names) == 1 and params.distillation.classification:
        log.info("distillation of the classes has no effect: there is one class")
    log.info("teacher: a %s, %s, with the statistics of %s", metadata.variant, file, params.distillation.statistics)
    return frozen(teacher, params.distillation.statistics)


def frozen(teacher: Detector, statistics: Literal["batch", "running"]) -> Detector:
    """The teacher without gradients. With statistics of the batch its norms neither use nor update their buffers."""
    teacher.requires_grad_(False).eval()
    if statistics == "batch":
        for module in teacher.modules():
            if isinstance(module, _BatchNorm):
                module.track_running_stats = False
                module.train()
    return teacher


def _require_file(file: Path, where: str, digest: str) -> None:
    if file.suffix != ".safetensors":
        raise ConfigError(f"{where}: a .safetensors file is expected (`yolov7 import-weights` makes one of a .pt)")
    if not file.is_file():
        raise ConfigError(f"{where}: no such file")
    if digest and (found := sha256_file(file)) != digest:
        raise ConfigError(f"{where}: has the sha256 {found}, train.distill_sha256 is {digest}")


def _require_classes(theirs: Sequence[str], ours: Sequence[str], where: str) -> None:
    """Raise :class:`ConfigError` unless both have the same classes in the same order."""
    if len(theirs) != len(ours):
        raise ConfigError(f"{where}: the teacher has {len(theirs)} classes, the data have {len(ours)}")
    if tuple(theirs) == tuple(ours):
        return
    if set(theirs) == set(ours):
        raise ConfigError(f"{where}: the teacher has the classes of the data in another order")
    absent = [name for name in ours if name not in theirs]
    raise ConfigError(f"{where}: the teacher does not know these classes of the data: {listed(absent)}")
