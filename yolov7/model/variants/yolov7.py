"""The eight YOLOv7 networks, readable beside the tables of the reference sheet: architecture, sections 3 to 6.

Names of stages are those of the tables: B backbone block, D down-sampling, SPP, U up-and-concat, T top-down block, N
down-sampling of the neck, L block of the second path, H and A the convolutions of the lead and the auxiliary head. The
number is the level: P3 is stride 8.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from yolov7.catalogue import Published, Speed
from yolov7.model.blocks import (
    Conv,
    DownC,
    Elan,
    MaxPool,
    MpConv,
    RepConv,
    SpaceToDepth,
    SppCspc,
    StridedConv,
    TinySpp,
    UpConcat,
)
from yolov7.model.heads.anchor import AnchorHead, Level
from yolov7.model.published.yolov7 import LAYOUT
from yolov7.model.scaling import extended, scale, with_down_sampling
from yolov7.model.spec import Network, Stage
from yolov7.model.variants.records import Family, Variant

TINY_ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
P5_ANCHORS = (
    ((12, 16), (19, 36), (40, 28)),
    ((36, 75), (76, 55), (72, 146)),
    ((142, 110), (192, 243), (459, 401)),
)
P6_ANCHORS = (
    ((19, 27), (44, 40), (38, 94)),
    ((96, 68), (86, 152), (180, 137)),
    ((140, 301), (303, 264), (238, 542)),
    ((436, 615), (739, 380), (925, 792)),
)


def tiny_elan(out: int, hidden: int) -> Elan:
    """ELAN of tiny: two 3x3 of full width, all concatenated."""
    return Elan(out, hidden, depth=2, taps="all")


def elan_w(out: int, hidden: int, depth: int = 4) -> Elan:
    """ELAN-W of the necks: 3x3 convolutions half as wide as the 1x1, all concatenated."""
    return Elan(out, hidden, depth, width=hidden // 2, taps="all")


def yolov7_tiny() -> Network:
    """Section 3: LeakyReLU in every conv unit."""
    return Network(
        name="yolov7-tiny",
        activation="leaky-relu",
        backbone=(
            Stage("stem1", Conv(32, 3, 2)),
            Stage("stem2", Conv(64, 3, 2)),
            Stage("B2", tiny_elan(64, hidden=32)),
            Stage("D3", MaxPool()),
            Stage("B3", tiny_elan(128, hidden=64)),
            Stage("D4", MaxPool()),
            Stage("B4", tiny_elan(256, hidden=128)),
            Stage("D5", MaxPool()),
            Stage("B5", tiny_elan(512, hidden=256)),
        ),
        neck=(
            Stage("SPP", TinySpp(256, hidden=256)),
            Stage("U4", UpConcat(128), of=("SPP", "B4")),
            Stage("T4", tiny_elan(128, hidden=64)),
            Stage("U3", UpConcat(64), of=("T4", "B3")),
            Stage("T3", tiny_elan(64, hidden=32)),
            Stage("N4", StridedConv(128), of=("T3", "T4")),
            Stage("L4", tiny_elan(128, hidden=64)),
            Stage("N5", StridedConv(256), of=("L4", "SPP")),
            Stage("L5", tiny_elan(256, hidden=128)),
        ),
        head=AnchorHead(
            anchors=TINY_ANCHORS,
            lead=(
                Level("H3", Conv(128), of="T3"),
                Level("H4", Conv(256), of="L4"),
                Level("H5", Conv(512), of="L5"),
            ),
        ),
    )


def yolov7_tiny_silu() -> Network:
    """Section 3, last line: the same table with SiLU."""
    return replace(yolov7_tiny(), name="yolov7-tiny-silu", activation="silu")


def yolov7() -> Network:
    """Section 4: ELAN-W neck and RepConv before the head."""
    return Network(
        name="yolov7",
        backbone=(
            Stage("stem1", Conv(32)),
            Stage("stem2", Conv(64, 3, 2)),
            Stage("stem3", Conv(64)),
            Stage("D2", Conv(128, 3, 2)),
            Stage("B2", Elan(256, hidden=64, depth=4)),
            Stage("D3", MpConv(128)),
            Stage("B3", Elan(512, hidden=128, depth=4)),
            Stage("D4", MpConv(256)),
            Stage("B4", Elan(1024, hidden=256, depth=4)),
            Stage("D5", MpConv(512)),
            Stage("B5", Elan(1024, hidden=256, depth=4)),
        ),
        neck=(
            Stage("SPP", SppCspc(512)),
            Stage("U4", UpConcat(256), of=("SPP", "B4")),
            Stage("T4", elan_w(256, hidden=256)),
            Stage("U3", UpConcat(128), of=("T4", "B3")),
            Stage("T3", elan_w(128, hidden=128)),
            Stage("N4", MpConv(128), of=("T3", "T4")),
            Stage("L4", elan_w(256, hidden=256)),
            Stage("N5", MpConv(256), of=("L4", "SPP")),
            Stage("L5", elan_w(512, hidden=512)),
        ),
        head=AnchorHead(
            anchors=P5_ANCHORS,
            lead=(
                Level("H3", RepConv(256), of="T3"),
                Level("H4", RepConv(512), of="L4"),
                Level("H5", RepConv(1024), of="L5"),
            ),
        ),
    )


def yolov7_x_light() -> Network:
    """Section 7, base of the scaling study: the wiring of X with four 3x3 per ELAN and the transitions of YOLOv7."""
    v7 = yolov7()
    return replace(
        v7,
        name="yolov7-x-light",
        neck=(
            Stage("SPP", SppCspc(512)),
            Stage("U4", UpConcat(256), of=("SPP", "B4")),
            Stage("T4", Elan(256, hidden=256, depth=4)),
            Stage("U3", UpConcat(128), of=("T4", "B3")),
            Stage("T3", Elan(128, hidden=128, depth=4)),
            Stage("N4", MpConv(128), of=("T3", "T4")),
            Stage("L4", Elan(256, hidden=256, depth=4)),
            Stage("N5", MpConv(256), of=("L4", "SPP")),
            Stage("L5", Elan(512, hidden=512, depth=4)),
        ),
        head=AnchorHead(
            anchors=P5_ANCHORS,
            lead=(
                Level("H3", Conv(256), of="T3"),
                Level("H4", Conv(512), of="L4"),
                Level("H5", Conv(1024), of="L5"),
            ),
        ),
    )


def yolov7_x() -> Network:
    """Section 5: the light base, depth x1.5 and transitions x1.25 (n = 6, stem 40/80/80/160, SPP 640)."""
    return replace(scale(yolov7_x_light(), depth=1.5, width=1.25), name="yolov7-x")


def yolov7_w6() -> Network:
    """Section 6, column W6. Its auxiliary convolutions have E6's widths, as released."""
    return Network(
        name="yolov7-w6",
        image_size=1280,
        backbone=(
            Stage("reorg", SpaceToDepth()),
            Stage("stem", Conv(64)),
            Stage("D2", StridedConv(128)),
            Stage("B2", Elan(128, hidden=64, depth=4)),
            Stage("D3", StridedConv(256)),
            Stage("B3", Elan(256, hidden=128, depth=4)),
            Stage("D4", StridedConv(512)),
            Stage("B4", Elan(512, hidden=256, depth=4)),
            Stage("D5", StridedConv(768)),
            Stage("B5", Elan(768, hidden=384, depth=4)),
            Stage("D6", StridedConv(1024)),
            Stage("B6", Elan(1024, hidden=512, depth=4)),
        ),
        neck=(
            Stage("SPP", SppCspc(512)),
            Stage("U5", UpConcat(384), of=("SPP", "B5")),
            Stage("T5", elan_w(384, hidden=384)),
            Stage("U4", UpConcat(256), of=("T5", "B4")),
            Stage("T4", elan_w(256, hidden=256)),
            Stage("U3", UpConcat(128), of=("T4", "B3")),
            Stage("T3", elan_w(128, hidden=128)),
            Stage("N4", StridedConv(256), of=("T3", "T4")),
            Stage("L4", elan_w(256, hidden=256)),
            Stage("N5", StridedConv(384), of=("L4", "T5")),
            Stage("L5", elan_w(384, hidden=384)),
            Stage("N6", StridedConv(512), of=("L5", "SPP")),
            Stage("L6", elan_w(512, hidden=512)),
        ),
        head=AnchorHead(
            anchors=P6_ANCHORS,
            lead=(
                Level("H3", Conv(256), of="T3"),
                Level("H4", Conv(512), of="L4"),
                Level("H5", Conv(768), of="L5"),
                Level("H6", Conv(1024), of="L6"),
            ),
            auxiliary=p6_auxiliary(320, 640, 960, 1280),
        ),
    )


def p6_auxiliary(*widths: int) -> tuple[Level, ...]:
    """Auxiliary levels P3 to P6 of these widths, read before the second path of the neck."""
    sources = ("T3", "T4", "T5", "SPP")
    return tuple(
        Level(f"A{number}", Conv(width), of=source)
        for number, width, source in zip(range(3, 7), widths, sources, strict=True)
    )


def _p6_scaled(name: str, *, depth: float, width: float, auxiliary: tuple[int, ...]) -> Network:
    scaled = with_down_sampling(scale(yolov7_w6(), depth=depth, width=width), DownC)
    assert isinstance(scaled.head, AnchorHead)
    return replace(scaled, name=name, head=replace(scaled.head, auxiliary=p6_auxiliary(*auxiliary)))


def yolov7_e6() -> Network:
    """Section 6, column E6: W6 with n x1.5 and transitions x1.25, and DownC."""
    return _p6_scaled("yolov7-e6", depth=1.5, width=1.25, auxiliary=(320, 640, 960, 1280))


def yolov7_d6() -> Network:
    """Section 6, column D6: W6 with n x2 and transitions x1.5, and DownC."""
    return _p6_scaled("yolov7-d6", depth=2.0, width=1.5, auxiliary=(384, 768, 1152, 1536))


def yolov7_e6e() -> Network:
    """Section 6, column E6E: E6 with every ELAN a twin. Auxiliary P3 to P5 read the second twin only (partial head)."""
    twin = extended(yolov7_e6())
    assert isinstance(twin.head, AnchorHead)
    auxiliary = tuple(
        replace(level, of=f"{level.of}b") if level.of.startswith("T") else level for level in twin.head.auxiliary
    )
    return replace(twin, name="yolov7-e6e", head=replace(twin.head, auxiliary=auxiliary))


def _paper(
    table: int, ap: float, ap50: float, ap75: float, *, side: int, split: str = "test-dev", fps: int | None = None
) -> Published:
    return Published(
        ap=ap,
        split=split,
        image_size=side,
        ap50=ap50,
        ap75=ap75,
        source=f"YOLOv7 paper, table {table}",
        speed=None if fps is None else Speed(fps=fps, device="V100", precision="fp16", batch_size=1),
    )


FAMILY = Family(
    name="yolov7",
    title="YOLOv7",
    kinds=(AnchorHead, Level),
    layout=LAYOUT,
    variants=MappingProxyType(
        {
            "yolov7-tiny": Variant(
                network=yolov7_tiny,
                recipe="tiny",
                published=_paper(1, 35.2, 52.8, 37.3, side=416, split="val2017"),
            ),
            "yolov7-tiny-silu": Variant(
                network=yolov7_tiny_silu,
                recipe="tiny",
                published=_paper(2, 38.7, 56.7, 41.7, side=640, fps=286),
            ),
            "yolov7": Variant(
                network=yolov7,
                recipe="p5",
                published=_paper(2, 51.4, 69.7, 55.9, side=640, fps=161),
            ),
            "yolov7-x": Variant(
                network=yolov7_x,
                recipe="p5",
                published=_paper(2, 53.1, 71.2, 57.8, side=640, fps=114),
            ),
            "yolov7-w6": Variant(
                network=yolov7_w6,
                recipe="p6",
                published=_paper(2, 54.9, 72.6, 60.1, side=1280, fps=84),
            ),
            "yolov7-e6": Variant(
                network=yolov7_e6,
                recipe="p6",
                published=_paper(2, 56.0, 73.5, 61.2, side=1280, fps=56),
            ),
            "yolov7-d6": Variant(
                network=yolov7_d6,
                recipe="p6",
                published=_paper(2, 56.6, 74.0, 61.8, side=1280, fps=44),
            ),
            "yolov7-e6e": Variant(
                network=yolov7_e6e,
                recipe="p6",
                published=_paper(2, 56.8, 74.4, 62.1, side=1280, fps=36),
            ),
        }
    ),
)
