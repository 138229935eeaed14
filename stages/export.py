"""Re-parameterise, export and verify one variant: `python -m stages.export --variant V`.

Every exported file is compared with the trained network on real validation images, by tensor, by detection and by AP.
The stage fails beyond the limits of `params.yaml: export`; `verify.json` holds the figures either way.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import onnx

from stages.project.command import run_stage
from stages.project.params import Export, Params
from stages.project.provenance import dvc_hash, git_revision
from stages.project.workspace import dataset_document, model_dir, open_index, quantized_dir, read_json, training_run
from stages.registry.journal import delivered
from yolov7.artefact import (
    FILE_OF_FORMAT,
    INT8_FORMATS,
    ONNX,
    ONNX_NMS,
    QUANTIZED,
    SAFETENSORS,
)
from yolov7.data.index import Index
from yolov7.errors import DataError, ModelError
from yolov7.export import VerifyLimits, VerifyReport, export_folder, limits_of, verify
from yolov7.export.int8 import Int8Exporter
from yolov7.export.onnx import described, export_onnx
from yolov7.export.records import VERIFICATION, summary, write_records
from yolov7.export.samples import augmented_like, evenly_spaced
from yolov7.files import sha256_file
from yolov7.model import Detector, ModelMetadata, load_checkpoint
from yolov7.model.quantized import learnt_ranges
from yolov7.model.spec import Network
from yolov7.ranges import Range
from yolov7.report.sensitivity import write_sensitivity_page
from yolov7.weights.origin import stated_origin

log = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """Write `models/V/export`."""
    trained = model_dir(args.variant) / "train"
    weights, out = trained / "best.safetensors", model_dir(args.variant) / "export"
    export(params, args.variant, weights, out, run=_run(args.variant), quantized=quantized_file(args.variant, weights))


def quantized_file(variant: str, weights: Path) -> Path | None:
    """The network that the quantize stage made of these weights; None where it made none.

    Raises :class:`DataError` for one of other weights.
    """
    folder, command = quantized_dir(variant), f"dvc repro quantize@{variant}"
    if not (folder / QUANTIZED).is_file():
        return None
    run = read_json(folder / "run.json", command, needs={"float.sha256": str})
    if run["float"]["sha256"] != sha256_file(weights):
        raise DataError(f"was made of other weights than {weights}; run `{command}`", path=folder / QUANTIZED)
    return folder / QUANTIZED


def export(
    params: Params, variant: str, checkpoint: Path, out: Path, *, run: dict[str, Any], quantized: Path | None = None
) -> None:
    """Export the weights of a training to the folder `out`, and verify every file; `run` describes the training.

    The int8 files are of the network `quantized`, if there is one, with the ranges that it has learnt. Raises
    :class:`ModelError` where a file does not compute what was trained.
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
        int8=lambda graph, float_model: int8_exporter(graph, float_model, index, params, variant, quantized=quantized),
        extra=_origin(run, metadata),
    )
    report = verified(trained, out, index, settings, metadata=metadata, network=network, quantized=quantized)
    write_sensitivity_page(out, title=variant)
    write_records(out, description, report)
    for line in summary(report):
        log.info("%s", line)
    if not report.passed:
        problems = "; ".join(report.problems)
        raise ModelError(f"{out}: an exported form does not compute what was trained: {problems}; see {VERIFICATION}")


def verified(
    trained: Detector,
    out: Path,
    index: Index,
    settings: Export,
    *,
    metadata: ModelMetadata,
    network: Network | None = None,
    quantized: Path | None = None,
) -> VerifyReport:
    """Every file of the export folder `out` against the network that it is of: int8 files of a `quantized` network
    against that one, which its training may have moved away from the float network, for the better too."""
    artefacts = out / SAFETENSORS, out / ONNX, out / ONNX_NMS, index
    how: dict[str, Any] = {
        "metadata": metadata,
        "network": network,
        "images": evenly_spaced(len(index), settings.verify_images),
        "limits": limits(settings),
    }
    own: dict[str, tuple[str | os.PathLike[str], VerifyLimits]] = {}
    others: dict[str, tuple[str | os.PathLike[str], VerifyLimits]] = {}
    for name in settings.formats:
        kind = own if quantized is not None and name in INT8_FORMATS else others
        kind[name] = (out / FILE_OF_FORMAT[name], limits_of(name, limits(settings)))
    report = verify(trained, *artefacts, **how, more=others)
    if quantized is not None and own:
        source, _ = load_checkpoint(quantized, network=network)
        report.forms += [form for form in verify(source, *artefacts, **how, more=own).forms if form.name in own]
    return report


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


def int8_exporter(
    graph: onnx.ModelProto,
    float_model: Path,
    validation: Index,
    params: Params,
    variant: str,
    *,
    quantized: Path | None = None,
) -> Int8Exporter:
    """An exporter that calibrates on training images and checks AP on validation images.

    With a `quantized` network its graph takes the place of `graph`, and its ranges come first.
    """
    learnt = None
    if quantized is not None:
        graph, learnt = quantized_graph(quantized, graph, params, variant)
    train, settings = open_index("train"), params.export.int8
    augmented = augmented_like(params.training(variant), train) if settings.images == "mosaic" else None
    return Int8Exporter(
        graph,
        float_model,
        calibration=train,
        validation=validation,
        settings=settings,
        augmented=augmented,
        learnt=learnt,
    )


def quantized_graph(
    path: Path, like: onnx.ModelProto, params: Params, variant: str
) -> tuple[onnx.ModelProto, dict[str, Range]]:
    """The graph of a quantised network, exported and described as the float network's is, and its learnt ranges."""
    model, _ = load_checkpoint(path, network=params.network_for(variant))
    settings, (metadata, _) = params.export, described(like)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ONNX
        graph = export_onnx(model, file, metadata=metadata, opset=settings.opset, dynamic=settings.dynamic)
    return graph, learnt_ranges(model)


if __name__ == "__main__":
    run_stage(main, variant=True)
