"""The tags that a version is registered with: its origin, its figures, and how its checks ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.project.params import Evaluate
from stages.project.provenance import UNTRACKED, code_origin, dvc_hash
from stages.project.workspace import dataset_document, read_json
from stages.registry.versions import ARTEFACT_VERIFICATION, DATA_VALIDATION, PASSED


def origin_tags(variant: str) -> dict[str, str]:
    """The variant, its data and its code."""
    return {
        "variant": variant,
        "data_sha256": str(dataset_document()["sha256"]),
        "data_dvc": dvc_hash("data/ingested") or UNTRACKED,
        **code_origin(),
    }


def evaluation_tags(metrics: dict[str, Any], settings: Evaluate) -> dict[str, str]:
    """AP, and the data and settings it was measured with: two versions are comparable if the last two agree.

    AP of the int8 files stands in tags of their own, `int8.FILE.AP`.
    """
    return {
        "AP": f"{metrics['AP']:.6f}",
        "AP50": f"{metrics['AP50']:.6f}",
        "test_data_sha256": str(metrics["test_data_sha256"]),
        "evaluation": settings.conditions,
        **{name: f"{value:.6f}" for name, value in int8_figures(metrics).items() if name.endswith((".AP", ".AP50"))},
    }


def int8_figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of each int8 file in metrics.json, as `int8.FILE.NAME`; nested ones have no place in a registry."""
    return {
        f"int8.{file}.{name}": value
        for file, figures in metrics.get("int8", {}).items()
        for name, value in figures.items()
        if isinstance(value, float)
    }


def verdict_tags(verification: Path, validation: Path) -> dict[str, str]:
    """Outcomes of the artefact's verification and of the data's validation, for those of the two files that exist."""
    found = {ARTEFACT_VERIFICATION: (verification, "passed"), DATA_VALIDATION: (validation, "success")}
    return {
        tag: PASSED if read_json(path, "dvc repro").get(key) is True else "failed"
        for tag, (path, key) in found.items()
        if path.is_file()
    }
