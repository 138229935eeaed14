"""Listed networks as data: cost and published results of each, without building one and without torch.

The figures are in `catalogue.json` beside this file. `python -m yolov7.model.info` counts them on the networks and
writes it; the tests compare it with the networks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from yolov7.errors import ModelError, nearest

FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Published speed of a deployed network, without suppression."""

    fps: int
    """Images per second."""
    device: str
    """For example `V100`."""
    precision: str
    """For example `fp16`."""
    batch_size: int

    def conditions(self) -> str:
        """The conditions of the measurement, in words."""
        return f"one {self.device}, {self.precision}, batch {self.batch_size}, without suppression"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published results on COCO: AP in percent, and the speed where it was published."""

    ap: float
    split: str
    """Split of the measurement: `test-dev` or `val2017`."""
    image_size: int
    """Side the AP was measured at, in pixels."""
    ap50: float | None
    ap75: float | None
    source: str
    """Paper and table, or release."""
    speed: Speed | None = None

    @property
    def fps(self) -> int | None:
        """Images per second, under the conditions of `speed`."""
        return None if self.speed is None else self.speed.fps


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

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> VariantInfo:
        """The row of :meth:`as_json`."""
        published = row["published"]
        if published is not None:
            speed = published["speed"] and Speed(**published["speed"])
            known = {name: value for name, value in published.items() if name != "fps"}
            published = Published(**{**known, "speed": speed})
        return cls(**{**row, "strides": tuple(row["strides"]), "published": published})


@dataclass(frozen=True)
class Section:
    """The table of one family, as text for a terminal."""

    title: str
    rows: list[tuple[str, ...]]
    """Heading first."""
    note: str
    """Conditions of the published speeds; empty without any."""


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return document


def listed_names() -> list[str]:
    """The names of `yolov7.list_variants()`, in its order."""
    return [row["variant"] for row in _document()["variants"]]


def listed_recipes() -> dict[str, str]:
    """The preset of `train.preset` that each of :func:`listed_names` was published with, by name."""
    recipes: dict[str, str] = _document()["recipes"]
    return dict(recipes)


def listed_infos(names: Iterable[str] | None = None) -> list[VariantInfo]:
    """Rows of the given names of `yolov7.list_variants()`, or of all.

    Raises :class:`ModelError`, naming the nearest known variant.
    """
    rows = {row["variant"]: row for row in _document()["variants"]}
    chosen = list(rows) if names is None else list(names)
    for name in chosen:
        if name not in rows:
            raise ModelError(f"unknown variant {name!r}{nearest(name, list(rows))}")
    return [VariantInfo.from_json(rows[name]) for name in chosen]


def by_family(rows: Iterable[VariantInfo]) -> dict[str, list[VariantInfo]]:
    """The rows of each family, by its title, in the order of the rows."""
    families: dict[str, list[VariantInfo]] = {}
    for row in rows:
        title = "Networks of your own" if row.family is None else _document()["families"][row.family]
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
