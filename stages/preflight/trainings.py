"""What the training of a variant would refuse in its first second, hours after the training of another has begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stages.preflight.findings import Findings
from stages.project.params import Params
from stages.project.workspace import dataset_document
from stages.training.run_identity import start_scales, start_weights
from stages.training.teacher import teacher_file
from yolov7.config import Train
from yolov7.errors import ConfigError, YoloError, nearest
from yolov7.model.trained import training_network
from yolov7.text import printable
from yolov7.train.teacher import load_teacher, require_self_fits
from yolov7.weights.places import place_of
from yolov7.weights.releases import is_published_name, published_files


def check_weights(params: Params, variants: Sequence[str], found: Findings) -> None:
    """The files of `train.weights` and `train.scales` are there, and those that are meant; nothing is fetched here."""

    def look(variant: str, train: Train) -> None:
        start_weights(train, fetch=False)
        if variant not in variants or not is_published_name(train.weights):
            return
        files = published_files(train.weights)
        if not place_of(files, "training").path.is_file():
            address, licence = files.address("training"), files.release.licence
            found.warning(f"train.weights: {train.weights} will be fetched ({address}, {licence})")

    _each(params, variants, look, found)
    _each(params, variants, lambda _, train: start_scales(train), found)


def check_teachers(params: Params, variants: Sequence[str], found: Findings) -> None:
    """The teachers of `train.distill_from` are there, are those that are meant, and fit."""
    try:
        classes = [printable(str(name)) for name in dataset_document(needs={"classes": list})["classes"]]
    except YoloError:
        return  # the training itself says what is wrong there

    def fits(variant: str, train: Train) -> None:
        require_self_fits(variant, train)
        path = teacher_file(train)
        if path is not None:
            load_teacher(train, training_network(variant, train), classes, path)

    _each(params, variants, fits, found)


def check_classes(params: Params, variants: Sequence[str], found: Findings) -> None:
    """The classes of `train.class_weights` are in the ingested data."""
    try:
        classes = [str(name) for name in dataset_document(needs={"classes": list})["classes"]]
    except YoloError:
        return  # the training itself says what is wrong there

    def known(_: str, train: Train) -> None:
        for name in train.class_weights if isinstance(train.class_weights, Mapping) else ():
            if name not in classes:
                raise ConfigError(f"train.class_weights: no class {name!r} in the data{nearest(name, classes)}")

    _each(params, variants, known, found)


def _each(params: Params, variants: Sequence[str], look: Callable[[str, Train], object], found: Findings) -> None:
    """Look at all variants: a fault in one of `variants` is a problem, in another a warning."""
    for variant, train in params.trainings.items():
        try:
            look(variant, train)
        except YoloError as error:
            if variant in variants:
                found.problem(str(error))
            else:
                found.warning(f"the training of {variant} will stop: {error}")
