"""What the training of a variant would refuse in its first second, hours after the training of another has begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stages.preflight.findings import Findings
from stages.project.params import Params
from stages.project.workspace import dataset_document
from stages.training.run_identity import start_scales, start_weights
from yolov7.config import Train
from yolov7.errors import ConfigError, YoloError, nearest


def check_weights(params: Params, variants: Sequence[str], found: Findings) -> None:
    """The files of `train.weights` and `train.scales` are there, and those that are meant."""
    _each(params, variants, start_weights, found)
    _each(params, variants, start_scales, found)


def check_classes(params: Params, variants: Sequence[str], found: Findings) -> None:
    """The classes of `train.class_weights` are in the ingested data."""
    try:
        classes = [str(name) for name in dataset_document(needs={"classes": list})["classes"]]
    except YoloError:
        return  # the training itself says what is wrong there

    def known(train: Train) -> None:
        for name in train.class_weights if isinstance(train.class_weights, Mapping) else ():
            if name not in classes:
                raise ConfigError(f"train.class_weights: no class {name!r} in the data{nearest(name, classes)}")

    _each(params, variants, known, found)


def _each(params: Params, variants: Sequence[str], look: Callable[[Train], object], found: Findings) -> None:
    """Look at all variants: a fault in one of `variants` is a problem, in another a warning."""
    for variant, train in params.trainings.items():
        try:
            look(train)
        except YoloError as error:
            if variant in variants:
                found.problem(str(error))
            else:
                found.warning(f"the training of {variant} will stop: {error}")
