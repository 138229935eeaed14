"""Files of an evaluation: figures, tables and curves for `dvc plots`, results in COCO form, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolov7.data.decode import read_image
from yolov7.data.index import Index
from yolov7.evaluate import Evaluation, write_results
from yolov7.evaluate.left_out import images_cut_short
from yolov7.files import write_json, write_text
from yolov7.folders import replace_folder
from yolov7.predict import Predictor
from yolov7.predict.draw import draw_boxes, draw_detections, write_picture
from yolov7.report.evaluation import Analysis
from yolov7.text import csv_text

SUMMARY = ("AP", "AP_low", "AP_high", "AP50", "AP75", "APs", "APm", "APl", "AR100", "F1")
INT8_SUMMARY = ("AP", "AP50", "AP75", "AP_difference", "size_mb")
"""Of each int8 file; without times, so that the same files give the same summary."""


def figures_of(result: Evaluation, analysis: Analysis, index: Index) -> dict[str, Any]:
    """The twelve COCO figures, the interval of AP, AP by class, kinds of mistakes, and the size of the data."""
    return {
        **result.metrics,
        "AP_low": analysis.interval.low,
        "AP_high": analysis.interval.high,
        "best_confidence": analysis.errors.confidence,
        "F1": analysis.f1,
        "mistakes": analysis.errors.counts,
        "per_class": result.per_class,
        "images": len(index),
        "boxes": index.num_boxes,
    }


def left_out(result: Evaluation, *, max_detections: int) -> dict[str, str]:
    """Objects and detections that the figures leave out, for the report."""
    lines = result.uncounted.lines() if result.uncounted else []
    cut = images_cut_short(result.results, max_detections=max_detections)
    return {
        "Objects not counted": "; ".join(line.strip() for line in lines[1:]) or "none",
        "Detections cut": f"{cut:,} images reach the {max_detections} that are kept" if cut else "none",
    }


def write_outputs(
    out: Path, predictor: Predictor, index: Index, result: Evaluation, figures: dict[str, Any], *, pictures: int
) -> None:
    """Write `metrics.json`, `summary.json`, the tables and curves for `dvc plots`, the results, and pictures."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", figures)
    write_json(out / "summary.json", _summary(figures))
    write_results(out / "results.json", result.results)
    write_text(out / "per_class.csv", csv_text(["class", "AP"], result.per_class.items()))
    curves = result.curves
    rows = zip(curves.recall, curves.mean_precision50, curves.mean_precision, strict=True)
    points = ([f"{r:.2f}", f"{first:.6f}", f"{second:.6f}"] for r, first, second in rows)
    write_text(out / "precision_recall.csv", csv_text(["recall", "precision_at_50", "precision"], points))
    with replace_folder(out / "detections") as folder:
        _draw_pictures(folder, predictor, index, pictures)


def _summary(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures for `dvc metrics show`."""
    summary: dict[str, Any] = {name: figures[name] for name in SUMMARY}
    if "int8" in figures:
        summary["int8"] = {
            file: {name: measured[name] for name in INT8_SUMMARY} for file, measured in figures["int8"].items()
        }
    return summary


def _draw_pictures(folder: Path, predictor: Predictor, index: Index, most: int) -> None:
    """Draw test images, evenly spread over the split: truth on the left, detections on the right."""
    count = min(most, len(index))
    for position in np.linspace(0, len(index) - 1, count).round().astype(int).tolist():
        path = index.image_path(position)
        image = read_image(path)
        labels = index.labels(position)
        names = [index.class_names[label] for label in labels]
        truth = draw_boxes(image, index.boxes(position), labels, names)
        found = draw_detections(image, predictor.predict(image)[0], index.class_names)
        pair = np.concatenate([truth, np.full_like(truth[:, :8], 255), found], axis=1)
        write_picture(folder / f"{index.image_id(position)}.jpg", pair, quality=92)
