"""The models a visitor can choose among: those of the command line, and the versions in the registry."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from stages.registry.address import sqlite_file, tracking_uri
from stages.registry.versions import ModelRegistry, Version, download_model
from stages.serving.model import DetectorModel, Limits
from yolov7.errors import ModelError, YoloError
from yolov7.predict.predictor import Predictor
from yolov7.text import printable

log = logging.getLogger(__name__)

FLOOR = 0.05
"""Least confidence that is asked of a network; above it, the page's slider filters what it has."""
_OPEN = 3
"""Networks in memory at a time."""
_CARD_BYTES = 1 << 16
_VERSIONS = 50
"""Versions of each registered model that are offered."""


@dataclass(frozen=True)
class Choice:
    """A model that can be chosen. Visitors name it by its place in the list, never by a path."""

    label: str
    find: Callable[[], Path]
    """Its export folder or file on this machine, fetched if need be."""


@dataclass(frozen=True)
class Opened:
    """A model in memory."""

    model: DetectorModel
    place: Path

    def detect(self, content: bytes, iou: float | None) -> dict[str, Any]:
        """Detections of an image file above the floor. Raises MlflowException that says what is wrong with it."""
        found = self.model.detect(content, confidence=self.floor, iou=None if self._has_suppression else iou)
        return {"detections": found}

    @property
    def floor(self) -> float:
        """Least confidence of its detections."""
        inside = self._detector.suppression_inside
        return FLOOR if inside is None else max(FLOOR, inside["confidence"])

    def facts(self) -> dict[str, Any]:
        """What the page shows of it, and what a COCO file of its detections needs."""
        detector, metadata = self._detector, self._detector.metadata
        return {
            "variant": metadata.variant,
            "input": [detector.canvas[1], detector.canvas[0]],
            "classes": [
                {"id": number, "name": name}
                for number, name in zip(metadata.category_ids, metadata.class_names, strict=True)
            ],
            "confidence": max(detector.confidence, self.floor),
            "floor": self.floor,
            "iou": detector.iou,
            "iou_is_fixed": self._has_suppression,
            "card": self._card(),
        }

    @property
    def _detector(self) -> Predictor:
        return self.model.detector

    @property
    def _has_suppression(self) -> bool:
        return self._detector.suppression_inside is not None

    def _card(self) -> str:
        """MODEL_CARD.md as HTML. The folder may come from anyone: no HTML, pictures or links of its own."""
        folder = self.place if self.place.is_dir() else self.place.parent
        try:
            with (folder / "MODEL_CARD.md").open("rb") as file:
                text = file.read(_CARD_BYTES).decode(errors="replace")
        except OSError:
            return ""
        markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])
        html: str = markdown.render(text)
        return html


class Choices:
    """The list, and the few models that are in memory. Raises :class:`YoloError` where nothing can be chosen."""

    def __init__(self, choices: Sequence[Choice], limits: Limits):
        if not choices:
            raise ModelError("no model to try: give --model, or register one (`dvc repro`)")
        self.all = tuple(choices)
        self._limits = limits
        self._opened: OrderedDict[int, Opened] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, place: int) -> Opened:
        """The model at this place of the list. Raises :class:`YoloError` if it cannot be fetched or opened."""
        with self._lock:
            if place not in self._opened:
                model, path = DetectorModel(), self.all[place].find()
                model.open(path, self._limits)
                self._opened[place] = Opened(model, path)
                if len(self._opened) > _OPEN:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(place)
            return self._opened[place]


def given(models: Sequence[str]) -> list[Choice]:
    """Files, export folders and models:/ addresses. Raises :class:`ModelError` for a missing file."""
    return [_given(model) for model in models]


def _given(model: str) -> Choice:
    if model.startswith("models:/"):
        return Choice(model, lambda: download_model(model))
    path = Path(model)
    if not path.exists():
        raise ModelError(f"{model}: no such model file or folder")
    return Choice(printable(_name(path)), lambda: path)


def _name(path: Path) -> str:
    """`yolov7-tiny (models/yolov7-tiny/export)`: the variant, where the folder says it, and the path as given."""
    try:
        variant = json.loads((path / "model.json").read_text(encoding="utf-8"))["variant"]
    except (OSError, ValueError, KeyError, TypeError):
        return str(path)
    return f"{variant} ({path})" if isinstance(variant, str) else str(path)


def registered() -> list[Choice]:
    """Versions in the registry, champions first. Empty, with a line in the log, where there is no registry."""
    file = sqlite_file(tracking_uri())
    if file is not None and not file.is_file():
        return []
    try:
        listed = ModelRegistry().listed(_VERSIONS)
    except YoloError as error:
        log.warning("registered models are left out: %s", error)
        return []
    return [_registered(version, aliases) for version, aliases in listed]


def _registered(version: Version, aliases: Sequence[str]) -> Choice:
    named = f" ({', '.join(aliases)})" if aliases else ""
    return Choice(printable(f"{version}{named}"), lambda: download_model(version.uri))
