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
from stages.project.workspace import dataset_document, model_dir, open_index, read_json, training_run
from stages.registry.journal import delivered
from yolov7.artefact import (
    DESCRIPTION,
    FILE_OF_FORMAT,
    FORMATS_FILE,
    ONNX,
    ONNX_NMS,
    SAFETENSORS,
    FormatName,
    listed,
)
from yolov7.data.index import Index
from yolov7.errors import ModelError
from yolov7.export import FLOAT16, INT8, VerifyLimits, VerifyReport, export_folder, verify
from yolov7.export.int8 import Int8Exporter
from yolov7.export.model_card import MODEL_CARD, model_card
from yolov7.export.samples import evenly_spaced
from yolov7.files import write_json, write_text
from yolov7.model import load_checkpoint

log = logging.getLogger(__name__)

VERIFICATION, FIGURES = "verify.json", "metrics.json"


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
        int8=lambda graph, float_model: int8_exporter(graph, float_model, index, settings),
        extra=_origin(run),
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
    _write_records(out, description, report)
    for line in summary(report):
        log.info("%s", line)
    if not report.passed:
        problems = "; ".join(report.problems)
        raise ModelError(f"{out}: an exported form does not compute what was trained: {problems}; see {VERIFICATION}")


def _run(variant: str) -> dict[str, Any]:
    return training_run(variant, needs={"fingerprint": str})


def _origin(run: dict[str, Any]) -> dict[str, Any]:
    """Code, data and run that the model comes from, for `model.json`."""
    return {
        "licence": "Apache-2.0 (code); the weights are under the terms of the data they were trained on",
        "data_sha256": dataset_document()["sha256"],
        "data_dvc": dvc_hash("data/ingested"),
        "git_revision": git_revision(),
        "run_id": delivered(run)["run_id"],
        "training": run["fingerprint"],
    }


def _write_records(out: Path, description: dict[str, Any], report: VerifyReport) -> None:
    """Verification, figures and card; then `model.json`, the manifest of all the others."""
    description["figures"] = figures(report)
    verified = {name: entry["sha256"] for name, entry in description["files"].items()}
    write_json(out / VERIFICATION, {**report.to_dict(), "files": verified})
    write_json(out / FIGURES, headline(report))
    write_text(out / MODEL_CARD, model_card(description, report.to_dict(), read_json(out / FORMATS_FILE, "dvc repro")))
    description["files"] |= listed(out, [VERIFICATION, FIGURES, MODEL_CARD])
    write_json(out / DESCRIPTION, description)


def figures(report: VerifyReport) -> dict[str, Any]:
    """The verification for model.json: AP of every file, and of the trained network at the same thresholds."""
    forms = {form.name: {"AP": form.ap, "trained_AP": form.trained_ap, "passed": form.passed} for form in report.forms}
    return {"validation_images": len(report.images), "forms": forms}


def limits(settings: Export) -> VerifyLimits:
    """The limits of `params.yaml`."""
    return VerifyLimits(
        raw_difference=settings.max_raw_difference,
        box_difference=settings.max_box_difference,
        ap_difference=settings.max_ap_difference,
    )


def limits_of(name: FormatName, settings: Export) -> VerifyLimits:
    """The limits of an optional format, by its precision."""
    if name.endswith("int8"):
        return INT8
    return FLOAT16 if name.endswith("float16") else limits(settings)


def int8_exporter(graph: onnx.ModelProto, float_model: Path, validation: Index, settings: Export) -> Int8Exporter:
    """An exporter that calibrates on training images and checks AP on validation images."""
    train = open_index("train")
    return Int8Exporter(graph, float_model, calibration=train, validation=validation, settings=settings.int8)


def headline(report: VerifyReport) -> dict[str, float]:
    """The figures for `dvc metrics show`, over the forms that must agree up to rounding; verify.json has the rest."""
    exact = [form for form in report.forms if form.limits == report.limits]
    boxes = [form.max_box_difference for form in exact if form.max_box_difference is not None]
    return {
        "verify_AP_difference": max(abs(form.ap - form.trained_ap) for form in exact),
        "verify_box_difference_px": max(boxes, default=0.0),
    }


def summary(report: VerifyReport) -> list[str]:
    """One line per form."""
    lines = []
    for form in report.forms:
        raw = "" if form.max_raw_difference is None else f"scores within {form.max_raw_difference:.1e}, "
        boxes = "" if form.max_box_difference is None else f"boxes within {form.max_box_difference:.1e} px, "
        state = "agrees" if form.passed else "DIFFERS"
        lines.append(f"{form.name} {state}: {raw}{boxes}AP {form.ap:.3f} (trained {form.trained_ap:.3f})")
    return lines


if __name__ == "__main__":
    run_stage(main, variant=True)
