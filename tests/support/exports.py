"""Small COCO exports on disk, and what `ingest` makes of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stages.ingest import ingest
from stages.project.params_data import Data

WIDTH, HEIGHT = 40, 30
FISH = ({"id": 1, "name": "fish"},)


def picture(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def image(number: int = 1, name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number}.jpg", "width": WIDTH, "height": HEIGHT, **more}


def box(number: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": [2.0, 3.0, 10.0, 12.0], **more}


@dataclass
class Export:
    """One annotation file, used for train and val; `files` are the images on disk, by name below the folder."""

    annotations: list[dict[str, Any]]
    images: list[dict[str, Any]] = field(default_factory=lambda: [image()])
    categories: list[dict[str, Any]] | tuple[dict[str, Any], ...] = FISH
    files: tuple[str, ...] = ("1.jpg",)
    top: dict[str, Any] = field(default_factory=dict)
    """More of the document; a value of None removes the key."""

    def document(self) -> dict[str, Any]:
        whole = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": list(self.categories),
            **self.top,
        }
        return {key: value for key, value in whole.items() if value is not None}


@dataclass(frozen=True)
class Ingested:
    """The result for the train split."""

    folder: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    notes: str

    @property
    def boxes(self) -> list[list[float]]:
        return [one["bbox"] for one in self.annotations]


def bring_in(folder: Path, train: Export, val: Export | None = None, **coco: Any) -> Ingested:
    """Write the export, ingest it with more keys of `data.coco`, and read the train split."""
    for split, export in (("train", train), ("val", val or train)):
        for number, name in enumerate(export.files):
            path = folder / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number + 100 * len(split)))
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.json").write_text(json.dumps(export.document()), encoding="utf-8")
    sets = {split: {"images": split, "annotations": f"{split}.json"} for split in ("train", "val")}
    data = Data.model_validate({"source": "coco", "folder": str(folder), "coco": {**sets, **coco}})
    ingest(data, folder / "out")
    made = json.loads((folder / "out/train/annotations.json").read_text())
    notes = json.loads((folder / "out/dataset.json").read_text())["notes"]
    lists = {name: made[name] for name in ("images", "annotations", "categories")}
    return Ingested(folder / "out", notes="\n".join(note for note in notes if note.startswith("train: ")), **lists)
