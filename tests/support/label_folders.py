"""Folders of small images with labels, and what ingest makes of them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.ingest import ingest
from stages.project.params_data import Data

SIDE = 40
"""Of the images, in pixels."""


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def put_image(path: Path) -> None:
    """An image of its own content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, str(path)))
    pixels = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def ingested(folder: Path, source: dict[str, Any]) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Notes, dataset.json, and of the train split: image names, boxes, category ids, crowds."""
    split = {"near_duplicate_bits": None, "train": 0.4, "val": 0.3, "test": 0.3}
    data = Data.model_validate({"folder": str(folder), "split": split, **source})
    out = Path(tempfile.mkdtemp(dir=folder.parent)) / "out"
    ingest(data, out)
    dataset = json.loads((out / "dataset.json").read_text())
    train = json.loads((out / "train/annotations.json").read_text())
    found = {
        "images": [record["file_name"] for record in train["images"]],
        "boxes": [record["bbox"] for record in train["annotations"]],
        "categories": [record["category_id"] for record in train["annotations"]],
        "crowds": [record["iscrowd"] for record in train["annotations"]],
    }
    return dataset["notes"], dataset, found
