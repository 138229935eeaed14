"""YOLOv6 as data: release 2.0, which the paper describes, and release 3.0 (reference sheet: yolov6, whose tables these
functions follow).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from yolov7.catalogue import Published, Speed
from yolov7.model.blocks import (
    BiFusion,
    Concat,
    Conv,
    CspStack,
    Mode,
    RepStack,
    SppCsp,
    SppElan,
    TransposedConv,
    block_of,
)
from yolov7.model.heads.efficient import BINS, EfficientHead
from yolov7.model.published.yolov6 import LAYOUT
from yolov7.model.spec import Block, Network, Stage
from yolov7.model.variants.records import Family, Variant


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size of one release. Widths and counts of blocks are the base's times `width` and `depth`."""

    depth: float
    width: float
    expansion: float | None = None
    """Hidden width of the CSPStackRep stages as a share of their width; None: RepBlock stages."""
    mode: Mode = "rep"
    """Its 3x3 blocks."""
    act: str = "relu"
    """Activation of backbone and stages; the neck's other convolutions have ReLU in every size, the head has SiLU."""
    conv_bias: bool = False
    """Plain 3x3 blocks have a bias beside their batch norm, as in release 2.0."""
    bins: int = 0
    """0: distances are numbers."""
    csp_spp: bool = False
    """Spatial pyramid pooling in a cross-stage-partial frame, as N and S of release 3.0."""

    def channels(self, base: int) -> int:
        """The width for a width of the base: a multiple of 8."""
        return math.ceil(base * self.width / 8) * 8

    def blocks(self, base: int) -> int:
        """The number of blocks for a number of the base."""
        return max(round(base * self.depth), 1) if base > 1 else base

    def block(self, out: int, stride: int) -> Block:
        """A single 3x3 block."""
        return block_of(self.mode, out, stride, bias=True if self.conv_bias else None)

    def stage(self, out: int, repeats: int) -> Block:
        """A stage of 3x3 blocks."""
        count, bias = self.blocks(repeats), True if self.conv_bias else None
        if self.expansion is None:
            return RepStack(out, count, mode=self.mode, bias=bias)
        return CspStack(out, int(out * self.expansion), max(count // 2, 1), mode=self.mode, bias=bias)

    def pyramid(self, out: int) -> Block:
        """Spatial pyramid pooling."""
        return SppCsp(out, out // 2) if self.csp_spp else SppElan(out, out // 2)


@dataclass(frozen=True, kw_only=True)
class Base:
    """Widths and counts of a network of depth and width 1. Its levels are P3 and those above."""

    backbone: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Widths of P1 and of each level above."""
    repeats: tuple[int, ...] = (6, 12, 18, 6)
    """Blocks of the stages at P2 and above."""
    neck: tuple[int, ...] = (256, 128, 128, 256, 256, 512)
    """Top-down widths, then of each level above P3 that of the strided convolution and that of the stage."""
    neck_repeats: int = 12
    head: tuple[int, ...] | None = None
    """Widths of the head's branches; None: those of the maps they read."""
    image_size: int = 640

    @property
    def top(self) -> int:
        """Number of the last level."""
        return len(self.backbone)


P5 = Base()
P6 = Base(
    backbone=(64, 128, 256, 512, 768, 1024),
    repeats=(6, 12, 18, 6, 6),
    neck=(512, 256, 128, 128, 256, 256, 512, 512, 1024),
    image_size=1280,
)

TopDown = Callable[[Size, Base], tuple[Stage, ...]]
"""A neck's way from the last level down to P3, with stages T3 and above and reductions R4 and above."""


def efficient(size: Size, name: str, *, base: Base = P5, top_down: TopDown | None = None) -> Network:
    """EfficientRep or CSP backbone, a neck, and the decoupled head."""
    head = None if base.head is None else tuple(map(size.channels, base.head))
    return Network(
        name=name,
        backbone=backbone(size, base),
        neck=(top_down or rep_pan)(size, base) + bottom_up(size, base),
        head=EfficientHead(
            lead=("T3", *(f"L{level}" for level in range(4, base.top + 1))), bins=size.bins, widths=head
        ),
        activation=size.act,
        image_size=base.image_size,
    )


def backbone(size: Size, base: Base) -> tuple[Stage, ...]:
    """A stem, then a strided block and a stage for each level, and spatial pyramid pooling."""
    first, *widths = map(size.channels, base.backbone)
    stages = [Stage("stem", size.block(first, 2))]
    for level, (width, repeats) in enumerate(zip(widths, base.repeats, strict=True), start=2):
        stages += [Stage(f"D{level}", size.block(width, 2)), Stage(f"S{level}", size.stage(width, repeats))]
    return (*stages, Stage("SPP", size.pyramid(widths[-1])))


def rep_pan(size: Size, base: Base) -> tuple[Stage, ...]:
    """Rep-PAN's way down: the reduced map, up-sampled, beside that of the level below."""
    stages = []
    for level, width in _down_from(size, base):
        stages += [
            Stage(f"R{level}", Conv(width, 1, act="relu")),
            Stage(f"U{level - 1}", TransposedConv(width)),
            Stage(f"J{level - 1}", Concat(), of=(f"U{level - 1}", f"S{level - 1}")),
            Stage(f"T{level - 1}", size.stage(width, base.neck_repeats)),
        ]
    return tuple(stages)


def bifusion(size: Size, base: Base) -> tuple[Stage, ...]:
    """The way down of release 3.0: maps of three levels, fused."""
    stages = []
    for level, width in _down_from(size, base):
        stages += [
            Stage(f"R{level}", Conv(width, 1, act="relu")),
            Stage(f"F{level - 1}", BiFusion(width, act="relu"), of=(f"R{level}", f"S{level - 1}", f"S{level - 2}")),
            Stage(f"T{level - 1}", size.stage(width, base.neck_repeats)),
        ]
    return tuple(stages)


def _down_from(size: Size, base: Base) -> list[tuple[int, int]]:
    """Levels from the last to P4, each with the width of the step to the level below."""
    return [(level, size.channels(width)) for level, width in zip(range(base.top, 3, -1), base.neck, strict=False)]


def bottom_up(size: Size, base: Base) -> tuple[Stage, ...]:
    """The way up: a strided convolution beside the reduced map of the level."""
    stages: list[Stage] = []
    widths = [size.channels(width) for width in base.neck[base.top - 3 :]]
    for level in range(4, base.top + 1):
        strided, out = widths[2 * (level - 4)], widths[2 * (level - 4) + 1]
        stages += [
            Stage(f"N{level}", Conv(strided, 3, 2, act="relu"), of=("T3" if level == 4 else f"L{level - 1}",)),
            Stage(f"K{level}", Concat(), of=(f"N{level}", f"R{level}")),
            Stage(f"L{level}", size.stage(out, base.neck_repeats)),
        ]
    return tuple(stages)


TWO: Mapping[str, Size] = MappingProxyType(
    {
        "n": Size(depth=0.33, width=0.25),
        "t": Size(depth=0.33, width=0.375),
        "s": Size(depth=0.33, width=0.50),
        "m": Size(depth=0.60, width=0.75, expansion=2 / 3, bins=BINS),
        "l-relu": Size(depth=1.0, width=1.0, expansion=1 / 2, bins=BINS),
        "l": Size(depth=1.0, width=1.0, expansion=1 / 2, bins=BINS, mode="conv", act="silu", conv_bias=True),
    }
)
"""Sizes of release 2.0."""
THREE: Mapping[str, Size] = MappingProxyType(
    {
        "n": Size(depth=0.33, width=0.25, csp_spp=True),
        "s": Size(depth=0.33, width=0.50, csp_spp=True),
        "m": Size(depth=0.60, width=0.75, expansion=2 / 3, bins=BINS),
        "l": Size(depth=1.0, width=1.0, expansion=1 / 2, bins=BINS, mode="conv", act="silu"),
    }
)
"""Sizes of release 3.0, for P5 and P6."""


def _two(size: str) -> Callable[[], Network]:
    return lambda: efficient(TWO[size], f"yolov6-{size}")


def _three(size: str, base: Base = P5) -> Callable[[], Network]:
    name = f"yolov6v3-{size}" + ("6" if base is P6 else "")
    return lambda: efficient(THREE[size], name, base=base, top_down=bifusion)


def _published(
    ap: float, ap50: float | None = None, fps: int | None = None, *, side: int = 640, source: str
) -> Published:
    speed = None if fps is None else Speed(fps=fps, device="T4", precision="fp16", batch_size=1)
    return Published(ap=ap, split="val2017", image_size=side, ap50=ap50, ap75=None, source=source, speed=speed)


def _release_2(size: str, ap: float, ap50: float, fps: int) -> Variant:
    published = _published(ap, ap50, fps, source="YOLOv6 paper, table 1")
    return Variant(network=_two(size), recipe=f"yolov6-{size}", published=published)


def _release_3(size: str, ap: float, base: Base = P5) -> Variant:
    network = _three(size, base)
    published = _published(ap, side=base.image_size, source="YOLOv6 release 3.0, README")
    return Variant(network=network, recipe=network().name, published=published)


FAMILY = Family(
    name="yolov6",
    title="YOLOv6",
    kinds=(EfficientHead,),
    layout=LAYOUT,
    variants=MappingProxyType(
        {
            "yolov6-n": _release_2("n", 35.9, 51.2, 802),
            "yolov6-t": _release_2("t", 40.3, 56.6, 449),
            "yolov6-s": _release_2("s", 43.5, 60.4, 358),
            "yolov6-m": _release_2("m", 49.5, 66.8, 179),
            "yolov6-l": _release_2("l", 52.5, 70.0, 98),
            "yolov6-l-relu": _release_2("l-relu", 51.7, 69.2, 113),
            "yolov6v3-n": _release_3("n", 37.5),
            "yolov6v3-s": _release_3("s", 45.0),
            "yolov6v3-m": _release_3("m", 50.0),
            "yolov6v3-l": _release_3("l", 52.8),
            "yolov6v3-n6": _release_3("n", 44.9, P6),
            "yolov6v3-s6": _release_3("s", 50.3, P6),
            "yolov6v3-m6": _release_3("m", 55.2, P6),
            "yolov6v3-l6": _release_3("l", 57.2, P6),
        }
    ),
)
