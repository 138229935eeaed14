"""YOLOv9 and GELAN as data (reference sheet: yolov9, sections 2 to 4, whose tables these functions follow).

A GELAN is the network that is deployed; a YOLOv9 is the same network, trained with an auxiliary branch (PGI).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType

from yolov7.catalogue import Published
from yolov7.model.blocks import AvgConv, AvgDown, Conv, Down, Gelan, SppElan
from yolov7.model.heads.gelan import GelanHead
from yolov7.model.pgi import FIRST, bottom_up, linear_taps, linked_backbone, top_down, with_pgi
from yolov7.model.published.yolov9 import LAYOUT
from yolov7.model.spec import Block, Network, Stage
from yolov7.model.variants.records import Family, Variant


@dataclass(frozen=True, kw_only=True)
class Size:
    """The blocks of one size; see the table of section 2."""

    stem: tuple[int, int]
    """Widths of the two convolutions at P1 and P2."""
    second: Gelan
    """Block at P2."""
    down: Callable[[int], Down]
    downs: tuple[int, int, int]
    """Widths of the down-samplings to P3, P4, P5."""
    backbone: tuple[Gelan, Gelan, Gelan]
    spp: SppElan
    top_down: tuple[Gelan, Gelan]
    """Blocks at P4 and P3."""
    up_downs: tuple[int, int]
    """Widths of the neck's down-samplings to P4 and P5."""
    bottom_up: tuple[Gelan, Gelan]
    """Blocks at P4 and P5."""

    def blocks(self) -> dict[str, Block]:
        """The blocks by stage name."""
        third, fourth, fifth = self.backbone
        return {
            "stem": Conv(self.stem[0], 3, 2),
            "D2": Conv(self.stem[1], 3, 2),
            "B2": self.second,
            "D3": self.down(self.downs[0]),
            "B3": third,
            "D4": self.down(self.downs[1]),
            "B4": fourth,
            "D5": self.down(self.downs[2]),
            "B5": fifth,
            "SPP": self.spp,
            "T4": self.top_down[0],
            "T3": self.top_down[1],
            "N4": self.down(self.up_downs[0]),
            "L4": self.bottom_up[0],
            "N5": self.down(self.up_downs[1]),
            "L5": self.bottom_up[1],
        }


def _csp(out: int, hidden: int, width: int, inner: int) -> Gelan:
    """R of section 2: RepNCSPELAN4."""
    return Gelan(out, hidden, width, inner=inner)


def _even(out: int, inner: int) -> Gelan:
    """R as wide inside as outside, with steps of half that width."""
    return _csp(out, out, out // 2, inner)


def _small(widths: tuple[int, int, int], stem: tuple[int, int], first_up: int) -> Size:
    """T and S: P2 of plain ELAN, three layers in every CSP."""
    third, fourth, fifth = widths
    return Size(
        stem=stem,
        second=Gelan(stem[1], stem[1], stem[1] // 2, block="plain"),
        down=AvgConv,
        downs=widths,
        backbone=(_even(third, 3), _even(fourth, 3), _even(fifth, 3)),
        spp=SppElan(fifth, fifth // 2),
        top_down=(_even(fourth, 3), _even(third, 3)),
        up_downs=(first_up, third),
        bottom_up=(_even(fourth, 3), _even(fifth, 3)),
    )


T = _small((64, 96, 128), (16, 32), 48)
S = _small((128, 192, 256), (32, 64), 96)
M = Size(
    stem=(32, 64),
    second=_csp(128, 128, 64, 1),
    down=AvgConv,
    downs=(240, 360, 480),
    backbone=(_even(240, 1), _even(360, 1), _even(480, 1)),
    spp=SppElan(480, 240),
    top_down=(_even(360, 1), _even(240, 1)),
    up_downs=(184, 240),  # the sheet says 180, its counts and the published tensors say 184
    bottom_up=(_even(360, 1), _even(480, 1)),
)
C = Size(
    stem=(64, 128),
    second=_csp(256, 128, 64, 1),
    down=AvgDown,
    downs=(256, 512, 512),
    backbone=(_csp(512, 256, 128, 1), _even(512, 1), _even(512, 1)),
    spp=SppElan(512, 256),
    top_down=(_even(512, 1), _even(256, 1)),
    up_downs=(256, 512),
    bottom_up=(_even(512, 1), _even(512, 1)),
)
E = Size(
    stem=(64, 128),
    second=_csp(256, 128, 64, 2),
    down=AvgDown,
    downs=(256, 512, 1024),
    backbone=(_csp(512, 256, 128, 2), _csp(1024, 512, 256, 2), _csp(1024, 512, 256, 2)),
    spp=SppElan(512, 256),
    top_down=(_even(512, 2), _even(256, 2)),
    up_downs=(256, 512),
    bottom_up=(_even(512, 2), _csp(512, 1024, 512, 2)),
)

BACKBONE = ("stem", "D2", "B2", "D3", "B3", "D4", "B4", "D5", "B5")
"""Stages of a backbone in order."""
LEADS = ("T3", "L4", "L5")
"""Maps of the lead levels."""


def gelan(size: Size, name: str) -> Network:
    """A backbone, the neck and one head."""
    blocks = size.blocks()
    return Network(
        name=name,
        backbone=tuple(Stage(stage, blocks[stage]) for stage in BACKBONE),
        neck=top_down(blocks, FIRST) + bottom_up(blocks),
        head=GelanHead(lead=LEADS),
    )


def linked(size: Size, name: str, *, taps: tuple[str, ...]) -> Network:
    """Two backbones from the image, both deployed: these maps of the first are added to the second, which the neck
    reads (section 3). The taps are those of consecutive levels up to P5.
    """
    blocks = size.blocks()
    widths = (*size.stem, *size.downs)[-len(taps) :]
    second = linked_backbone(blocks, prefix="S", taps="C", widths=widths)
    return Network(
        name=name,
        backbone=(
            *(Stage(stage, blocks[stage]) for stage in BACKBONE),
            *linear_taps(taps, widths, prefix="C"),
            *second,
        ),
        neck=top_down(blocks, ("SB3", "SB4", "SB5")) + bottom_up(blocks),
        head=GelanHead(lead=LEADS),
    )


def gelan_t() -> Network:
    """Section 2, T."""
    return gelan(T, "gelan-t")


def gelan_s() -> Network:
    """Section 2, S."""
    return gelan(S, "gelan-s")


def gelan_m() -> Network:
    """Section 2, M."""
    return gelan(M, "gelan-m")


def gelan_c() -> Network:
    """Section 2, C."""
    return gelan(C, "gelan-c")


def gelan_e() -> Network:
    """Section 3: two linked backbones with taps from P1 to P5."""
    return linked(E, "gelan-e", taps=("stem", "B2", "B3", "B4", "B5"))


def _trained_with(part: str, network: Network) -> Network:
    return replace(with_pgi(network, part), name=network.name.replace("gelan", "yolov9"))


def yolov9_t() -> Network:
    """Section 4: T with an auxiliary top-down neck."""
    return _trained_with("fpn", gelan_t())


def yolov9_s() -> Network:
    """Section 4: S with an auxiliary top-down neck."""
    return _trained_with("fpn", gelan_s())


def yolov9_m() -> Network:
    """Section 4: M with a second backbone."""
    return _trained_with("icn", gelan_m())


def yolov9_c() -> Network:
    """Section 4: C with a second backbone."""
    return _trained_with("icn", gelan_c())


def yolov9_e() -> Network:
    """Section 4: E with an auxiliary top-down neck on the first backbone."""
    return _trained_with("fpn", gelan_e())


def _variant(
    network: Callable[[], Network], ap: float, ap50: float, ap75: float, source: str = "YOLOv9 paper, table 1"
) -> Variant:
    published = Published(ap=ap, split="val2017", image_size=640, ap50=ap50, ap75=ap75, source=source)
    return Variant(network=network, recipe="yolov9", published=published)


FAMILY = Family(
    name="yolov9",
    title="YOLOv9 and GELAN",
    kinds=(GelanHead,),
    layout=LAYOUT,
    variants=MappingProxyType(
        {
            "gelan-t": Variant(network=gelan_t, recipe="yolov9", published=None),
            "yolov9-t": _variant(yolov9_t, 38.3, 53.1, 41.3, "YOLOv9 release, README"),
            "gelan-s": _variant(gelan_s, 46.7, 63.0, 50.7),
            "yolov9-s": _variant(yolov9_s, 46.8, 63.4, 50.7),
            "gelan-m": _variant(gelan_m, 51.1, 67.9, 55.7),
            "yolov9-m": _variant(yolov9_m, 51.4, 68.1, 56.1),
            "gelan-c": _variant(gelan_c, 52.5, 69.5, 57.3),
            "yolov9-c": _variant(yolov9_c, 53.0, 70.2, 57.8),
            "gelan-e": _variant(gelan_e, 55.0, 71.9, 60.0),
            "yolov9-e": _variant(yolov9_e, 55.6, 72.8, 60.6),
        }
    ),
)
