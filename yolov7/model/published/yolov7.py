"""YOLOv7's published files: their forms and tensor names (reference sheet: checkpoint-keys, sections 2 to 4).

The published definitions number every layer in one sequence, weightless ones included. The numbers follow from our
stages: each kind of block occupies a fixed run of numbers, in which its conv units have fixed places.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import singledispatch
from typing import Final

import torch
from torch import Tensor

from yolov7.errors import ModelError
from yolov7.model import blocks
from yolov7.model.heads.anchor import AnchorHead
from yolov7.model.published.layout import (
    BATCH_NORM,
    LoadableDetector,
    PublishedKeys,
    PublishedLayout,
    Transfer,
    layer_number,
)
from yolov7.model.spec import Block, Network

TRAINING: Final = "training"
AUXILIARY: Final = "training with auxiliary head"
DEPLOY: Final = "deploy"
FOLDED: Final = "folded"
"""Deploy form with the batch norms folded in: neither trainable nor checkable layer by layer."""

ANCHORS = "head.anchors"
ANCHOR_TOLERANCE = 1e-2  # anchors in grid units went through half precision

# A unit is (place in the run, name inside the layer, name inside our block).
Unit = tuple[int, str, str]


@singledispatch
def layout(block: Block, inputs: int) -> tuple[int, list[Unit]]:
    """Layer numbers that a block with this many input maps occupies, and the places of its conv units among them."""
    raise ModelError(f"{type(block).__name__} has no place in the published layout")


@layout.register
def _(block: blocks.Conv, inputs: int) -> tuple[int, list[Unit]]:
    return 1, [(0, "", "")]


@layout.register
def _(block: blocks.RepConv, inputs: int) -> tuple[int, list[Unit]]:
    return 1, [(0, "rbr_dense", "dense"), (0, "rbr_1x1", "pointwise")]


@layout.register(blocks.SpaceToDepth | blocks.MaxPool | blocks.Sum | blocks.Concat)
def _(block: Block, inputs: int) -> tuple[int, list[Unit]]:
    return 1, []


@layout.register
def _(block: blocks.Elan, inputs: int) -> tuple[int, list[Unit]]:
    if block.rep:
        raise ModelError("an ELAN with RepConv inside has no place in the published layout")
    chain: list[Unit] = [(2 + position, "", f"chain.{position}") for position in range(block.depth)]
    # a, b, chain, concatenation, out
    return block.depth + 4, [(0, "", "a"), (1, "", "b"), *chain, (block.depth + 3, "", "out")]


@layout.register
def _(block: blocks.StridedConv, inputs: int) -> tuple[int, list[Unit]]:
    return 1 + (inputs > 1), [(0, "", "down")]


@layout.register
def _(block: blocks.MpConv, inputs: int) -> tuple[int, list[Unit]]:
    return 5, [(1, "", "pooled"), (2, "", "reduce"), (3, "", "strided")]


@layout.register
def _(block: blocks.DownC, inputs: int) -> tuple[int, list[Unit]]:
    return 1 + (inputs > 1), [(0, name, name) for name in ("cv1", "cv2", "cv3")]


@layout.register
def _(block: blocks.SppCspc, inputs: int) -> tuple[int, list[Unit]]:
    return 1, [(0, f"cv{number}", f"cv{number}") for number in range(1, 8)]


@layout.register
def _(block: blocks.TinySpp, inputs: int) -> tuple[int, list[Unit]]:
    pools = len(block.pools)
    # a, b, pools, concatenation, d, concatenation, out
    return pools + 6, [(0, "", "a"), (1, "", "b"), (pools + 3, "", "d"), (pools + 5, "", "out")]


@layout.register
def _(block: blocks.UpConcat, inputs: int) -> tuple[int, list[Unit]]:
    return 4, [(0, "", "top"), (2, "", "route")]


class Yolov7Layout(PublishedLayout):
    """Flat numbered layers `model.N.*`; the last one holds the outputs, the anchors and the implicit vectors."""

    packages: tuple[str, ...] = ("models",)

    def form(self, names: Collection[str]) -> str | None:
        """From the last layer: `ia` are implicit vectors, `m2` auxiliary outputs; a file without `m` is foreign."""
        if _output_bias(names) is None:
            return None
        if any(name.endswith(".conv.bias") or ".rbr_reparam." in name for name in names):
            return FOLDED
        parts = {name.split(".")[2] for name in names if name.count(".") > 2}
        if "m2" in parts:
            return AUXILIARY
        return TRAINING if "ia" in parts else DEPLOY

    def num_classes(self, tensors: Mapping[str, Tensor]) -> int:
        """From the A anchors of a level and its A * (5 + classes) outputs; A is 3 in a file without anchors."""
        name = _output_bias(tensors)
        if name is not None and tensors[name].ndim == 1:
            outputs, table = tensors[name].numel(), tensors.get(f"{name.removesuffix('.m.0.bias')}.anchors")
            per_cell = table.shape[1] if table is not None and table.ndim == 3 else 3
            if per_cell and outputs % per_cell == 0 and outputs // per_cell > 5:
                return outputs // per_cell - 5
        raise ModelError("it has no detection layer with anchors, so it is not a YOLOv7 checkpoint")

    def keys(self, network: Network, form: str) -> PublishedKeys:
        """Names of the tensors of `network`; of a network without an auxiliary head both training forms are equal."""
        if form == FOLDED:
            raise ModelError(
                "its batch norms are folded already, so it can neither be trained nor checked layer by layer; use the "
                "file it was made from"
            )
        names = published_keys(network, form="deploy" if form == DEPLOY else "training")
        derived = {name for name, ours in names.items() if ours == ANCHORS}
        detector = _detector_prefix(derived)
        return PublishedKeys(
            form=form,
            copied={name: ours for name, ours in names.items() if name not in derived},
            derived=derived,
            outputs={name for name in names if name.startswith(detector)},
        )

    def foreign(self, names: Iterable[str], keys: PublishedKeys) -> list[str]:
        """Layers behind the last one."""
        last = layer_number(_detector_prefix(keys.derived))
        return [name for name in names if layer_number(name) > last]

    def finish(
        self, transfer: Transfer, tensors: Mapping[str, Tensor], model: LoadableDetector, keys: PublishedKeys
    ) -> None:
        """Anchors, and the implicit vectors that a deploy file has folded into its outputs."""
        transfer.kept.add(ANCHORS)
        ours = model.state_dict()
        tables = {name: tensors[name] for name in sorted(keys.derived) if name in tensors}  # `anchor_grid` comes first
        if tables:
            _take_anchors(transfer, tables, _detector_prefix(keys.derived), ours[ANCHORS].cpu(), model.strides)
        if keys.form == DEPLOY:
            transfer.values |= _identity_vectors(ours, transfer.values)


LAYOUT: Final[PublishedLayout] = Yolov7Layout()


def published_keys(network: Network, *, form: str = "training") -> dict[str, str]:
    """Published name -> our name in the training form, in the published order.

    `form` is "training" (with implicit vectors and, where the network has one, the auxiliary head) or "deploy" (plain
    head, nothing collapsed). The anchors appear twice in the published layout: `anchors` in grid units, `anchor_grid`
    in pixels; both stand for our `head.anchors`. Raises :class:`ModelError` for a network that was never published.
    """
    if form not in ("training", "deploy"):
        raise ModelError(f"form: 'training' or 'deploy' is expected, got {form!r}")
    if not isinstance(network.head, AnchorHead):
        raise ModelError(f"{network.name}: its head has no place in the published layout")
    keys: dict[str, str] = {}
    number = 0
    backbone = {stage.name for stage in network.backbone}
    for wire in network.wires():
        part = "backbone" if wire.stage.name in backbone else "neck"
        size, units = layout(wire.stage.block, len(wire.inputs))
        keys.update(_units(number, units, f"{part}.{wire.stage.name}"))
        number += size
    levels = [("lead", network.head.lead)] + ([("auxiliary", network.head.auxiliary)] if form == "training" else [])
    for part, members in levels:
        for position, level in enumerate(members):
            size, units = layout(level.conv, 1)
            keys.update(_units(number, units, f"head.{part}.{position}.tower"))
            number += size
    keys.update(_detector(network.head, f"model.{number}", form))
    return keys


def _units(number: int, units: list[Unit], prefix: str) -> Iterator[tuple[str, str]]:
    for place, inner, ours in units:
        theirs = ".".join(filter(None, (f"model.{number + place}", inner)))
        mine = ".".join(filter(None, (prefix, ours)))
        # RepConv keeps its branches in pairs (convolution, norm); every other unit names the two.
        conv, norm = ("0", "1") if inner.startswith("rbr_") else ("conv", "bn")
        yield f"{theirs}.{conv}.weight", f"{mine}.conv.weight"
        for name in BATCH_NORM:
            yield f"{theirs}.{norm}.{name}", f"{mine}.bn.{name}"


def _detector(head: AnchorHead, prefix: str, form: str) -> Iterator[tuple[str, str]]:
    for name in ("anchors", "anchor_grid"):
        yield f"{prefix}.{name}", "head.anchors"
    outputs = [("m", "lead", head.lead)] + ([("m2", "auxiliary", head.auxiliary)] if form == "training" else [])
    for theirs, ours, members in outputs:
        for level in range(len(members)):
            for kind in ("weight", "bias"):
                yield f"{prefix}.{theirs}.{level}.{kind}", f"head.{ours}.{level}.predict.conv.{kind}"
    if form == "training":
        for theirs, ours in (("ia", "before"), ("im", "after")):
            for level in range(len(head.lead)):
                yield f"{prefix}.{theirs}.{level}.implicit", f"head.lead.{level}.predict.{ours}.0.implicit"


def _output_bias(names: Iterable[str]) -> str | None:
    """`model.N.m.0.bias`, the outputs of the first level."""
    return next((name for name in names if name.endswith(".m.0.bias") and name.count(".") == 4), None)


def _detector_prefix(anchors: Iterable[str]) -> str:
    return next(name.removesuffix("anchors") for name in anchors if name.endswith(".anchors"))


def _take_anchors(
    transfer: Transfer, tables: Mapping[str, Tensor], detector: str, ours: Tensor, strides: tuple[int, ...]
) -> None:
    """The file's anchors belong to its box predictions: they are taken only with these.

    The table in pixels is whole numbers, exact in half precision; the one in grid units may be rounded. Where the file
    agrees with the model up to that rounding the model's own, exact values stay.
    """
    name, table = next(iter(tables.items()))
    in_grid_units = name.endswith(".anchors")
    scale = torch.tensor(strides, dtype=torch.float32)[:, None, None]
    fits = table.shape == ours.shape if in_grid_units else table.numel() == ours.numel()
    if not fits or any(name.startswith(detector) for name, _ in transfer.left):
        reason = "anchors stay with the box predictions they were trained with" if fits else "shape does not fit"
        transfer.left.extend((name, reason) for name in tables)
        return
    transfer.taken.extend(tables)
    pixels = table * scale if in_grid_units else table.reshape(ours.shape)
    if not torch.allclose(pixels / scale, ours / scale, rtol=0.0, atol=ANCHOR_TOLERANCE):
        transfer.values[ANCHORS] = pixels


def _identity_vectors(ours: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add 0 and multiply by 1 where the outputs came from a file that has the vectors folded in."""
    vectors = {}
    for name, tensor in ours.items():
        for part, value in (("before", 0.0), ("after", 1.0)):
            prefix, found, _ = name.partition(f".predict.{part}.")
            if found and f"{prefix}.predict.conv.weight" in values:
                vectors[name] = torch.full_like(tensor, value)
    return vectors
