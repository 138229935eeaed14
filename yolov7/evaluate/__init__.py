"""Evaluation by the COCO tool."""

from yolov7.evaluate.coco import METRICS, coco_metrics, evaluate_detections, ground_truth, write_results
from yolov7.evaluate.curves import PrecisionRecall, write_curves
from yolov7.evaluate.run import EVALUATION, Evaluation, coco_results, evaluate, find_results

__all__ = [
    "EVALUATION",
    "METRICS",
    "Evaluation",
    "PrecisionRecall",
    "coco_metrics",
    "coco_results",
    "evaluate",
    "evaluate_detections",
    "find_results",
    "ground_truth",
    "write_curves",
    "write_results",
]
