"""The COCO metric by its own tool: ground truth and results in memory, the 12 figures, AP per class, the curves.

The figures are pycocotools' (reference: training sheet, section 9); built-in metrics of detection code bases are known
to differ from it by a point and more. For the twelve figures alone, every few epochs of a training, hotcoco gives the
same ones many times faster (docs/benchmarks.md). The tools' own output is discarded.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import Index
from yolov7.errors import DataError
from yolov7.evaluate.curves import PrecisionRecall, curves_from
from yolov7.evaluate.matches import Matching, matching_of
from yolov7.files import write_text

Result = dict[str, Any]
"""One detection: image_id, category_id, bbox [left, top, width, height] in pixels, score."""

Truth: TypeAlias = COCO | Index | CocoAnnotations | Mapping[str, Any]
"""Ground truth, or a source of it for :func:`ground_truth`."""

Engine = Literal["pycocotools", "hotcoco"]
"""Library that measures."""

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The COCO tool's twelve figures in its own order; s, m, l are areas up to 32², 96² and above, in pixels."""

UNDEFINED = -1.0
"""The COCO tool's value of a figure without ground truth."""


@dataclass(frozen=True)
class Scores:
    """Figures of the COCO tool for a set of results."""

    metrics: dict[str, float]
    """The twelve figures of :data:`METRICS`; -1 without ground truth."""
    per_class: dict[str, float]
    """AP by class name; -1 for a class without ground truth."""
    curves: PrecisionRecall
    """Precision at 101 recall points, by class and on average."""
    matches: Matching
    """Detections matched with objects."""


def ground_truth(source: Index | CocoAnnotations | Mapping[str, Any], images: Sequence[int] | None = None) -> COCO:
    """COCO ground truth in memory, from an index, an annotation file that was read, or its plain dictionary.

    `images` restricts an index to these positions (default: all). Annotations are renumbered from 1: the
    COCO tool takes a match with annotation 0 for no match.
    """
    if isinstance(source, Index):
        dataset = _from_index(source, range(len(source)) if images is None else images)
    elif isinstance(source, CocoAnnotations):
        dataset = _from_records(source.images, source.annotations, source.categories)
    else:
        dataset = _from_records(source["images"], source["annotations"], source["categories"])
    return _coco(dataset)


def evaluate_detections(truth: Truth, results: Sequence[Mapping[str, Any]]) -> Scores:
    """Score `results` (COCO result records) against the ground truth, over all of its images.

    Raises :class:`DataError` for a result whose image or category is not in the ground truth (a sign of wrongly mapped
    class numbers) or that holds a value that is not finite. The records are not changed.
    """
    coco = truth if isinstance(truth, COCO) else ground_truth(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        tool = COCOeval(coco, _coco_of_results(coco, results), iouType="bbox")
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    metrics = {name: float(value) for name, value in zip(METRICS, tool.stats, strict=True)}
    categories = [(number, coco.cats[number]["name"]) for number in tool.params.catIds]
    precision = tool.eval["precision"][:, :, :, 0, -1]  # (T IoU thresholds, R recalls, C): all areas, 100 detections
    per_class = {name: _mean(precision[:, :, column]) for column, (_, name) in enumerate(categories)}
    curves = curves_from(precision, tool.eval["scores"][:, :, :, 0, -1], [name for _, name in categories])
    return Scores(metrics, per_class, curves, matching_of(tool))


def coco_metrics(truth: Truth, results: Sequence[Mapping[str, Any]], *, engine: Engine = "hotcoco") -> dict[str, float]:
    """Only the twelve figures of :func:`evaluate_detections`, with the same errors. Engines agree to 1e-9."""
    coco = truth if isinstance(truth, COCO) else ground_truth(truth)
    if engine == "pycocotools":
        return evaluate_detections(coco, results).metrics
    dataset, detections = _renumbered(coco, results)
    with contextlib.redirect_stdout(io.StringIO()):
        fast = hotcoco.COCO(dataset)
        tool = hotcoco.COCOeval(fast, fast.load_res(detections), "bbox")
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    return {name: float(value) for name, value in zip(METRICS, tool.stats, strict=True)}


def _renumbered(truth: COCO, results: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[Result]]:
    """Truth and results with images and categories numbered from 0 in the order of their ids, as hotcoco needs them.

    The order is the one in which the tools sum up.
    """
    images = {number: place for place, number in enumerate(sorted(truth.imgs))}
    categories = {number: place for place, number in enumerate(sorted(truth.cats))}

    def renumbered(record: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        number, category = images[record["image_id"]], categories[record["category_id"]]
        return {
            **record,
            "image_id": number,
            "category_id": category,
            "bbox": [float(v) for v in record["bbox"]],
            **more,
        }

    for number, result in enumerate(results, start=1):
        _check_result(truth, number, result, [float(side) for side in result["bbox"]], float(result["score"]))
    dataset = {
        "images": [{"id": place, "width": 1, "height": 1, "file_name": ""} for place in images.values()],
        "annotations": [renumbered(record) for record in truth.dataset["annotations"]],
        "categories": [{"id": place, "name": str(place)} for place in categories.values()],
    }
    fields = ({key: result[key] for key in ("image_id", "category_id", "bbox", "score")} for result in results)
    return dataset, [renumbered(result, score=float(result["score"])) for result in fields]


def write_results(path: str | os.PathLike[str], results: Iterable[Mapping[str, Any]]) -> None:
    """Write COCO results as JSON, one record per line: boxes to 3 decimals, scores to 5 (training sheet, section 9)."""
    lines = [
        json.dumps({**record, "bbox": [round(side, 3) for side in record["bbox"]], "score": round(record["score"], 5)})
        for record in results
    ]
    write_text(path, "[" + ",\n".join(lines) + "]\n")


def _mean(values: np.ndarray) -> float:
    defined = values[values > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED


def _coco(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _from_records(
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    records: list[dict[str, Any]] = []
    for number, annotation in enumerate(annotations, start=1):
        box = annotation["bbox"]
        records.append(
            {
                "id": number,
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": list(box),
                "area": annotation.get("area", box[2] * box[3]),
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    return {"images": [dict(i) for i in images], "annotations": records, "categories": [dict(c) for c in categories]}


def _from_index(index: Index, images: Iterable[int]) -> dict[str, Any]:
    pictures: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for position in images:
        height, width = index.size(position)
        image_id = index.image_id(position)
        pictures.append({"id": image_id, "height": height, "width": width})
        columns = (index.coco_boxes(position), index.labels(position), index.areas(position), index.crowd(position))
        for box, label, area, is_crowd in zip(*(column.tolist() for column in columns), strict=True):
            records.append(
                {
                    "id": len(records) + 1,
                    "image_id": image_id,
                    "category_id": index.category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(is_crowd),
                }
            )
    categories = [
        {"id": number, "name": name} for number, name in zip(index.category_ids, index.class_names, strict=True)
    ]
    return {"images": pictures, "annotations": records, "categories": categories}


def _coco_of_results(truth: COCO, results: Sequence[Mapping[str, Any]]) -> COCO:
    """Results as the COCO tool's second operand. Its own loader prints, changes its input and fails without results."""
    records = []
    for number, result in enumerate(results, start=1):
        box, score = [float(side) for side in result["bbox"]], float(result["score"])
        _check_result(truth, number, result, box, score)
        records.append(
            {
                "id": number,
                "image_id": result["image_id"],
                "category_id": result["category_id"],
                "bbox": box,
                "score": score,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
        )
    dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": records}
    return _coco(dataset)


def _check_result(truth: COCO, number: int, result: Mapping[str, Any], box: list[float], score: float) -> None:
    if result["image_id"] not in truth.imgs:
        raise DataError(f"detection {number}: image {result['image_id']!r} is not in the ground truth")
    if result["category_id"] not in truth.cats:
        raise DataError(
            f"detection {number}: category {result['category_id']!r} is not in the ground truth; "
            "were class numbers written in place of category ids?"
        )
    if len(box) != 4 or not all(math.isfinite(value) for value in (*box, score)):
        raise DataError(f"detection {number}: box {box} with score {score} is not four finite sides and a finite score")
