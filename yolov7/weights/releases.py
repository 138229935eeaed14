"""The published files of the variants: their names and their releases.

The file names are those of the release pages. Nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from yolov7.artefact import DESCRIPTION
from yolov7.errors import ModelError, nearest

FormName = Literal["training", "deploy"]

HOST = "https://github.com"


@dataclass(frozen=True, kw_only=True)
class Release:
    """A page of published files."""

    title: str
    """Of the networks, as texts write it."""
    path: str
    """Of its files below the host."""
    licence: str = "GPL-3.0"
    """Of the files."""


@dataclass(frozen=True, kw_only=True)
class PublishedFiles:
    """The files of one variant; the same one twice where only one was published."""

    release: Release
    deploy: str
    """For prediction."""
    training: str
    """For a training to start from: with the parts that only a training needs, where they were published."""

    def name(self, form: FormName) -> str:
        """The file of a form."""
        return self.training if form == "training" else self.deploy

    def path(self, form: FormName) -> str:
        """Its path below the host, below a mirror, and below the folder of kept files."""
        return f"{self.release.path}/{self.name(form)}"

    def address(self, form: FormName) -> str:
        """Its public address."""
        return f"{HOST}/{self.path(form)}"


_YOLOV7 = Release(title="YOLOv7", path="WongKinYiu/yolov7/releases/download/v0.1")
_YOLOV9 = Release(title="YOLOv9", path="WongKinYiu/yolov9/releases/download/v0.1")
_YOLOV6 = Release(title="YOLOv6 2.0", path="meituan/YOLOv6/releases/download/0.2.0")
_YOLOV6_3 = Release(title="YOLOv6 3.0", path="meituan/YOLOv6/releases/download/0.4.0")


def _one(release: Release, name: str) -> PublishedFiles:
    return PublishedFiles(release=release, deploy=name, training=name)


def _yolov7(name: str) -> PublishedFiles:
    return PublishedFiles(release=_YOLOV7, deploy=f"{name}.pt", training=f"{name}_training.pt")


def _yolov9(size: str) -> PublishedFiles:
    return PublishedFiles(release=_YOLOV9, deploy=f"yolov9-{size}-converted.pt", training=f"yolov9-{size}.pt")


RELEASED: Mapping[str, PublishedFiles] = MappingProxyType(
    {
        "yolov7-tiny": _one(_YOLOV7, "yolov7-tiny.pt"),
        "yolov7": _yolov7("yolov7"),
        "yolov7-x": _yolov7("yolov7x"),
        **{f"yolov7-{size}": _yolov7(f"yolov7-{size}") for size in ("w6", "e6", "d6", "e6e")},
        **{f"yolov9-{size}": _yolov9(size) for size in "tsmce"},
        **{f"gelan-{size}": _one(_YOLOV9, f"gelan-{size}.pt") for size in "smce"},
        **{f"yolov6-{size}": _one(_YOLOV6, f"yolov6{size}.pt") for size in "ntsml"},
        "yolov6-l-relu": _one(_YOLOV6, "yolov6l_relu.pt"),
        **{f"yolov6v3-{size}": _one(_YOLOV6_3, f"yolov6{size}.pt") for size in "nsml"},
        **{f"yolov6v3-{size}6": _one(_YOLOV6_3, f"yolov6{size}6.pt") for size in "nsml"},
    }
)
"""Files by variant."""

UNRELEASED: Mapping[str, str] = MappingProxyType(
    {
        "yolov7-tiny-silu": "train it; `train.weights: yolov7-tiny` starts it from the weights of the network with "
        "another activation",
        "gelan-t": "take yolov9-t, whose deploy form is this network",
    }
)
"""Variants without a published file, with what to do instead."""


def is_published_name(text: str) -> bool:
    """True for the name of a variant, unless there is a file or an export folder of that name."""
    in_the_way = (Path(text), Path(text) / DESCRIPTION)  # any other folder is not: a clone of this project has a yolov7
    return (text in RELEASED or text in UNRELEASED) and not any(path.is_file() for path in in_the_way)


def published_files(variant: str) -> PublishedFiles:
    """The files of a variant. Raises :class:`ModelError` where none were published, with what to do instead."""
    if variant in UNRELEASED:
        raise ModelError(f"{variant}: no weights were published for this network; {UNRELEASED[variant]}")
    if variant not in RELEASED:
        raise ModelError(f"{variant!r} is not the name of published weights{nearest(variant, list(RELEASED))}")
    return RELEASED[variant]
