"""YOLOv9's and GELAN's published files: their forms and tensor names (reference sheet: yolov9-training, section 9).

The published definitions number every layer in one sequence, weightless ones included. A network that reads the image
twice begins with a layer that does nothing. The auxiliary stages follow the neck, or come before it where the backbone
itself has two parts (E). So the numbers of the main part in a training file are not those in a deploy file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import singledispatch
from typing import Final

import torch
from torch import Tensor

from yolov7.errors import ModelError
from yolov7.model import blocks
from yolov7.model.heads.gelan import GelanHead, widths
from yolov7.model.pgi import PARTS, with_pgi
from yolov7.model.published.layout import (
    BATCH_NORM,
    LoadableDetector,
    PublishedKeys,
    PublishedLayout,
    Transfer,
    layer_number,
)
from yolov7.model.spec import IMAGE, Block, Network, Stage

DUAL: Final = "training with auxiliary head"
SINGLE: Final = "one head"
FOLDED: Final = "folded"
"""Batch norms folded in: neither trainable nor checkable layer by layer."""

HEAD = re.compile(r"model\.(\d+)\.(cv[35])\.0\.2\.bias")
"""Outputs of the class branch of the first level, of a file with one head (cv3) or two (cv3 and cv5)."""
OUTPUT = re.compile(r"model\.\d+\.cv[35]\.\d+\.2\.bias")
"""Those of every level."""

Unit = tuple[str, str]
"""Name of a conv unit inside the layer, name inside our block."""


@singledispatch
def units(block: Block) -> list[Unit]:
    """The conv units of a layer. Raises :class:`ModelError` for a block without a place in the published layout."""
    raise ModelError(f"{type(block).__name__} has no place in the published layout")


@units.register
def _(block: blocks.Conv) -> list[Unit]:
    return [("", "")]


@units.register(blocks.Upsample | blocks.Concat | blocks.SliceSum)
def _(block: Block) -> list[Unit]:
    return []


@units.register
def _(block: blocks.AvgConv) -> list[Unit]:
    return [("cv1", "conv")]


@units.register
def _(block: blocks.AvgDown) -> list[Unit]:
    return [("cv1", "strided"), ("cv2", "pooled")]


@units.register
def _(block: blocks.SppElan) -> list[Unit]:
    return [("cv1", "enter"), ("cv5", "out")]


@units.register
def _(block: blocks.Gelan) -> list[Unit]:
    found = [("cv1", "enter")]
    for step in range(block.depth):
        theirs, ours = f"cv{step + 2}", f"chain.{step}"
        if block.block == "csp":
            found += [(f"{theirs}.0.{inner}", f"{ours}.block.{mine}") for inner, mine in _csp(block.inner)]
            theirs += ".1"
        elif block.block != "plain":
            raise ModelError(f"a GELAN block of {block.block!r} has no place in the published layout")
        found.append((theirs, f"{ours}.conv"))
    return [*found, (f"cv{block.depth + 2}", "out")]


def _csp(inner: int) -> Iterator[Unit]:
    yield from (("cv1", "enter"), ("cv2", "bypass"), ("cv3", "out"))
    for number in range(inner):
        theirs, ours = f"m.{number}", f"bottlenecks.{number}"
        yield from (
            (f"{theirs}.cv1.conv1", f"{ours}.rep.dense"),
            (f"{theirs}.cv1.conv2", f"{ours}.rep.pointwise"),
            (f"{theirs}.cv2", f"{ours}.conv"),
        )


class Yolov9Layout(PublishedLayout):
    """Flat numbered layers `model.N.*`; the last one holds the branches of the head, and the values of the bins."""

    packages: tuple[str, ...] = ("models",)

    def form(self, names: Collection[str]) -> str | None:
        """From the head: `cv5` are class branches of a second head, the main one."""
        heads = {match[2] for match in map(HEAD.fullmatch, names) if match}
        if not heads or not any(name.endswith(".dfl.conv.weight") for name in names):
            return None
        if not any(".bn." in name for name in names):
            return FOLDED
        return DUAL if "cv5" in heads else SINGLE

    def num_classes(self, tensors: Mapping[str, Tensor]) -> int:
        """From the outputs of the class branches, which must agree."""
        found = tensors[self._output(tensors)].numel()
        for name, tensor in tensors.items():
            if OUTPUT.fullmatch(name) and tensor.numel() != found:
                raise ModelError(f"{name}: its class branches have {found} and {tensor.numel()} classes; it is damaged")
        return found

    def adapted(self, network: Network, tensors: Mapping[str, Tensor], *, same_classes: bool) -> Network:
        """The network with class branches as wide as the file's: T was released wider than its published figures.

        Their width depends on the class count.
        """
        head = network.head
        name = self._output(tensors).replace(".2.bias", ".0.conv.weight")
        if (
            not same_classes
            or not isinstance(head, GelanHead)
            or name not in tensors
            or tensors[name].ndim != 4
            or not len(tensors[name])
        ):
            return network
        width, channels = tensors[name].shape[:2]
        released = width == widths(channels, self.num_classes(tensors), head.bins)[1]
        class_width = None if released else width
        return (
            network
            if class_width == head.class_width
            else replace(network, head=replace(head, class_width=class_width))
        )

    def whole(self, network: Network, form: str, names: Collection[str]) -> Network:
        """A network with the auxiliary part of a training file, or without one for the file of a GELAN."""
        if not isinstance(network.head, GelanHead):
            return network
        if form != DUAL:
            return with_pgi(network, "none")
        present = set(names)
        held = (trained for trained in _with_branches(network) if present.issuperset(_needed(trained)))
        return next(held, network)

    def keys(self, network: Network, form: str) -> PublishedKeys:
        """Names of the tensors of `network`, which is as :meth:`whole` answers it."""
        if form == FOLDED:
            raise ModelError(
                "its batch norms are folded already, so it can neither be trained nor checked layer by layer; use the "
                "file it was made from"
            )
        head = network.head
        if not isinstance(head, GelanHead):
            raise ModelError(f"{network.name}: its head has no place in the published layout of YOLOv9")
        if bool(head.auxiliary) is not (form == DUAL):
            raise ModelError(f"its tensors are not those of a {network.name} with any part of PGI")
        keys = dict(_keys(network))
        return PublishedKeys(
            form=form,
            copied=keys,
            outputs={name for name, ours in keys.items() if ours.startswith("head.") and ".classes." in ours},
        )

    def foreign(self, names: Iterable[str], keys: PublishedKeys) -> list[str]:
        """Layers behind the last one."""
        last = max(layer_number(name) for name in keys.copied)
        return [name for name in names if layer_number(name) > last]

    def finish(
        self, transfer: Transfer, tensors: Mapping[str, Tensor], model: LoadableDetector, keys: PublishedKeys
    ) -> None:
        """Check the values of the bins, which no training changes."""
        for name, ours in keys.copied.items():
            if ours.endswith("_bins.values") and name in tensors:
                values = tensors[name]
                if not torch.equal(values.flatten(), torch.arange(float(values.numel()))):
                    raise ModelError(f"{name}: 0, 1, ..., {values.numel() - 1} are expected; the file is damaged")

    def _output(self, tensors: Mapping[str, Tensor]) -> str:
        found = {match[2]: name for name in tensors if (match := HEAD.fullmatch(name))}
        name = found.get("cv5", found.get("cv3", ""))
        if not name or tensors[name].ndim != 1 or not tensors[name].numel():
            raise ModelError("it has no class branch, so it is not a YOLOv9 checkpoint")
        return name


LAYOUT: Final[PublishedLayout] = Yolov9Layout()


def _with_branches(network: Network) -> Iterator[Network]:
    """The network with its own auxiliary part, if it has one, then with each that it can have."""
    assert isinstance(network.head, GelanHead)
    if network.head.auxiliary:
        yield network
    for part in PARTS:
        try:
            trained = with_pgi(network, part)
        except ModelError:  # it lacks the stages that the part copies
            continue
        if trained.head.reads("training") != trained.head.reads("deploy"):
            yield trained


def _needed(network: Network) -> set[str]:
    return {name for name, _ in _keys(network) if not name.endswith("num_batches_tracked")}


def _keys(network: Network) -> Iterator[tuple[str, str]]:
    """Published name, our name in the training form."""
    number = int(sum(wire.inputs.count(IMAGE) for wire in network.wires()) > 1)
    inputs = {wire.stage.name: len(wire.inputs) for wire in network.wires()}
    for part, stages in _parts(network):
        for stage in stages:
            plain = isinstance(stage.block, blocks.Conv) and not stage.block.norm
            for theirs, ours in units(stage.block):
                prefix = ".".join(filter(None, (f"model.{number}", theirs)))
                mine = ".".join(filter(None, (part, stage.name, ours)))
                yield from _plain(f"{prefix}.conv", f"{mine}.conv") if plain else _unit(prefix, mine)
            # A down-sampling that appends a lateral map is followed by a concatenation.
            number += 1 + (isinstance(stage.block, blocks.Down) and inputs[stage.name] > 1)
    yield from _head(network, f"model.{number}")


def _parts(network: Network) -> list[tuple[str, tuple[Stage, ...]]]:
    backbone, neck, auxiliary = (
        ("backbone", network.backbone),
        ("neck", network.neck),
        ("auxiliary", network.auxiliary),
    )
    two_parts = any(isinstance(stage.block, blocks.SliceSum) for stage in network.backbone)
    return [backbone, auxiliary, neck] if two_parts else [backbone, neck, auxiliary]


def _head(network: Network, prefix: str) -> Iterator[tuple[str, str]]:
    head = network.head
    assert isinstance(head, GelanHead)
    branches = [("cv2", "cv3", "dfl", "lead", head.lead)]
    if head.auxiliary:
        branches = [
            ("cv2", "cv3", "dfl", "auxiliary", head.auxiliary),
            ("cv4", "cv5", "dfl2", "lead", head.lead),
        ]
    for box, classes, bins, ours, levels in branches:
        for theirs, mine in ((box, "box"), (classes, "classes")):
            for level in range(len(levels)):
                for position in (0, 1):
                    yield from _unit(f"{prefix}.{theirs}.{level}.{position}", f"head.{ours}.{level}.{mine}.{position}")
                yield from _plain(f"{prefix}.{theirs}.{level}.2", f"head.{ours}.{level}.{mine}.2.conv")
        yield f"{prefix}.{bins}.conv.weight", f"head.{ours}_bins.values"


def _unit(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.conv.weight", f"{ours}.conv.weight"
    for name in BATCH_NORM:
        yield f"{theirs}.bn.{name}", f"{ours}.bn.{name}"


def _plain(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for name in ("weight", "bias"):
        yield f"{theirs}.{name}", f"{ours}.{name}"
