"""Convert published checkpoints (`.pt`) to files of this project, as `yolov7 import-weights` does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from yolov7.errors import ModelError
from yolov7.model.checkpoint import ModelMetadata, save_checkpoint
from yolov7.model.detector import Detector, Form, create_model
from yolov7.model.published.load import (
    ImportReport,
    coco_category_ids,
    fill_published,
    looks_like,
    read_published,
    recognise,
)

__all__ = ["ImportReport", "identify", "import_official", "save_imported"]


def identify(path: str | os.PathLike[str]) -> list[str]:
    """Variants whose tensors have the names of the file's (tiny and tiny-silu share theirs). Executes nothing."""
    return looks_like(recognise(read_published(path)))


def import_official(
    path: str | os.PathLike[str],
    variant: str,
    output: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    form: Form = "training",
    seed: int = 0,
) -> ImportReport:
    """Convert a published checkpoint to a .safetensors file of this project.

    `num_classes` defaults to the file's; with another one the file starts a fine-tuning, and its outputs are drawn
    from `seed`. `class_names` default to the file's. `form` "deploy" re-parameterises. Nothing in the file is executed.
    Raises :class:`ModelError` if the file is damaged, hostile, or of another variant.
    """
    if form not in ("training", "deploy"):
        raise ModelError(f"form: 'training' or 'deploy' is expected, got {form!r}")
    file = recognise(read_published(path))
    classes = file.num_classes if num_classes is None else num_classes
    if class_names is not None and len(class_names) != classes:
        raise ModelError(f"{classes} class names are expected, got {len(class_names)}")
    model = create_model(variant, classes, seed=seed)
    report = fill_published(model, file)
    save_imported(model, report, output, class_names=class_names or (), form=form)
    return report


def save_imported(
    model: Detector,
    report: ImportReport,
    output: str | os.PathLike[str],
    *,
    class_names: Sequence[str] = (),
    default_names: Sequence[str] = (),
    form: Form = "training",
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write a model that :func:`yolov7.model.published.load.fill_published` has filled, as its `report` says.

    `class_names` are preferred to the file's, `default_names` are for a file without any; `origin` goes into the
    metadata (`extra`). Raises :class:`ModelError` if the file cannot be written, or its outputs are untrained.
    """
    if form == "deploy" and not report.complete:
        raise ModelError(
            "a detection layer for another class count is untrained: import the training form and train it"
        )
    names = tuple(class_names)
    if not names and report.num_classes == model.num_classes:
        names = report.class_names or tuple(default_names)
    names = names or tuple(f"class {number}" for number in range(model.num_classes))
    written = model.reparameterize() if form == "deploy" else model
    imported = {"form": report.form, "entry": report.entry, "left": [name for name, _ in report.left]}
    extra = {"imported": imported, **(origin or {})}
    metadata = ModelMetadata.of(written, class_names=names, category_ids=coco_category_ids(names), extra=extra)
    save_checkpoint(output, written, metadata)
