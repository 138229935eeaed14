"""Tensor names in YOLOv6's published files (reference sheet: yolov6-training, section 12).

Names say what a tensor is for (`backbone.ERBlock_4.1`, `neck.Rep_p3`, `detect.stems.0`), so they follow from the names
of the stages in :mod:`yolov7.model.variants.yolov6`. Release 3.0 wraps every conv unit in a `block`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from types import MappingProxyType
from typing import Final, Literal

from yolov7.errors import ModelError
from yolov7.model import blocks
from yolov7.model.heads.efficient import EfficientHead
from yolov7.model.published.layout import BATCH_NORM
from yolov7.model.spec import Block, Network

Release = Literal["2.0", "3.0"]
Kind = Literal["training", "deploy", "RepOptimizer search", "RepOptimizer target"]


@dataclass(frozen=True)
class Naming:
    """How a file names its tensors."""

    release: Release
    kind: Kind = "training"
    by_level: bool = False
    """The stages of the way up are numbered by their own level, not by the one below (P6)."""

    @property
    def form(self) -> str:
        """In words, for a report."""
        return f"{self.release} {self.kind}" + (", n4 to n6" if self.by_level else "")


FORMS: Final[Mapping[str, Naming]] = MappingProxyType(
    {
        naming.form: naming
        for naming in (
            Naming("2.0"),
            Naming("2.0", "deploy"),
            Naming("2.0", "RepOptimizer search"),
            Naming("2.0", "RepOptimizer target"),
            Naming("3.0"),
            Naming("3.0", "deploy"),
            Naming("3.0", by_level=True),
            Naming("3.0", "deploy", by_level=True),
        )
    }
)
"""Forms of published files by their words."""

HEAD: Final = "detect."

What = Literal["unit", "plain", "number", "rep", "conv", "linear-add"]


@dataclass(frozen=True)
class Part:
    """Tensors with a common prefix: a conv unit, a plain convolution, a number, or a 3x3 block of some mode."""

    theirs: str
    ours: str
    what: What = "unit"
    identity: bool = False
    """The block keeps shape and stride, so it has an identity branch."""
    bias: bool = False
    """The convolution of a plain 3x3 block has a bias."""


@singledispatch
def parts(block: Block, channels: Sequence[int], release: Release) -> list[Part]:
    """Parts of a stage. Raises :class:`ModelError` for a block without a place in the published layout."""
    raise ModelError(f"{type(block).__name__} has no place in the published layout")


@parts.register
def _(block: blocks.Concat, channels: Sequence[int], release: Release) -> list[Part]:
    return []


@parts.register
def _(block: blocks.TransposedConv, channels: Sequence[int], release: Release) -> list[Part]:
    return [Part("upsample_transpose", "", "plain")]


@parts.register
def _(block: blocks.Conv, channels: Sequence[int], release: Release) -> list[Part]:
    return [Part("", "")]


@parts.register
def _(block: blocks.SppElan, channels: Sequence[int], release: Release) -> list[Part]:
    inside = "sppf." if release == "3.0" else ""
    return [Part(f"{inside}cv1", "enter"), Part(f"{inside}cv2", "out")]


@parts.register
def _(block: blocks.SppCsp, channels: Sequence[int], release: Release) -> list[Part]:
    return [Part(f"cspsppf.cv{number}", f"cv{number}") for number in range(1, 8)]


@parts.register
def _(block: blocks.BiFusion, channels: Sequence[int], release: Release) -> list[Part]:
    return [
        Part("cv1", "level"),
        Part("cv2", "below"),
        Part("cv3", "out"),
        Part("upsample.upsample_transpose", "top", "plain"),
        Part("downsample", "down"),
    ]


@parts.register
def _(block: blocks.RepStack, channels: Sequence[int], release: Release) -> list[Part]:
    names = ["conv1", *(f"block.{number}" for number in range(block.count - 1))]
    same = [channels[0] == block.out, *[True] * (block.count - 1)]
    return [
        Part(name, str(number), block.mode, identity, bool(block.bias))
        for number, (name, identity) in enumerate(zip(names, same, strict=True))
    ]


@parts.register
def _(block: blocks.CspStack, channels: Sequence[int], release: Release) -> list[Part]:
    found = [Part("cv1", "enter"), Part("cv2", "bypass"), Part("cv3", "out")]
    names = ["m.conv1", *(f"m.block.{number}" for number in range(block.units - 1))]
    for number, name in enumerate(names):
        found += [
            Part(f"{name}.{theirs}", f"units.{number}.{ours}", block.mode, True, bool(block.bias))
            for theirs, ours in (("conv1", "first"), ("conv2", "second"))
        ]
        found.append(Part(f"{name}.alpha", f"units.{number}.alpha", "number"))
    return found


def _single(block: Block) -> list[Part]:
    """A 3x3 block of the backbone that halves the map."""
    mode = blocks.mode_of(block)
    if mode is None:
        raise ModelError(f"{type(block).__name__} has no place in the published backbone")
    return [Part("", "", mode, bias=bool(getattr(block, "bias", False)))]


PREFIXES: Final[tuple[tuple[str, Callable[[int, int, Naming], str]], ...]] = (
    ("D", lambda level, top, naming: f"backbone.ERBlock_{level}.0"),
    ("S", lambda level, top, naming: f"backbone.ERBlock_{level}.1"),
    ("R", lambda level, top, naming: f"neck.reduce_layer{top - level}"),
    ("U", lambda level, top, naming: f"neck.upsample{top - 1 - level}"),
    ("F", lambda level, top, naming: f"neck.Bifusion{top - 1 - level}"),
    ("J", lambda level, top, naming: ""),
    ("K", lambda level, top, naming: ""),
    ("T", lambda level, top, naming: f"neck.Rep_p{level}"),
    ("N", lambda level, top, naming: f"neck.downsample{6 - level}"),
    ("L", lambda level, top, naming: f"neck.Rep_n{level if naming.by_level else level - 1}"),
)
"""Published names by the letter of our stage, from its level, the last level and the naming."""


def _prefix(name: str, top: int, naming: Naming) -> str:
    """Published name of a stage."""
    if name == "stem":
        return "backbone.stem"
    if name == "SPP":
        return f"backbone.ERBlock_{top}.2"
    prefix = dict(PREFIXES).get(name[:1])
    if prefix is None or not name[1:].isdecimal():
        raise ModelError(f"stage {name!r} has no place in the published layout")
    return prefix(int(name[1:]), top, naming)


def parts_of(network: Network, naming: Naming) -> Iterator[Part]:
    """All parts of the network by their whole names."""
    maps, top = network.maps(), len(network.head.reads("deploy")) + 2
    for wire in network.wires():
        name, block = wire.stage.name, wire.stage.block
        channels = [maps[source].channels for source in wire.inputs]
        prefix, single = _prefix(name, top, naming), name == "stem" or name.startswith("D")
        for part in _single(block) if single else parts(block, channels, naming.release):
            theirs = ".".join(filter(None, (prefix, part.theirs)))
            yield replace(part, theirs=theirs, ours=".".join(filter(None, (wire.part, name, part.ours))))
    yield from _head(network)


def _head(network: Network) -> Iterator[Part]:
    head = network.head
    assert isinstance(head, EfficientHead)
    yield Part(f"{HEAD}proj", "head.numbers", "number")
    yield Part(f"{HEAD}proj_conv.weight", "head.lead_bins.values", "number")
    aided = [("cls_preds_ab", "anchor_classes"), ("reg_preds_ab", "anchor_box")] if head.anchor_aided else []
    if head.distributions:
        aided.append(("reg_preds_dist", "distributions"))
    for level in range(len(head.lead)):
        ours = f"head.lead.{level}"
        yield Part(f"{HEAD}stems.{level}", f"{ours}.stem")
        yield Part(f"{HEAD}cls_convs.{level}", f"{ours}.classes")
        yield Part(f"{HEAD}reg_convs.{level}", f"{ours}.box")
        yield Part(f"{HEAD}cls_preds.{level}", f"{ours}.class_output.conv", "plain")
        yield Part(f"{HEAD}reg_preds.{level}", f"{ours}.box_output.conv", "plain")
        for theirs, mine in aided:
            yield Part(f"{HEAD}{theirs}.{level}", f"head.auxiliary.{level}.{mine}.conv", "plain")


def tensors_of(part: Part, naming: Naming) -> Iterator[tuple[str, str]]:
    """Published name and our name of each tensor; no name of ours for those that are converted."""
    theirs, ours = part.theirs, part.ours
    if part.what == "number":
        yield theirs, ours
    elif part.what == "plain":
        yield from ((f"{theirs}.{name}", f"{ours}.{name}") for name in ("weight", "bias"))
    elif naming.kind == "deploy":
        yield f"{folded_name(part, naming)}.weight", _kernel(part)
        yield f"{folded_name(part, naming)}.bias", f"{ours}.conv.bias" if part.bias else ""
    elif part.what == "rep":
        yield from _unit(f"{theirs}.rbr_dense", f"{ours}.dense")
        yield from _unit(f"{theirs}.rbr_1x1", f"{ours}.pointwise")
        if part.identity:
            yield from _norm(f"{theirs}.rbr_identity", f"{ours}.identity")
    elif part.what == "linear-add":
        yield from ((f"{theirs}.{name}.weight", f"{ours}.{mine}.weight") for name, mine in SCALED)
        if part.identity:
            yield f"{theirs}.scale_identity.weight", f"{ours}.identity_scale.weight"
        yield from _norm(f"{theirs}.bn", f"{ours}.bn")
    else:
        prefix = f"{theirs}{_inner(part, naming)}"
        yield from _unit(prefix, ours)
        if part.bias:
            yield f"{prefix}.conv.bias", f"{ours}.conv.bias"


SCALED: Final = (
    ("conv", "conv"),
    ("scale_conv", "dense_scale"),
    ("conv_1x1", "pointwise"),
    ("scale_1x1", "pointwise_scale"),
)
"""Convolutions and scales of a block of RepOptimizer's search, theirs and ours."""


def _inner(part: Part, naming: Naming) -> str:
    """Wrapper of a conv unit: everywhere in release 3.0, around plain 3x3 blocks in 2.0 but RepOptimizer's."""
    plain = part.what == "conv" and naming.kind != "RepOptimizer target"
    return ".block" if naming.release == "3.0" or plain else ""


def folded_name(part: Part, naming: Naming) -> str:
    """Name of the one convolution of a part in deploy form."""
    return f"{part.theirs}.rbr_reparam" if part.what == "rep" else f"{part.theirs}{_inner(part, naming)}.conv"


def _kernel(part: Part) -> str:
    """Our name of a kernel that a folded one fits."""
    return f"{part.ours}.dense.conv.weight" if part.what == "rep" else f"{part.ours}.conv.weight"


def _unit(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.conv.weight", f"{ours}.conv.weight"
    yield from _norm(f"{theirs}.bn", f"{ours}.bn")


def _norm(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{theirs}.{name}", f"{ours}.{name}") for name in BATCH_NORM)
