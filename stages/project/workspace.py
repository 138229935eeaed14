"""Paths and readers of the files that stages hand to each other, relative to the project's root."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov7.errors import DataError

if TYPE_CHECKING:
    from yolov7.data.index import Index

INGESTED = Path("data/ingested")
"""The data set in the pipeline's layout (`stages.dataset.layout`)."""
INDEX = Path("data/index")
"""The index of the validated data, a folder per split."""
VALIDATION_REPORT = Path("reports/validation")
"""Findings of the validate stage."""


def model_dir(variant: str) -> Path:
    """`models/V`: the trained and exported files."""
    return Path("models") / variant


def reports(variant: str) -> Path:
    """`reports/V`: measurements of the artefact."""
    return Path("reports") / variant


def split_images(split: str) -> Path:
    """The folder of the ingested images of `split`: train, val or test."""
    return INGESTED / split / "images"


def open_index(split: str) -> Index:
    """The validated images and boxes of `split`. Raises :class:`DataError` where there is no readable index."""
    # Imported here: the stages that never open an index need not depend on its code (dvc.yaml).
    from yolov7.data.index import Index

    return Index.open(INDEX / split, image_root=split_images(split))


def dataset_document(ingested: Path = INGESTED) -> dict[str, Any]:
    """`dataset.json`: source, classes, counts and content hash of the ingested data."""
    return read_json(ingested / "dataset.json", "dvc repro ingest")


def read_json(path: Path, command: str) -> dict[str, Any]:
    """The JSON document that an earlier stage wrote; `command` makes it, for the error message.

    Raises :class:`DataError` where the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no such file; run `{command}` first", path=path) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"not readable as JSON ({error}); run `{command}` again", path=path) from None
