"""Programmable gradient information: auxiliary stages and levels for training (YOLOv9 paper, section 4.1; table 4).

Each part reads the blocks of the first backbone, `B3`, `B4` and `B5`, and is made of copies of the network's own
stages, found by name. Which part each size was released with: :mod:`yolov7.model.variants.yolov9`. FPN of S, T and E
and ICN of M and C are as released; every other pair is our reading of the paper, which publishes no definition
(reference sheet: yolov9-training, section 11).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from yolov7.errors import ModelError, nearest
from yolov7.model.blocks import Concat, Conv, SliceSum, Upsample
from yolov7.model.heads.gelan import GelanHead
from yolov7.model.spec import IMAGE, Block, Network, Stage

Blocks = Mapping[str, Block]
Part = tuple[tuple[Stage, ...], tuple[str, ...]]
"""Auxiliary stages, and the maps of the auxiliary levels."""

FIRST = ("B3", "B4", "B5")
"""Blocks of the first backbone."""


def with_pgi(network: Network, part: str) -> Network:
    """The network trained with this part of PGI: `none`, `pfh`, `fpn`, `pan` or `icn`; another part is replaced.

    Lead-head-guided ICN is `icn` with `auxiliary: lead-guided` in the loss. Raises :class:`ModelError` for an unknown
    part, and for a network without the stages of a GELAN.
    """
    if part not in PARTS:
        raise ModelError(f"unknown part of PGI {part!r}{nearest(part, list(PARTS))}")
    head = network.head
    if not isinstance(head, GelanHead):
        raise ModelError(f"{network.name}: PGI needs the head of YOLOv9 (GelanHead), not {type(head).__name__}")
    blocks = {stage.name: stage.block for stage in (*network.backbone, *network.neck)}
    try:
        stages, levels = PARTS[part](blocks)
    except KeyError as error:
        raise ModelError(f"{network.name}: PGI part {part!r} copies stage {error}, which it lacks") from None
    return replace(network, auxiliary=stages, head=replace(head, auxiliary=levels))


def part_of(network: Network) -> str | None:
    """Name of the part of PGI that a network has in training form; None for any other network."""
    for part in PARTS:
        try:
            if with_pgi(network, part) == network:
                return part
        except ModelError:
            continue
    return None


def linear_taps(sources: Sequence[str], widths: Sequence[int], *, prefix: str) -> tuple[Stage, ...]:
    """CBLinear: a plain 1x1 on each map, as wide as all levels up to its own together."""
    return tuple(
        Stage(f"{prefix}{number}", Conv(sum(widths[: number + 1]), 1, norm=False, act="none"), of=(source,))
        for number, source in enumerate(sources)
    )


def fused(name: str, running: str, level: int, widths: Sequence[int], *, prefix: str) -> Stage:
    """CBFuse: the running map of a level and the slices meant for it of the taps of this level and those above."""
    taps = range(level, len(widths))
    slices = tuple((sum(widths[:level]), widths[level]) for _ in taps)
    return Stage(name, SliceSum(slices), of=(*(f"{prefix}{number}" for number in taps), running))


def linked_backbone(blocks: Blocks, *, prefix: str, taps: str, widths: Sequence[int]) -> tuple[Stage, ...]:
    """A second backbone from the image, with the taps `taps` of the first added after each of its last halvings.

    `widths` are those of the levels that are tapped, the last of which is P5.
    """
    first = 5 - len(widths) + 1  # number of the first level that is fused
    stages: list[Stage] = []

    def add(name: str, level: int, *, of: tuple[str, ...] | None = None) -> None:
        stages.append(Stage(f"{prefix}{name}", blocks[name], of))
        if level >= first:
            stages.append(fused(f"{prefix}F{level}", f"{prefix}{name}", level - first, widths, prefix=taps))

    add("stem", 1, of=(IMAGE,))
    add("D2", 2)
    stages.append(Stage(f"{prefix}B2", blocks["B2"]))
    for level in (3, 4, 5):
        add(f"D{level}", level)
        stages.append(Stage(f"{prefix}B{level}", blocks[f"B{level}"]))
    return tuple(stages)


def top_down(blocks: Blocks, sources: Sequence[str], *, prefix: str = "") -> tuple[Stage, ...]:
    """SPP and the top-down path of the neck on maps P3, P4, P5."""
    third, fourth, fifth = sources
    return (
        Stage(f"{prefix}SPP", blocks["SPP"], of=(fifth,)),
        Stage(f"{prefix}U4", Upsample()),
        Stage(f"{prefix}J4", Concat(), of=(f"{prefix}U4", fourth)),
        Stage(f"{prefix}T4", blocks["T4"]),
        Stage(f"{prefix}U3", Upsample()),
        Stage(f"{prefix}J3", Concat(), of=(f"{prefix}U3", third)),
        Stage(f"{prefix}T3", blocks["T3"]),
    )


def bottom_up(blocks: Blocks, *, prefix: str = "") -> tuple[Stage, ...]:
    """The bottom-up path of the neck, after :func:`top_down`."""
    return (
        Stage(f"{prefix}N4", blocks["N4"], of=(f"{prefix}T3", f"{prefix}T4")),
        Stage(f"{prefix}L4", blocks["L4"]),
        Stage(f"{prefix}N5", blocks["N5"], of=(f"{prefix}L4", f"{prefix}SPP")),
        Stage(f"{prefix}L5", blocks["L5"]),
    )


def _none(blocks: Blocks) -> Part:
    return (), ()


def _pfh(blocks: Blocks) -> Part:
    """Deep supervision: the auxiliary levels read the backbone."""
    return (), FIRST


def _fpn(blocks: Blocks) -> Part:
    return top_down(blocks, FIRST, prefix="A"), ("AT3", "AT4", "ASPP")


def _pan(blocks: Blocks) -> Part:
    return top_down(blocks, FIRST, prefix="A") + bottom_up(blocks, prefix="A"), ("AT3", "AL4", "AL5")


def _icn(blocks: Blocks) -> Part:
    """Integration by CBLinear and CBFuse: a second backbone that is an auxiliary reversible branch."""
    widths = [_width(blocks[f"D{level}"]) for level in (3, 4, 5)]
    taps = linear_taps(FIRST, widths, prefix="AC")
    return taps + linked_backbone(blocks, prefix="A", taps="AC", widths=widths), ("AB3", "AB4", "AB5")


def _width(block: Block) -> int:
    width = getattr(block, "out", None)
    if not isinstance(width, int):
        raise ModelError(f"PGI: a down-sampling with a width of its own is needed, got {type(block).__name__}")
    return width


PARTS: Mapping[str, Callable[[Blocks], Part]] = MappingProxyType(
    {"none": _none, "pfh": _pfh, "fpn": _fpn, "pan": _pan, "icn": _icn}
)
"""Parts of PGI by name (paper, table 4)."""
