"""Re-parameterise, export and verify one variant: `python -m stages.export --variant V`.

What is written is compared with the trained network on real validation images, by tensor, by detection and by AP, and
the stage fails beyond the limits of `params.yaml: export`. `verify.json` holds the figures either way.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from stages.command import run_stage
from stages.params import Export, Params
from stages.provenance import INGESTED, dataset_document, dvc_hash, git_revision, read_json
from yolov7.data.index import Index
from yolov7.errors import ModelError
from yolov7.export import VerifyLimits, VerifyReport, export_folder, verify
from yolov7.export.folder import ONNX, ONNX_NMS, SAFETENSORS
from yolov7.files import write_json
from yolov7.model import load_checkpoint

log = logging.getLogger(__name__)

INDEX = Path("data/index/val")


def main(params: Params, args: argparse.Namespace) -> None:
    """Write `models/V/export`."""
    variant, settings = args.variant, params.export
    trained_folder, out = Path("models") / variant / "train", Path("models") / variant / "export"
    trained, metadata = load_checkpoint(trained_folder / "best.safetensors")
    document = dataset_document()
    run = read_json(trained_folder / "run.json", f"dvc repro train@{variant}")
    export_folder(
        trained,
        out,
        metadata=metadata,
        opset=settings.opset,
        dynamic=settings.dynamic,
        confidence=settings.confidence,
        iou=settings.iou,
        max_detections=settings.max_detections,
        extra={
            "licence": "Apache-2.0 (code); the weights are under the terms of the data they were trained on",
            "data_sha256": document["sha256"],
            "data_dvc": dvc_hash("data/ingested"),
            "git_revision": git_revision(),
            "run_id": run["run_id"],
        },
    )
    index = Index.open(INDEX, image_root=INGESTED / "val/images")
    report = verify(
        trained,
        out / SAFETENSORS,
        out / ONNX,
        out / ONNX_NMS,
        index,
        metadata=metadata,
        images=spread(len(index), settings.verify_images),
        limits=limits(settings),
    )
    write_json(out / "verify.json", report.to_dict())
    write_json(out / "metrics.json", headline(report))
    for line in summary(report):
        log.info("%s", line)
    if not report.passed:
        problems = "; ".join(report.problems)
        raise ModelError(f"{out}: an exported form does not compute what was trained: {problems}; see verify.json")


def limits(settings: Export) -> VerifyLimits:
    """The limits as `params.yaml` gives them."""
    return VerifyLimits(
        raw_difference=settings.max_raw_difference,
        box_difference=settings.max_box_difference,
        ap_difference=settings.max_ap_difference,
    )


def spread(length: int, count: int) -> list[int]:
    """`count` positions at even distances through `length` images, each once."""
    return sorted(set(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()))


def headline(report: VerifyReport) -> dict[str, float]:
    """What `dvc metrics show` tells of it, over all forms; verify.json has the rest."""
    boxes = [form.max_box_difference for form in report.forms if form.max_box_difference is not None]
    return {
        "verify_AP_difference": max(abs(form.ap - form.trained_ap) for form in report.forms),
        "verify_box_difference_px": max(boxes, default=0.0),
    }


def summary(report: VerifyReport) -> list[str]:
    """One line a form."""
    lines = []
    for form in report.forms:
        raw = "" if form.max_raw_difference is None else f"scores within {form.max_raw_difference:.1e}, "
        boxes = "" if form.max_box_difference is None else f"boxes within {form.max_box_difference:.1e} px, "
        state = "agrees" if form.passed else "DIFFERS"
        lines.append(f"{form.name} {state}: {raw}{boxes}AP {form.ap:.3f} (trained {form.trained_ap:.3f})")
    return lines


if __name__ == "__main__":
    run_stage(main, variant=True)
