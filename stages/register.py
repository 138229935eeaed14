"""Make the exported artefact a version of the registered model: `python -m stages.register --variant V`.

The model's name is `registry.model_prefix` plus the variant. The version gets the alias `challenger`, is tied to the
training's MLflow run, and carries the evidence for the promotion gate and an auditor. The same artefact never makes a
second version.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stages.project.command import Interrupted, run_stage
from stages.project.params import Params
from stages.project.workspace import (
    VALIDATION_REPORT,
    measured,
    model_dir,
    read_json,
    reports,
    split_images,
    training_run,
)
from stages.registry.errors import RegistryUnavailableError
from stages.registry.journal import delivered, flush
from stages.registry.tags import evaluation_tags, int8_figures, origin_tags, verdict_tags
from stages.registry.versions import DATA_STATISTICS, ModelRegistry, Version
from yolov7.artefact import ONNX, OPTIONAL, read_description
from yolov7.errors import DataError
from yolov7.files import sha256_file, write_json

log = logging.getLogger(__name__)

STATISTICS = VALIDATION_REPORT / "statistics.json"
RESULTS = VALIDATION_REPORT / "results.json"


def main(params: Params, args: argparse.Namespace) -> None:
    """Register `models/V/export` and write `models/V/registered.json`."""
    try:
        record = register(params, args.variant)
    except RegistryUnavailableError as error:
        raise Interrupted(f"{error}; the same command registers the model once MLflow is back") from error
    write_json(model_dir(args.variant) / "registered.json", record)


def register(params: Params, variant: str) -> dict[str, Any]:
    """Register the export folder; returns the record of its version."""
    run = training_run(variant)
    metrics = measured(variant)
    export = model_dir(variant) / "export"
    _check_one_export(export, metrics, variant)
    version = register_export(
        params,
        export,
        name=f"{params.registry.model_prefix}{variant}",
        variant=variant,
        run=run,
        metrics=metrics,
        page=reports(variant) / "report.html",
    )
    return record_of(version, metrics)


def register_export(
    params: Params,
    export: Path,
    *,
    name: str,
    variant: str,
    run: Mapping[str, Any],
    metrics: dict[str, Any],
    page: Path,
    tags: Mapping[str, object] = MappingProxyType({}),
) -> Version:
    """Make an export folder the challenger of the model `name`; figures and `page` go to the run of its training.

    `run` describes the training, as in its `run.json`; `tags` are further tags of the version.
    """
    flush()  # a training during an outage of MLflow may still have a run to deliver
    registry = ModelRegistry()
    run_id = registry.run_for(delivered(run), experiment=params.registry.experiment, name=variant)
    version, new = registry.register(
        export,
        name=name,
        run_id=run_id,
        origin=origin_tags(variant),
        measured={
            **evaluation_tags(metrics, params.evaluate),
            **verdict_tags(export / "verify.json", RESULTS),
            **tags,
        },
        example=_example_image(),
    )
    _keep_statistics(registry, version)
    numbers = {key: value for key, value in metrics.items() if isinstance(value, float)} | int8_figures(metrics)
    registry.log_metrics(run_id, {f"test/{key}": value for key, value in numbers.items()})
    registry.log_page(run_id, page)
    log.info("%s %s, alias challenger", version, "is new" if new else "holds this artefact already")
    return version


def record_of(version: Version, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a version, for `registered.json`."""
    return {
        "name": version.name,
        "version": version.number,
        "artefact_sha256": version.tags["artefact_sha256"],
        "manifest_sha256": version.tags["manifest_sha256"],
        "run_id": version.run_id,
        "AP": metrics["AP"],
        "AP50": metrics["AP50"],
        **({"int8": {file: found["AP"] for file, found in metrics["int8"].items()}} if "int8" in metrics else {}),
        "test_data_sha256": metrics["test_data_sha256"],
        "git_revision": version.tags["git_revision"],
    }


def _check_one_export(export: Path, metrics: dict[str, Any], variant: str) -> None:
    """Refuse figures and verdicts of another export than the one in the folder, as a stage that was killed leaves them.

    Documents of earlier revisions do not name their files and pass. Raises :class:`DataError`, and :class:`ModelError`
    for a folder without a manifest.
    """
    sums = {name: entry["sha256"] for name, entry in read_description(export)["files"].items()}
    if metrics.get("artefact_sha256", sums.get(ONNX)) != sums.get(ONNX):
        path = reports(variant) / "metrics.json"
        raise DataError(f"measured on another {ONNX}; run `dvc repro evaluate@{variant}` again", path=path)
    for file, found in metrics.get("int8", {}).items():
        if found["artefact_sha256"] != sums.get(f"{OPTIONAL}/{file}"):
            path = reports(variant) / "metrics.json"
            raise DataError(f"measured on another {file}; run `dvc repro evaluate@{variant}` again", path=path)
    path = export / "verify.json"
    verified = read_json(path, f"dvc repro export@{variant}").get("files", {})
    if not isinstance(verified, dict) or any(sums.get(name) != sha256 for name, sha256 in verified.items()):
        raise DataError(f"verified other files than this export's; run `dvc repro export@{variant}` again", path=path)


def _keep_statistics(registry: ModelRegistry, version: Version) -> None:
    """Keep the statistics of the data with the model, so that later data can be compared with its champion's."""
    if not STATISTICS.is_file():
        log.warning("%s: no such file; drift from the data of %s cannot be judged later", STATISTICS, version)
        return
    # Named by content: another version of the same run may come from other data.
    path = f"data/statistics-{sha256_file(STATISTICS)[:12]}.json"
    if version.tags.get(DATA_STATISTICS) != path:
        registry.record(version, path, read_json(STATISTICS, "dvc repro validate"))
        registry.set_tags(version, {DATA_STATISTICS: path})


def _example_image() -> bytes:
    """The smallest of the first 50 test images: real, and small enough to travel with every version."""
    folder = split_images("test")
    images = sorted(path for path in folder.rglob("*") if path.is_file())
    if not images:
        raise DataError("no images; run `dvc repro ingest` first", path=folder)
    return min(images[:50], key=lambda path: path.stat().st_size).read_bytes()


if __name__ == "__main__":
    run_stage(main, variant=True)
