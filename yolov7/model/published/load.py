"""Weights of a published checkpoint into a network of ours (reference sheet: checkpoint-keys, sections 1 to 3)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from yolov7.errors import ModelError
from yolov7.model.published.reader import Archive, Record, TensorRecord, named_tensors
from yolov7.model.published.yolov7 import published_keys
from yolov7.model.spec import Network
from yolov7.model.variants import VARIANTS

if TYPE_CHECKING:
    from yolov7.model.detector import Detector

PublishedForm = Literal["training", "training with auxiliary head", "deploy"]
ANCHOR_TOLERANCE = 1e-2  # anchors in grid units went through half precision


@dataclass(frozen=True)
class ImportReport:
    """What was found in a published file and what became of it."""

    path: str
    variant: str
    form: PublishedForm
    entry: str
    """Which entry of the file was read: `ema`, `model`, or `the file itself` (a bare dictionary)."""
    taken: tuple[str, ...]
    """Tensors of the file that were taken, by their published names."""
    left: tuple[tuple[str, str], ...]
    """Tensors of the file that were left, with the reason."""
    untouched: tuple[str, ...]
    """Tensors of the model that the file does not give, by our names; they keep their values."""
    num_classes: int
    """Class count of the file."""
    class_names: tuple[str, ...]
    """Class names the file tells; empty if it tells none."""

    def __str__(self) -> str:
        lines = [f"{self.variant} in {self.form} form, {self.num_classes} classes: {len(self.taken)} tensors taken"]
        if self.left:
            names = ", ".join(name for name, _ in self.left)
            lines.append(f"{len(self.left)} left in the file ({names})")
        if self.untouched:
            lines.append(f"{len(self.untouched)} of the model kept as they were ({', '.join(self.untouched)})")
        return "; ".join(lines)


@dataclass(frozen=True)
class PublishedWeights:
    """The tensors of a published file in float32, by published name, and what else it tells."""

    path: Path
    entry: str
    tensors: dict[str, Tensor]
    class_names: tuple[str, ...]

    @property
    def form(self) -> PublishedForm:
        """Told by the keys: `ia` are implicit vectors, `m2` auxiliary outputs."""
        parts = {name.split(".")[2] for name in self.tensors if name.count(".") > 2}
        if "m2" in parts:
            return "training with auxiliary head"
        return "training" if "ia" in parts else "deploy"

    @property
    def num_classes(self) -> int:
        """Class count, from the shapes of the detector: 3 * (5 + classes) outputs, and its table of anchors."""
        for name, tensor in self.tensors.items():
            if name.endswith(".m.0.bias") and tensor.ndim == 1:
                anchors = self.tensors.get(f"{name.removesuffix('.m.0.bias')}.anchors")
                per_cell = anchors.shape[1] if anchors is not None and anchors.ndim == 3 else 3
                classes = tensor.numel() // per_cell - 5
                if classes >= 1 and tensor.numel() == per_cell * (5 + classes):
                    return classes
        raise ModelError(
            f"{self.path}: it has no detection layer with anchors, so it is not a checkpoint of the family"
        )


def read_published(path: str | os.PathLike[str]) -> PublishedWeights:
    """Read a published `.pt`: a pickled module or a dictionary of tensors, under `ema` or `model`, or bare.

    Nothing of the file is executed. Raises :class:`ModelError` for a file that is missing, damaged or hostile.
    """
    with Archive(path) as archive:
        entry, value = _weights_of(archive)
        records = {_plain_name(name): record for name, record in named_tensors(value).items()}
        if not records:
            raise ModelError(f"{archive.path}: there are no tensors in {entry}")
        tensors = {name: _values(archive, record, name) for name, record in records.items()}
        return PublishedWeights(archive.path, entry, tensors, _class_names(value))


def _weights_of(archive: Archive) -> tuple[str, Any]:
    """The averaged weights if the file has them, else the model, else the file itself."""
    content = archive.content
    if isinstance(content, dict):
        for entry in ("ema", "model"):
            if isinstance(content.get(entry), dict | Record):
                return entry, content[entry]
    if isinstance(content, dict | Record):
        return "the file itself", content
    raise ModelError(f"{archive.path}: a {type(content).__name__} is pickled in it, not a network or its tensors")


def _plain_name(name: str) -> str:
    """Published names start with `model.<number>.`; a wrapper for several devices puts `module.` before, and the
    tensors of the inner sequence alone lack `model.`.
    """
    name = name.removeprefix("module.")
    return f"model.{name}" if name.split(".", 1)[0].isdigit() else name


def _values(archive: Archive, record: TensorRecord, name: str) -> Tensor:
    tensor = archive.tensor(record, name)
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{archive.path}: {name}: holds values that are not finite")
    return tensor


def _class_names(value: Any) -> tuple[str, ...]:
    names = value.get("names") if isinstance(value, Record) else None
    if isinstance(names, dict):
        names = list(names.values())
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def load_published(model: Detector, path: str | os.PathLike[str]) -> ImportReport:
    """Implementation of `Detector.load_official`; see there."""
    if model.form != "training":
        raise ModelError("published weights go into the training form; call reparameterize() afterwards")
    return fill_published(model, read_published(path))


def fill_published(model: Detector, weights: PublishedWeights) -> ImportReport:
    """Copy into `model` (training form) everything of `weights` that fits.

    Backbone, neck and the head's convolutions must be complete and of the right shapes; the detection layer may be of
    another class count, and then stays as it is. Raises :class:`ModelError`, and leaves `model` as it was, otherwise.
    """
    classes, plain = weights.num_classes, weights.form == "deploy"
    keys = published_keys(model.spec, form="deploy" if plain else "training")
    detector = next(name for name in keys if name.endswith(".anchors")).removesuffix("anchors")
    _check_layout(weights, keys, detector, model.spec)

    ours = model.state_dict()
    values: dict[str, Tensor] = {}
    taken, left = [], []
    for published, tensor in weights.tensors.items():
        name = keys.get(published)
        if name is None:
            left.append((published, "not of this network"))
        elif name == "head.anchors":
            continue  # below, once for both tables
        elif tensor.shape != ours[name].shape:
            reason = f"{tuple(tensor.shape)} does not fit {tuple(ours[name].shape)}"
            if not published.startswith(detector) or classes == model.num_classes:
                raise ModelError(f"{weights.path}: {published}: {reason}, so this is not a {model.variant}")
            left.append((published, reason))
        else:
            values[name] = tensor
            taken.append(published)
    _anchors(weights, detector, model, complete=not left, values=values, taken=taken, left=left)
    if plain:
        values |= _identity_vectors(ours, values)
    model.load_state_dict(values, strict=False)
    untouched = tuple(name for name in ours if name not in values and name != "head.anchors")
    return ImportReport(
        path=str(weights.path),
        variant=model.variant,
        form=weights.form,
        entry=weights.entry,
        taken=tuple(taken),
        left=tuple(left),
        untouched=tuple(name for name in untouched if not name.endswith("num_batches_tracked")),
        num_classes=classes,
        class_names=weights.class_names if len(weights.class_names) == classes else (),
    )


def _check_layout(weights: PublishedWeights, keys: Mapping[str, str], detector: str, spec: Network) -> None:
    """Everything before the detection layer must be there; if not, say which network the file looks like."""
    needed = [name for name in keys if not name.startswith(detector) and not name.endswith("num_batches_tracked")]
    missing = [name for name in needed if name not in weights.tensors]
    number = int(detector.split(".")[1])
    beyond = [name for name in weights.tensors if _layer(name) > number]
    if not missing and not beyond:
        return
    if any(name.endswith(".conv.bias") or ".rbr_reparam." in name for name in weights.tensors):
        raise ModelError(
            f"{weights.path}: its batch norms are folded already, so it can neither be trained nor checked layer by "
            "layer; use the file it was made from"
        )
    others = [name for name in looks_like(weights) if name != spec.name]
    if others:
        raise ModelError(
            f"{weights.path}: looks like {' or '.join(others)} ({weights.form} form), not like {spec.name}"
        )
    what = f"{missing[0]!r} and {len(missing) - 1} more are missing" if missing else f"{beyond[0]!r} is too much"
    raise ModelError(f"{weights.path}: not the layout of {spec.name}, nor of any other published network: {what}")


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else -1


def looks_like(weights: PublishedWeights) -> list[str]:
    """The published variants whose layout is that of `weights`, whatever the class count."""
    form = "deploy" if weights.form == "deploy" else "training"
    present = {name for name in weights.tensors if not name.endswith("num_batches_tracked")}
    found = []
    for name, variant in VARIANTS.items():
        keys = published_keys(variant.network(), form=form)
        expected = {key for key in keys if not key.endswith("num_batches_tracked")}
        if {key for key in expected if "anchor" not in key} <= present <= expected:
            found.append(name)
    return found


def _anchors(
    weights: PublishedWeights,
    detector: str,
    model: Detector,
    *,
    complete: bool,
    values: dict[str, Tensor],
    taken: list[str],
    left: list[tuple[str, str]],
) -> None:
    """The file's anchors belong to its box predictions: they are taken only with these.

    The table in pixels is whole numbers, exact in half precision; the one in grid units may be rounded. Where the file
    agrees with the model up to that rounding the model's own, exact values stay.
    """
    names = [f"{detector}{name}" for name in ("anchor_grid", "anchors") if f"{detector}{name}" in weights.tensors]
    if not names:
        return
    strides = torch.tensor(model.strides, dtype=torch.float32)[:, None, None]
    table = weights.tensors[names[0]]
    if names[0].endswith("anchor_grid"):
        shape_fits = table.numel() == model.anchors.numel()
        table = table.reshape(model.anchors.shape) if shape_fits else table
    else:
        shape_fits = table.shape == model.anchors.shape
        table = table * strides if shape_fits else table
    if not shape_fits or not complete:
        reason = "anchors stay with the box predictions they were trained with" if shape_fits else "shape does not fit"
        left.extend((name, reason) for name in names)
        return
    taken.extend(names)
    if not torch.allclose(table / strides, model.anchors.cpu() / strides, rtol=0.0, atol=ANCHOR_TOLERANCE):
        values["head.anchors"] = table


def _identity_vectors(ours: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In a deploy file the vectors are folded into the outputs; where these were taken: add 0, multiply by 1."""
    vectors = {}
    for name, tensor in ours.items():
        for part, value in (("before", 0.0), ("after", 1.0)):
            prefix, found, _ = name.partition(f".predict.{part}.")
            if found and f"{prefix}.predict.conv.weight" in values:
                vectors[name] = torch.full_like(tensor, value)
    return vectors


def coco_category_ids(class_names: Sequence[str]) -> tuple[int, ...]:
    """Category ids by class number: COCO's own where the names are its 80 classes, else 1, 2, 3, ..."""
    if len(class_names) == 80 and (class_names[0], class_names[79]) == ("person", "toothbrush"):
        unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
        return tuple(number for number in range(1, 91) if number not in unused)
    return tuple(range(1, len(class_names) + 1))
