"""Measure two models on the same test images, in pairs.

    python -m stages.compare --challenger MODEL --champion MODEL --output FILE

The promotion gate decides by this. Both models run now, on the same images, with the same settings and code, so that
nothing else differs; the interval of the difference comes from a paired bootstrap (yolov7/evaluate/bootstrap.py). The
int8 files of an export folder are measured beside its float file. Models with different classes are not measured: the
document then holds both lists of names, as `class_names`.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.evaluation.int8 import measure_int8
from stages.evaluation.measure import run_evaluation
from stages.project.command import run_stage
from stages.project.params import Params
from stages.project.workspace import dataset_document, open_index
from stages.registry.tags import evaluation_tags
from stages.registry.versions import download_model
from yolov7.data.decode import read_image
from yolov7.data.index import Index
from yolov7.evaluate import Evaluation
from yolov7.evaluate.bootstrap import ap_difference_interval
from yolov7.files import write_json
from yolov7.predict import OnnxNmsRuntime, OnnxRuntime, Predictor, load_detector
from yolov7.predict.benchmark import benchmark

log = logging.getLogger(__name__)

_TIMED_IMAGES = 20


def main(params: Params, args: argparse.Namespace) -> None:
    """Write the comparison to `--output`."""
    index = open_index("test")
    sha256 = dataset_document(needs={"splits.test.sha256": str})["splits"]["test"]["sha256"]
    models = {role: _at(getattr(args, role)) for role in ("challenger", "champion")}
    predictors = {role: load_detector(model) for role, model in models.items()}
    names = {role: list(predictor.metadata.class_names) for role, predictor in predictors.items()}
    if names["challenger"] != names["champion"]:
        write_json(args.output, {"test_data_sha256": sha256, "class_names": names})
        log.info("the two models have different classes: there is nothing to compare")
        return
    results = {role: run_evaluation(predictor, index, params.evaluate) for role, predictor in predictors.items()}
    difference = ap_difference_interval(
        results["challenger"].matches, results["champion"].matches, resamples=params.evaluate.resamples
    )
    document: dict[str, Any] = {
        "images": len(index),
        "test_data_sha256": sha256,
        "AP_difference": {**asdict(difference), "confidence": 0.95},
        "objects": _objects(results["challenger"]),
    }
    for role, predictor in predictors.items():
        document[role] = _figures(getattr(args, role), predictor, results[role], index, sha256, params)
        document[role] |= _int8(models[role], results[role], index, sha256, params)
    write_json(args.output, document)
    ours, theirs = (document[role]["AP"] for role in ("challenger", "champion"))
    log.info("AP %.4f against %.4f, difference within %+.4f and %+.4f", ours, theirs, difference.low, difference.high)


def _at(model: str) -> str:
    """The export folder of a registered version; anything else as it is."""
    return str(download_model(model)) if model.startswith("models:/") else model


def _objects(result: Evaluation) -> dict[str, int]:
    """Test objects by class name."""
    counts = result.matches.truths.sum(axis=1).tolist()
    return dict(zip(result.matches.class_names, map(int, counts), strict=True))


def _figures(
    model: str, predictor: Predictor, result: Evaluation, index: Index, sha256: str, params: Params
) -> dict[str, Any]:
    images = [read_image(index.image_path(position)) for position in range(min(_TIMED_IMAGES, len(index)))]
    timed = benchmark(predictor, images, rounds=_TIMED_IMAGES, warmup=2)
    figures = {**result.metrics, "test_data_sha256": sha256}
    runtime = predictor.runtime
    size = runtime.file.path.stat().st_size / 1e6 if isinstance(runtime, OnnxRuntime | OnnxNmsRuntime) else None
    return {
        "model": model,
        "AP": result.metrics["AP"],
        "AP50": result.metrics["AP50"],
        "per_class": result.per_class,
        "latency_ms": timed.timings[-1].median,
        "size_mb": size,
        "tags": evaluation_tags(figures, params.evaluate),
    }


def _int8(model: str, floats: Evaluation, index: Index, sha256: str, params: Params) -> dict[str, Any]:
    """The int8 files of an export folder, and the tags with their AP; empty where it has none."""
    found = measure_int8(Path(model), floats, index, params.evaluate, rounds=_TIMED_IMAGES)
    if found is None:
        return {}
    figures = {**floats.metrics, "test_data_sha256": sha256, "int8": found.figures()}
    return {"int8": found.figures(), "tags": evaluation_tags(figures, params.evaluate)}


if __name__ == "__main__":
    run_stage(
        main,
        options=[
            ("--challenger", {"required": True, "help": "a file, a folder or models:/NAME/VERSION"}),
            ("--champion", {"required": True, "help": "a file, a folder or models:/NAME/VERSION"}),
            ("--output", {"required": True, "help": "where to write the comparison as json"}),
        ],
    )
