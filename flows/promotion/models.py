"""The registered models of a project, and how the promotion gate measures two versions of one."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.runner.pipeline import Log, Pipeline
from stages.project.names import check_model_name, check_variant
from stages.project.params import Params
from stages.project.workspace import model_dir, read_json
from stages.registry.versions import CHALLENGER, ModelRegistry, Version
from yolov7.documents import load_json
from yolov7.errors import ConfigError, ModelError

log = logging.getLogger(__name__)

Compare = Callable[[Version, Version], Mapping[str, Any]]
"""Measures a challenger and a champion side by side: the document of :mod:`stages.compare`."""


def variant_of(version: Version, params: Params) -> str:
    """The variant of a version, as params.yaml names it. Raises :class:`ConfigError` for an invalid tag."""
    variant = version.tags.get("variant") or version.name.removeprefix(params.registry.model_prefix)
    check_variant(variant, where=f"{version}: its variant")
    return variant


def registered_names(params: Params) -> list[str]:
    """The registered models of params.yaml, one for each variant."""
    return [f"{params.registry.model_prefix}{variant}" for variant in params.variants]


def chosen_models(models: list[str] | None, params: Params) -> list[str]:
    """`models` without duplicates, or those of params.yaml. Raises :class:`ConfigError` for an empty list."""
    if models is not None and not models:
        raise ConfigError("models: name at least one registered model, or omit it for those of params.yaml")
    for name in models or []:
        check_model_name(name, where="models")
    return list(dict.fromkeys(registered_names(params) if models is None else models))


def recorded_ap(version: Version) -> float:
    """The test AP in a version's tags. Raises :class:`ModelError` if there is none."""
    try:
        return float(version.tags["AP"])
    except (KeyError, ValueError):
        raise ModelError(
            f"{version} has no test AP among its tags: this project did not register it; point its alias at a version "
            "of this project, or choose another name with params.yaml: registry.model_prefix"
        ) from None


def ensure_challenger(pipeline: Pipeline, variant: str, log: Log) -> None:
    """Make the version in `registered.json` the challenger, if it is not.

    DVC restores that file from its cache without asking MLflow. The database may be another one by now, or the alias
    may have moved to a version that is no longer the current result.
    """
    needs = {"name": str, "manifest_sha256": str}
    file = pipeline.root / model_dir(variant) / "registered.json"
    record = read_json(file, f"dvc repro register@{variant}", needs=needs)
    present = ModelRegistry().by_alias(record["name"], CHALLENGER)
    if present is None or present.tags.get("manifest_sha256") != record["manifest_sha256"]:
        log.info("the current artefact of %s is not the challenger in this MLflow; registering it", record["name"])
        pipeline.reproduce(f"register@{variant}", log, force=True)


def measure(
    pipeline: Pipeline, name: str, command: Sequence[str], log: Log, *, resumable: bool = False
) -> dict[str, Any]:
    """Run a stage that measures, in a process of its own; returns the JSON document it writes.

    `command`: the module and its options without `--output`. `resumable`: after a timeout, a retry would continue.
    """
    with tempfile.TemporaryDirectory(prefix="measure-") as folder:
        output = Path(folder) / "figures.json"
        pipeline.run(name, [sys.executable, "-m", *command, "--output", str(output)], log, measures=not resumable)
        figures: dict[str, Any] = load_json(output)
        return figures


def compared_now(pipeline: Pipeline) -> Compare:
    """A comparison by :mod:`stages.compare`, made when it is asked for."""

    def compare(challenger: Version, champion: Version) -> Mapping[str, Any]:
        command = ["stages.compare", "--challenger", challenger.uri, "--champion", champion.uri]
        name = f"compare-{challenger.name}-{challenger.number}-{champion.number}"
        return measure(pipeline, name, command, log)

    return compare
