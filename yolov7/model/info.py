"""The table of `yolov7 info`: cost and published results of each network."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from yolov7.model.checkpoint import load_checkpoint
from yolov7.model.cost import conv_gflops, count_deploy_unfused, count_parameters
from yolov7.model.detector import create_model
from yolov7.model.pgi import part_of
from yolov7.model.spec import Network
from yolov7.model.variants import VARIANTS, Published, family_name, find_family, list_variants


@dataclass(frozen=True)
class VariantInfo:
    """One row of the table."""

    variant: str
    parameters_training: int
    parameters_deploy_unfused: int
    """As the published deploy checkpoints hold it: plain head, batch norms and RepConv branches still separate."""
    parameters_deploy: int
    """Re-parameterised: one biased convolution per conv unit. To be compared with the paper."""
    gflops_training: float
    """2 x multiply-accumulates of the convolutions at `image_size`, in 10^9."""
    gflops_deploy: float
    image_size: int
    strides: tuple[int, ...]
    published: Published | None
    family: str | None = None
    """Name of its family; None for a network of the user's own."""
    pgi: str | None = None
    """Part of PGI that it is trained with (:data:`yolov7.model.pgi.PARTS`); None where no part fits its head."""

    def as_json(self) -> dict[str, Any]:
        """The row as plain values."""
        row = asdict(self)
        if self.published is not None:
            row["published"]["fps"] = self.published.fps
        return row


@dataclass(frozen=True)
class Section:
    """The table of one family, as text for a terminal."""

    title: str
    rows: list[tuple[str, ...]]
    """Heading first."""
    note: str
    """Conditions of the published speeds; empty without any."""


def variant_info(variant: str | Network, *, num_classes: int = 80, image_size: int | None = None) -> VariantInfo:
    """Count one network at a square image of `image_size` pixels (None: its own)."""
    model = create_model(variant, num_classes, device="meta")
    deploy = model.reparameterize()
    side = model.spec.image_size if image_size is None else image_size
    name = model.variant
    return VariantInfo(
        variant=name,
        parameters_training=count_parameters(model),
        parameters_deploy_unfused=count_deploy_unfused(model, deploy),
        parameters_deploy=count_parameters(deploy),
        gflops_training=round(conv_gflops(model, side), 4),
        gflops_deploy=round(conv_gflops(deploy, side), 4),
        image_size=side,
        strides=model.strides,
        published=VARIANTS[name].published if name in VARIANTS else None,
        family=family_name(name),
        pgi=part_of(model.spec),
    )


def file_info(path: str | os.PathLike[str], *, network: str = "") -> VariantInfo:
    """The row of the network in a .safetensors file, for its classes and image side; nothing is published of it.

    `network`, MODULE:FUNCTION, supplies kinds of block of the user's own. Raises :class:`ModelError` as
    :func:`yolov7.model.checkpoint.load_checkpoint` does.
    """
    model, metadata = load_checkpoint(path, network=network)
    row = variant_info(model.spec, num_classes=metadata.num_classes, image_size=metadata.image_size)
    return replace(row, published=None)


def variant_infos(variants: Iterable[str] | None = None) -> list[VariantInfo]:
    """Rows of the given variants, or of all that come with the library."""
    return [variant_info(name) for name in (list_variants() if variants is None else variants)]


def by_family(rows: Iterable[VariantInfo]) -> dict[str, list[VariantInfo]]:
    """The rows of each family, by its title, in the order of the rows."""
    families: dict[str, list[VariantInfo]] = {}
    for row in rows:
        title = "Networks of your own" if row.family is None else find_family(row.family).title
        families.setdefault(title, []).append(row)
    return families


def speed_note(rows: Iterable[VariantInfo]) -> str:
    """Conditions of the published speeds of these rows; empty without any."""
    speeds = [row.published.speed for row in rows if row.published is not None and row.published.speed is not None]
    return f"FPS: {'; '.join(dict.fromkeys(speed.conditions() for speed in speeds))}." if speeds else ""


def sections(rows: Iterable[VariantInfo]) -> list[Section]:
    """A table per family."""
    return [Section(title, as_table(members), speed_note(members)) for title, members in by_family(rows).items()]


def as_table(rows: Iterable[VariantInfo]) -> list[tuple[str, ...]]:
    """Heading and rows as text, for a terminal."""
    heading = ("variant", "params train", "params deploy", "GFLOPs", "input", "strides", "AP", "AP on", "FPS", "FPS on")
    rows = list(rows)
    table = [heading, *map(_as_text, rows)]
    if all(row.pgi is None for row in rows):
        return table
    parts = ("PGI", *(row.pgi or "-" for row in rows))
    return [(name, part, *others) for (name, *others), part in zip(table, parts, strict=True)]


def _as_text(row: VariantInfo) -> tuple[str, ...]:
    known = row.published
    speed = known.speed if known else None
    return (
        row.variant,
        f"{row.parameters_training:,}",
        f"{row.parameters_deploy:,}",
        f"{row.gflops_deploy:.1f}",
        str(row.image_size),
        "/".join(map(str, row.strides)),
        f"{known.ap:.1f}" if known else "-",
        f"{known.split} @{known.image_size}" if known else "-",
        str(speed.fps) if speed else "-",
        f"{speed.device} {speed.precision}" if speed else "-",
    )
