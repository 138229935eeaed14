"""Which tensor of ours is which of the published layout (reference sheet: checkpoint-keys, sections 2 and 4).

The published definitions number every layer in one sequence, weightless ones included. The numbers follow from our
stages: each kind of block occupies a fixed run of numbers, in which its conv units have fixed places.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

from yolov7.errors import ModelError
from yolov7.model import block_specs as blocks
from yolov7.model.heads.anchor import AnchorHead
from yolov7.model.spec import Block, Network

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

# A unit is (place in the run, name inside the layer, name inside our block).
Unit = tuple[int, str, str]


@singledispatch
def layout(block: Block, inputs: int) -> tuple[int, list[Unit]]:
    """How many numbers a block with this many input maps occupies, and where its conv units are."""
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


def unit_modules(network: Network) -> dict[int, str]:
    """Layer number -> our module, for every layer that is a single conv unit or RepConv (for layer-wise comparison)."""
    found = {}
    for published, ours in published_keys(network).items():
        number, inner = published.split(".", 2)[1:]
        if inner in ("conv.weight", "rbr_dense.0.weight"):
            suffix = ".conv.weight" if inner == "conv.weight" else ".dense.conv.weight"
            found[int(number)] = ours.removesuffix(suffix)
    return found


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
