"""One page that compares the variants evaluated in this workspace: `python -m stages.compare_variants`.

AP comes from `reports/V/metrics.json`, that of the int8 files too. Latency is measured now, for all files in turn on
the same test images: the page is not an output that DVC keeps. Written to `reports/comparison.html`.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from stages.evaluation.timing import first_images, timed
from stages.project.command import run_stage
from stages.project.params import Evaluate, Params
from stages.project.workspace import dataset_document, measured, model_dir, open_index, read_json, reports
from stages.registry.errors import RegistryUnavailableError
from stages.registry.versions import ModelRegistry
from yolov7.artefact import ONNX, OPTIONAL
from yolov7.catalogue import listed_infos
from yolov7.errors import DataError
from yolov7.files import sha256_file, write_text
from yolov7.int8_files import size_mb
from yolov7.model.checkpoint import load_checkpoint
from yolov7.model.cost import conv_gflops, count_parameters
from yolov7.predict.benchmark import Benchmark
from yolov7.report.comparison import Compared, Int8Compared, render_comparison

log = logging.getLogger(__name__)

OUTPUT = Path("reports/comparison.html")


def main(params: Params, args: argparse.Namespace) -> None:
    """Write the page for every variant of `params.yaml` with figures on the current test data."""
    document = dataset_document(needs={"splits.test.sha256": str})["splits"]["test"]
    figures = _evaluated(params.variants, document["sha256"])
    index = open_index("test")
    int8 = {variant: _int8_measured(variant, metrics) for variant, metrics in figures.items()}
    latencies = _timed(list(figures), first_images(index), args.rounds, params.evaluate, int8)
    compared = [
        replace(_compared(params, variant, metrics, latencies[variant]), int8=_int8(variant, int8[variant], latencies))
        for variant, metrics in figures.items()
    ]
    facts = {
        "Test images": f"{len(index):,}, {index.num_boxes:,} objects",
        "Test data": document["sha256"],
        "Latency": f"ONNX Runtime, batch 1, {os.cpu_count()} cores, {args.rounds} images, each variant in turn",
    }
    if params.evaluate.augment:
        facts["Latency"] += f"; with test-time augmentation ({params.evaluate.augment}), as AP"
    borders = _borders(figures)
    if borders:
        facts["Grey border, of AP"] = borders
    absent = [variant for variant in params.variants if variant not in figures]
    if absent:
        facts["Not evaluated yet"] = ", ".join(absent)
    write_text(OUTPUT, render_comparison(facts, compared, listed_infos()))
    _keep(list(figures))
    log.info("%s: %s", OUTPUT, ", ".join(figures))


def _evaluated(variants: tuple[str, ...], sha256: str) -> dict[str, dict[str, Any]]:
    """The figures of each variant that was evaluated on the current test data. Raises DataError if none was."""
    figures = {}
    for variant in variants:
        file = reports(variant) / "metrics.json"
        if not file.is_file():
            log.warning("%s: not evaluated yet: run `dvc repro evaluate@%s`", variant, variant)
            continue
        found = measured(variant)
        if found["test_data_sha256"] != sha256:
            log.warning("%s: evaluated on other test data: run `dvc repro evaluate@%s`", variant, variant)
            continue
        figures[variant] = found
    if not figures:
        raise DataError("no variant is evaluated on the current test data; run `dvc repro` first", path="reports")
    return figures


def _borders(figures: dict[str, dict[str, Any]]) -> str:
    """The borders that the variants were measured with; empty where none has one."""
    found = {variant: (metrics.get("border") or {}).get("pixels", 0) for variant, metrics in figures.items()}
    return ", ".join(f"{variant} {pixels} pixels" for variant, pixels in found.items()) if any(found.values()) else ""


def _keep(variants: list[str]) -> None:
    """Send the page to the MLflow run of every registered variant on it; an MLflow that is away is only logged."""
    records = [model_dir(variant) / "registered.json" for variant in variants]
    found = {read_json(record, "dvc repro").get("run_id") for record in records if record.is_file()}
    runs = [str(run_id) for run_id in found if run_id]
    try:
        registry = ModelRegistry() if runs else None
        for run_id in runs:
            assert registry is not None
            registry.log_page(run_id, OUTPUT)
    except RegistryUnavailableError as error:
        log.warning("%s; %s is not in MLflow", error, OUTPUT)


def _export(variant: str) -> Path:
    return model_dir(variant) / "export"


def _int8_measured(variant: str, metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The evaluated figures of each int8 file, by file name; those of another export are left out with a warning."""
    found = {}
    for file, figures in metrics.get("int8", {}).items():
        path = _export(variant) / OPTIONAL / file
        if path.is_file() and sha256_file(path) == figures["artefact_sha256"]:
            found[file] = figures
        else:
            log.warning("%s: not the file that was evaluated: run `dvc repro evaluate@%s`", path, variant)
    return found


def _timed(
    variants: list[str],
    images: list[np.ndarray],
    rounds: int,
    settings: Evaluate,
    int8: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> dict[str, Benchmark]:
    """Latency by variant, and by `VARIANT FILE` for each of its int8 files."""
    files = {variant: _export(variant) / ONNX for variant in variants}
    for variant, names in int8.items():
        files |= {f"{variant} {name}": _export(variant) / OPTIONAL / name for name in names}
    return timed(files, images, settings, rounds=rounds)


def _int8(variant: str, measured: Mapping[str, Any], latencies: Mapping[str, Benchmark]) -> list[Int8Compared]:
    return [
        Int8Compared(
            file=file,
            metrics=figures,
            difference=tuple(figures["AP_difference"][end] for end in ("value", "low", "high")),
            latency_ms=latencies[f"{variant} {file}"].timings[-1].median,
            size_mb=size_mb(_export(variant) / OPTIONAL / file),
        )
        for file, figures in measured.items()
    ]


def _compared(params: Params, variant: str, metrics: dict[str, Any], timed: Benchmark) -> Compared:
    network = params.network_for(variant)
    model, metadata = load_checkpoint(_export(variant) / "model.safetensors", network=network)
    total = timed.timings[-1]
    registered = model_dir(variant) / "registered.json"
    version = read_json(registered, "dvc repro", needs={"version": int})["version"] if registered.is_file() else "–"
    return Compared(
        variant=variant,
        metrics={name: value for name, value in metrics.items() if isinstance(value, int | float)},
        per_class=metrics.get("per_class", {}),
        parameters=count_parameters(model),
        gflops=conv_gflops(model, metadata.image_size),
        image_size=metadata.image_size,
        latency_ms=total.median,
        latency_low=total.low,
        latency_high=total.high,
        size_mb=size_mb(_export(variant) / ONNX),
        notes={"Version": str(version)},
    )


if __name__ == "__main__":
    run_stage(main, options=[("--rounds", {"type": int, "default": 20, "help": "timed images of each variant (20)"})])
