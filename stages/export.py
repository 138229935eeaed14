"""Re-parameterise, export and verify one variant: `python -m stages.export --variant V`.

Every exported file is compared with the trained network on real validation images, by tensor, by detection and by AP.
The stage fails beyond the limits of `params.yaml: export`; `verify.json` holds the figures either way.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import onnx

from stages.project.command import run_stage
from stages.project.params import Export, Params
from stages.project.provenance import dvc_hash, git_revision
from stages.project.workspace import dataset_document, model_dir, open_index, training_run
from stages.registry.journal import delivered
from yolov7.artefact import (
    FILE_OF_FORMAT,
    INT8_FORMATS,
    ONNX,
    ONNX_NMS,
    SAFETENSORS,
    FormatName,
)
from yolov7.data.index import Index
from yolov7.errors import ModelError
from yolov7.export import FLOAT16, INT8, VerifyLimits, export_folder, verify
from yolov7.export.int8 import Int8Exporter
from yolov7.export.records import VERIFICATION, summary, write_records
from yolov7.export.samples import augmented_like, evenly_spaced
from yolov7.model import ModelMetadata, load_checkpoint
from yolov7.report.sensitivity import write_sensitivity_page
from yolov7.weights.origin import stated_origin

log = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """Write `models/V/export`."""
    trained = model_dir(args.variant) / "train"
    export(
        params, args.variant, trained / "best.safetensors", model_dir(args.variant) / "export", run=_run(args.variant)
    )


def export(params: Params, variant: str, checkpoint: Path, out: Path, *, run: dict[str, Any]) -> None:
    """Export the weights of a training to the folder `out`, and verify every file; `run` describes the training.

    Raises :class:`ModelError` where a file does not compute what was trained.
    """
    settings = params.export
    network = params.network_for(variant)
    trained, metadata = load_checkpoint(checkpoint, network=network)
    index = open_index("val")
    description = export_folder(
        trained,
        out,
        metadata=metadata,
        opset=settings.opset,
        dynamic=settings.dynamic,
        confidence=settings.confidence,
        iou=settings.iou,
        max_detections=settings.max_detections,
        formats=settings.formats,
        int8=lambda graph, float_model: int8_exporter(graph, float_model, index, params, variant),
        extra=_origin(run, metadata),
    )
    report = verify(
        trained,
        out / SAFETENSORS,
        out / ONNX,
        out / ONNX_NMS,
        index,
        metadata=metadata,
        network=network,
        images=evenly_spaced(len(index), settings.verify_images),
        limits=limits(settings),
        more={name: (out / FILE_OF_FORMAT[name], limits_of(name, settings)) for name in settings.formats},
    )
    write_sensitivity_page(out, title=variant)
    write_records(out, description, report)
    for line in summary(report):
        log.info("%s", line)
    if not report.passed:
        problems = "; ".join(report.problems)
        raise ModelError(f"{out}: an exported form does not compute what was trained: {problems}; see {VERIFICATION}")


def _run(variant: str) -> dict[str, Any]:
    return training_run(variant, needs={"fingerprint": str})


def _origin(run: dict[str, Any], metadata: ModelMetadata) -> dict[str, Any]:
    """Code, data and run that the model comes from, for `model.json`."""
    started = "".join(
        f", and of the published ones they started from ({origin['licence']})"
        for origin in stated_origin(metadata.extra).values()
    )
    return {
        "licence": f"Apache-2.0 (code); the weights are under the terms of the data they were trained on{started}",
        "data_sha256": dataset_document()["sha256"],
        "data_dvc": dvc_hash("data/ingested"),
        "git_revision": git_revision(),
        "run_id": delivered(run)["run_id"],
        "training": run["fingerprint"],
    }


def limits(settings: Export) -> VerifyLimits:
    """The limits of `params.yaml`."""
    return VerifyLimits(
        raw_difference=settings.max_raw_difference,
        box_difference=settings.max_box_difference,
        ap_difference=settings.max_ap_difference,
    )


def limits_of(name: FormatName, settings: Export) -> VerifyLimits:
    """The limits of an optional format, by its precision."""
    if name in INT8_FORMATS:
        return INT8
    return FLOAT16 if name.endswith("float16") else limits(settings)


def int8_exporter(
    graph: onnx.ModelProto, float_model: Path, validation: Index, params: Params, variant: str
) -> Int8Exporter:
    """An exporter that calibrates on training images and checks AP on validation images."""
    train, settings = open_index("train"), params.export.int8
    augmented = augmented_like(params.training(variant), train) if settings.images == "mosaic" else None
    return Int8Exporter(
        graph, float_model, calibration=train, validation=validation, settings=settings, augmented=augmented
    )


if __name__ == "__main__":
    run_stage(main, variant=True)
