"""Load the weights of a published checkpoint into a network of ours, whatever its family."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from yolov7.errors import ModelError
from yolov7.model.published.layout import LoadableDetector, PublishedKeys, PublishedLayout, Transfer
from yolov7.model.published.reader import read_checkpoint
from yolov7.model.spec import Network
from yolov7.model.variants import FAMILIES
from yolov7.text import printable


@dataclass(frozen=True)
class ImportReport:
    """Result of an import: the tensors taken from a published file, and those left."""

    path: str
    variant: str
    form: str
    """As the family names it: `training`, `training with auxiliary head` or `deploy`."""
    entry: str
    """Which entry of the file was read: `ema`, `model`, or `the file itself` (a bare dictionary)."""
    taken: tuple[str, ...]
    """Tensors of the file that were taken, by their published names."""
    left: tuple[tuple[str, str], ...]
    """Tensors of the file that were left, with the reason."""
    untouched: tuple[str, ...]
    """Tensors of the model that the file does not have, by our names; they keep their values."""
    complete: bool
    """True if the file had everything that a form without training-only parts needs."""
    num_classes: int
    """Class count of the file."""
    class_names: tuple[str, ...]
    """Class names in the file; empty if it has none, or not one for each class."""
    ignored_names: int = 0
    """Number of class names in the file where that is not its class count, which the tensors tell."""

    def __str__(self) -> str:
        what = f"{self.variant} in {self.form} form, {self.num_classes} classes"
        source = self.entry if self.entry == "the file itself" else f"`{self.entry}`"
        lines = [f"{what}: {len(self.taken)} tensors taken from {source}"]
        if self.ignored_names:
            lines.append(
                f"its {self.ignored_names} class names are not used, since the tensors have another class count"
            )
        if self.left:
            names = ", ".join(name for name, _ in self.left)
            lines.append(f"{len(self.left)} left in the file ({names})")
        if self.untouched:
            lines.append(f"{len(self.untouched)} of the model kept as they were ({', '.join(self.untouched)})")
        return "; ".join(lines)


@dataclass(frozen=True)
class PublishedWeights:
    """The tensors of a published file in float32, by published name, and its metadata."""

    path: Path
    entry: str
    tensors: dict[str, Tensor]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Recognised:
    """A published file whose family is known."""

    weights: PublishedWeights
    layout: PublishedLayout
    variants: Mapping[str, Callable[[], Network]]
    """Of that family."""
    form: str
    num_classes: int


def families() -> Iterator[tuple[str, PublishedLayout, Mapping[str, Callable[[], Network]]]]:
    """Name, layout and variants of each family that has published files."""
    for family in FAMILIES:
        if family.layout is not None:
            yield family.name, family.layout, {name: record.network for name, record in family.variants.items()}


def read_published(path: str | os.PathLike[str]) -> PublishedWeights:
    """Read a published `.pt`: a pickled module or a dictionary of tensors, under `ema` or `model`, or bare.

    Nothing in the file is executed. Raises :class:`ModelError` for a file that is missing, damaged or hostile.
    """
    packages = {package for _, layout, _ in families() for package in layout.packages}
    found = read_checkpoint(path, sorted(packages))
    tensors = {_plain_name(name): tensor for name, tensor in found.tensors.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.float()
            if not bool(tensors[name].isfinite().all()):
                raise ModelError(f"{found.path}: {name}: holds values that are not finite")
    return PublishedWeights(found.path, found.entry, tensors, tuple(map(printable, found.class_names)))


def _plain_name(name: str) -> str:
    """A wrapper for several devices prefixes each name with `module.`; a bare sequence of layers has no `model.`."""
    name = name.removeprefix("module.")
    return f"model.{name}" if name.split(".", 1)[0].isdigit() else name


def recognise(weights: PublishedWeights) -> Recognised:
    """Ask each family whether the file is one of its own. Raises :class:`ModelError` if none knows it."""
    for _, layout, variants in families():
        form = layout.form(weights.tensors)
        if form is not None:
            try:
                return Recognised(weights, layout, variants, form, layout.num_classes(weights.tensors))
            except ModelError as error:
                raise ModelError(f"{weights.path}: {error}") from None
    known = ", ".join(name for name, _, _ in families())
    raise ModelError(f"{weights.path}: it has no detection layer of a family known here ({known})")


def looks_like(file: Recognised) -> list[str]:
    """The published variants whose tensors have exactly the names of the file's, and blocks as wide as its own,
    whatever the class count.
    """
    tensors = file.weights.tensors
    present = {name for name in tensors if not _is_counter(name)}
    found = []
    for name, network in file.variants.items():
        try:
            held = file.layout.whole(network(), file.form, tensors)
            keys = file.layout.keys(held, file.form)
        except ModelError:  # this variant was not published in this form
            continue
        copied = {key for key in keys.copied if not _is_counter(key)}
        if copied <= present <= copied.union(keys.derived) and _as_wide(held, keys, tensors):
            found.append(name)
    return found


def _as_wide(network: Network, keys: PublishedKeys, tensors: Mapping[str, Tensor]) -> bool:
    """True if the last convolutions of the blocks are as wide as the network's maps: sizes may share all names."""
    maps = network.maps()
    for published, ours in keys.copied.items():
        stage, _, inner = ours.partition(".")[2].partition(".")
        last = stage in maps and inner in ("conv.weight", "out.conv.weight")
        if last and published in tensors and tensors[published].shape[:1] != (maps[stage].channels,):
            return False
    return True


def _is_counter(name: str) -> bool:
    """Batches a norm has seen: absent from old files, and nothing depends on them."""
    return name.endswith("num_batches_tracked")


def load_published(model: LoadableDetector, path: str | os.PathLike[str]) -> ImportReport:
    """Implementation of `Detector.load_official`; see there."""
    if model.form != "training":
        raise ModelError("published weights go into the training form; call reparameterize() afterwards")
    return fill_published(model, recognise(read_published(path)))


def fill_published(model: LoadableDetector, file: Recognised) -> ImportReport:
    """Copy into `model` (training form) every tensor of `file` that fits.

    All must be there and of the right shapes, except those whose shapes depend on the class count: the file may be of
    another one, and the model keeps its own then. Raises :class:`ModelError`, and leaves `model` as it was, otherwise.
    """
    weights = file.weights
    same_classes = file.num_classes == model.num_classes
    try:
        network = file.layout.adapted(model.spec, weights.tensors, same_classes=same_classes)
        held_network = file.layout.whole(network, file.form, weights.tensors)
        keys = file.layout.keys(held_network, file.form)
    except ModelError as error:
        raise ModelError(f"{weights.path}: {error}{_likeness(file, model.variant)}") from None
    _check_names(file, keys, model)
    same_branch = (held_network.auxiliary, held_network.head) == (network.auxiliary, network.head)
    transfer = _copied(file, keys, model, model.state_of(network), same_branch=same_branch)
    try:
        file.layout.finish(transfer, weights.tensors, model, keys)
    except ModelError as error:
        raise ModelError(f"{weights.path}: {error}") from None
    before = model.state_dict()
    model.adapt(network)
    own = {name: before[name] for name, value in model.state_dict().items() if _fits(before.get(name), value)}
    model.load_state_dict(own | transfer.values, strict=False)
    given, held = transfer.values.keys() | transfer.kept, model.state_dict()
    misfit = 0 if len(weights.class_names) == file.num_classes else len(weights.class_names)
    return ImportReport(
        path=str(weights.path),
        variant=model.variant,
        form=file.form,
        entry=weights.entry,
        taken=tuple(transfer.taken),
        left=tuple(transfer.left),
        untouched=tuple(name for name in held if name not in given and not _is_counter(name)),
        complete=all(ours in given or _is_counter(ours) for ours in keys.copied.values() if ours in held),
        num_classes=file.num_classes,
        class_names=() if misfit else weights.class_names,
        ignored_names=misfit,
    )


def _fits(tensor: Tensor | None, place: Tensor) -> bool:
    return tensor is not None and tensor.shape == place.shape


def _copied(
    file: Recognised, keys: PublishedKeys, model: LoadableDetector, ours: Mapping[str, Tensor], *, same_branch: bool
) -> Transfer:
    """The tensors that are among `ours` under another name. Without the `same_branch` in training, those of the
    auxiliary part that do not fit are left.
    """
    transfer = Transfer()
    for published, tensor in file.weights.tensors.items():
        name = keys.copied.get(published)
        if name is None:
            if published not in keys:
                transfer.left.append((published, "not of this network"))
        elif name not in ours:
            transfer.left.append((published, "of an auxiliary part that this network is trained without"))
        elif tensor.shape == ours[name].shape:
            if ours[name].is_floating_point() and not tensor.is_floating_point():
                raise ModelError(
                    f"{file.weights.path}: {published}: floating-point values are expected, got {tensor.dtype}; the "
                    "file is damaged"
                )
            transfer.values[name] = tensor
            transfer.taken.append(published)
        else:
            reason = f"{tuple(tensor.shape)} does not fit {tuple(ours[name].shape)}"
            auxiliary = name.startswith(("auxiliary.", "head.auxiliary"))
            if auxiliary and not same_branch:
                transfer.left.append((published, f"of another auxiliary part: {reason}"))
                continue
            if published not in keys.outputs or file.num_classes == model.num_classes:
                raise ModelError(f"{file.weights.path}: {published}: {reason}, {_misfit(file, model.variant)}")
            transfer.left.append((published, reason))
    return transfer


def _likeness(file: Recognised, variant: str) -> str:
    """Which other network the file looks like, to be appended to an error."""
    others = [name for name in looks_like(file) if name != variant]
    return f"; the file looks like {' or '.join(others)} ({file.form} form)" if others else ""


def _misfit(file: Recognised, variant: str) -> str:
    """Why a tensor may have another shape: the file is of another network, or of this one and damaged."""
    if variant in looks_like(file):
        return f"although the rest is that of a {variant}: the file is damaged, or its network was changed"
    return f"so this is not a {variant}{_likeness(file, variant)}"


def _check_names(file: Recognised, keys: PublishedKeys, model: LoadableDetector) -> None:
    """Everything must be there, but the outputs for another class count; if not, say which network it looks like."""
    tensors, path, variant = file.weights.tensors, file.weights.path, model.variant
    spared = keys.outputs if file.num_classes != model.num_classes else ()
    needed = [name for name in keys.copied if name not in spared and not _is_counter(name)]
    missing = [name for name in needed if name not in tensors]
    foreign = file.layout.foreign(tensors, keys)
    if not missing and not foreign:
        return
    others = [name for name in looks_like(file) if name != variant]
    if others:
        raise ModelError(f"{path}: looks like {' or '.join(others)} ({file.form} form), not like {variant}")
    what = f"{missing[0]!r} and {len(missing) - 1} more are missing" if missing else f"{foreign[0]!r} is too much"
    raise ModelError(f"{path}: not the layout of {variant}, nor of any other published network: {what}")


def coco_category_ids(class_names: Sequence[str]) -> tuple[int, ...]:
    """Category ids by class number: COCO's own for its 80 classes, else 1, 2, 3, ..."""
    if len(class_names) == 80 and (class_names[0], class_names[79]) == ("person", "toothbrush"):
        unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
        return tuple(number for number in range(1, 91) if number not in unused)
    return tuple(range(1, len(class_names) + 1))
