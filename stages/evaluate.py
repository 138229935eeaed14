"""COCO evaluation of the exported files on the test split: `python -m stages.evaluate --variant V`.

The artefact that will be used is measured, not the network it came from: the ONNX file, and beside it the int8 files
of the export. `--model` measures another model on the same data, for a fair comparison; then only `--output` is
written.
"""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.evaluation.int8 import measure_int8
from stages.evaluation.measure import border_of, run_evaluation
from stages.project.command import check_chosen, run_stage
from stages.project.params import Evaluate, Params
from stages.project.workspace import TEST_SPLIT, dataset_document, model_dir, open_index, reports
from yolov7.artefact import DESCRIPTION, ONNX
from yolov7.data.index import Index
from yolov7.errors import ConfigError
from yolov7.evaluate import Evaluation
from yolov7.files import sha256_file, write_json, write_text
from yolov7.letterbox import Border
from yolov7.predict import Predictor, load_detector
from yolov7.report.evaluation import Analysis, analyse, render_report
from yolov7.report.outputs import figures_of, left_out, write_outputs

log = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """Evaluate `models/V/export`, its `model.onnx` and int8 files, into `reports/V`, or `--model` into `--output`."""
    document = dataset_document(needs=TEST_SPLIT)
    index = open_index("test")
    if bool(args.model) != bool(args.output):
        raise ConfigError("--model and --output go together")
    if not args.model:
        check_chosen(params, args.variant)
    model = args.model or str(model_dir(args.variant) / "export" / ONNX)
    if not args.model and not (Path(model).parent / DESCRIPTION).exists():
        # DVC does not come here without it. The figures are those of the file, whatever it was exported with.
        log.warning("%s: no %s beside it: measured alone, and `register` will refuse it", model, DESCRIPTION)
    network = params.network_for(args.variant)  # for a .safetensors file with the user's own blocks
    predictor = load_detector(model, device=device_for(model), network=network)
    result = run_evaluation(predictor, index, params.evaluate)
    analysis = analyse(result, index, resamples=params.evaluate.resamples)
    figures = _figures(predictor, result, analysis, index, document, None if args.model else sha256_file(model))
    figures |= _framing(predictor, params.evaluate)
    int8 = None if args.model else measure_int8(Path(model).parent, result, index, params.evaluate)
    figures |= {"int8": int8.figures()} if int8 else {}
    if args.output:
        write_json(args.output, figures)
    else:
        out = reports(args.variant)
        write_outputs(out, predictor, index, result, figures, pictures=params.evaluate.pictures)
        facts = _facts(model, predictor, index, params.evaluate, document)
        facts |= left_out(result, max_detections=params.evaluate.max_detections)
        page = render_report(args.variant, facts, result, analysis, index, pictures=params.evaluate.pictures, int8=int8)
        write_text(out / "report.html", page)
    shown = ", ".join(f"{name} {figures[name]:.3f}" for name in ("AP", "AP50", "AP75"))
    if predictor.suppression_inside:
        log.warning("%s: measured with the thresholds it has inside: %s", model, figures["suppression_inside"])
    for line in result.uncounted.lines() if result.uncounted and result.uncounted.lost else ():
        log.warning("%s", line)
    log.info("%s on %d test images: %s", model, len(index), shown)


def device_for(model: str) -> str:
    """`YOLOV7_DEVICE` for PyTorch files. Exported files run on the CPU, so that any machine repeats the figures."""
    return os.environ.get("YOLOV7_DEVICE", "auto") if Path(model).suffix.lower() == ".safetensors" else "cpu"


def _framing(predictor: Predictor, settings: Evaluate) -> dict[str, Any]:
    """The border among the figures, where it is not the usual one."""
    border = border_of(predictor, settings)
    return {} if border == Border() else {"border": asdict(border)}


def _figures(
    predictor: Predictor,
    result: Evaluation,
    analysis: Analysis,
    index: Index,
    document: dict[str, Any],
    sha256: str | None,
) -> dict[str, Any]:
    """The twelve COCO figures, the interval of AP, AP by class, kinds of mistakes, and the data and file (`sha256`)
    they belong to.
    """
    return {
        **figures_of(result, analysis, index),
        "test_data_sha256": document["splits"]["test"]["sha256"],
        "test_is_val": document["test_is_val"],
        **({} if sha256 is None else {"artefact_sha256": sha256}),
        **({"suppression_inside": predictor.suppression_inside} if predictor.suppression_inside else {}),
    }


def _facts(
    model: str, predictor: Predictor, index: Index, settings: Evaluate, document: dict[str, Any]
) -> dict[str, str]:
    """Model, data and settings for the report; nothing that differs from run to run."""
    metadata = predictor.metadata
    split = "val (the data has no test split)" if document["test_is_val"] else "test"
    return {
        "Model": f"{model}, {metadata.variant}, {metadata.num_classes} classes, {metadata.image_size} px",
        "Images": f"{len(index):,} of the {split} split, {index.num_boxes:,} objects",
        "Test data": document["splits"]["test"]["sha256"],
        "Settings": f"confidence {settings.confidence:g}, IoU {settings.iou:g}, {settings.max_detections} detections"
        + (", rectangular batches" if settings.rectangular else "")
        + _border_words(border_of(predictor, settings))
        + (f", augmented: {'all' if settings.augment is True else settings.augment}" if settings.augment else ""),
    }


def _border_words(border: Border) -> str:
    words = [f"border of {border.pixels} pixels"] if border.pixels else []
    words += [] if border.integer_offset else ["offset in halves"]
    words += [] if border.exact_scale else ["scale of the height for both axes"]
    words += [] if border.spare == Border().spare else [f"{border.spare:g} strides to spare"]
    return "".join(f", {each}" for each in words)


if __name__ == "__main__":
    run_stage(
        main,
        options=[
            ("--variant", {"required": True, "help": "one of the variants in params.yaml; with --model, any"}),
            ("--model", {"help": "measure this model instead: a file, a folder or models:/NAME@ALIAS"}),
            ("--output", {"help": "where to write its figures as json"}),
        ],
    )
