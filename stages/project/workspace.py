"""Paths and readers of the files that stages hand to each other, relative to the project's root."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov7.documents import DocumentError, load_json
from yolov7.errors import DataError

if TYPE_CHECKING:
    from yolov7.data.index import Index

INGESTED = Path("data/ingested")
"""The data set in the pipeline's layout (`stages.dataset.layout`)."""
INDEX = Path("data/index")
"""The index of the validated data, a folder per split."""
INDEXED = INDEX / "dataset.json"
"""sha256 of the ingested data that the index was made of; absent in an index of earlier revisions."""
VALIDATION_REPORT = Path("reports/validation")
"""Findings of the validate stage."""

DOCUMENT = "quantization.json"
"""In `models/V/quantized`: whether there is a quantised network, and its figures."""

NUMBER = (int, float)
Needs = Mapping[str, type | tuple[type, ...]]
"""Type of an entry by its place in a document, `splits.test.sha256`."""
_NOTHING: Needs = {}
_IDENTITY: Needs = {"sha256": str}
TEST_SPLIT: Needs = {"sha256": str, "test_is_val": bool, "splits.test.sha256": str}
"""Entries of `dataset.json` that a measurement on the test split reads."""
_INT8: Needs = {"AP": NUMBER, "AP50": NUMBER, "AP75": NUMBER, "AP_difference": dict, "artefact_sha256": str}
"""Entries of an int8 file in `metrics.json` that other stages read."""
_ABSENT = object()


def model_dir(variant: str) -> Path:
    """`models/V`: the trained and exported files."""
    return Path("models") / variant


def quantized_dir(variant: str) -> Path:
    """`models/V/quantized`: the network of a quantisation-aware training, if there is one."""
    return model_dir(variant) / "quantized"


def reports(variant: str) -> Path:
    """`reports/V`: measurements of the artefact."""
    return Path("reports") / variant


def split_images(split: str) -> Path:
    """The folder of the ingested images of `split`: train, val or test."""
    return INGESTED / split / "images"


def open_index(split: str) -> Index:
    """The validated images and boxes of `split`.

    Raises :class:`DataError` where there is no readable index, or one of other data than those ingested last: a figure
    would be of the old labels under the name of the new data.
    """
    # Imported here: the stages that never open an index need not depend on its code (dvc.yaml).
    from yolov7.data.index import Index

    if INDEXED.is_file():
        validated = read_json(INDEXED, "dvc repro validate", needs=_IDENTITY)["sha256"]
        if validated != dataset_document()["sha256"]:
            raise DataError(f"{INGESTED} has changed since it was validated; run `dvc repro validate`", path=INDEX)
    return Index.open(INDEX / split, image_root=split_images(split))


def dataset_document(ingested: Path = INGESTED, *, needs: Needs = _IDENTITY) -> dict[str, Any]:
    """`dataset.json`: source, classes, counts and content hash of the ingested data."""
    return read_json(ingested / "dataset.json", "dvc repro ingest", needs=needs)


def training_run(variant: str, *, needs: Needs = _NOTHING) -> dict[str, Any]:
    """`run.json` of a training: its MLflow run, and the fingerprint of what it was trained with."""
    return read_json(model_dir(variant) / "train/run.json", f"dvc repro train@{variant}", needs=needs)


def measured(variant: str, root: Path = Path()) -> dict[str, Any]:
    """`metrics.json` of an evaluation."""
    needs: Needs = {"AP": NUMBER, "AP50": NUMBER, "test_data_sha256": str}
    path, command = root / reports(variant) / "metrics.json", f"dvc repro evaluate@{variant}"
    document = read_json(path, command, needs=needs)
    int8 = document.get("int8", {})  # absent without int8 files, and in documents of earlier revisions
    if not isinstance(int8, dict) or not all(_has(figures, _INT8) for figures in int8.values()):
        raise DataError(f"`int8` lacks figures of a file; run `{command}` again", path=path)
    return document


def _has(document: Any, needs: Needs) -> bool:
    return isinstance(document, dict) and all(isinstance(document.get(key), kinds) for key, kinds in needs.items())


def read_json(path: Path, command: str, *, needs: Needs = _NOTHING) -> dict[str, Any]:
    """The JSON document that an earlier stage wrote; `command` makes it, for the error message.

    `needs` are the types of the entries that the caller reads, by their place (`splits.test.sha256`). Raises
    :class:`DataError` where the file is missing, is not a JSON object, or lacks one of them.
    """
    try:
        document: Any = load_json(path)
    except FileNotFoundError:
        raise DataError(f"no such file; run `{command}` first", path=path) from None
    except DocumentError as error:
        raise DataError(f"not readable as JSON ({error}); run `{command}` again", path=path) from None
    if not isinstance(document, dict):
        raise DataError(f"not a JSON object; run `{command}` again", path=path)
    for place, kinds in needs.items():
        value: Any = document
        for key in place.split("."):
            value = value.get(key, _ABSENT) if isinstance(value, dict) else _ABSENT
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds == NUMBER):
            found = "missing" if value is _ABSENT else f"{value!r:.60}"
            raise DataError(f"`{place}` is {found}; run `{command}` again", path=path)
    return document
