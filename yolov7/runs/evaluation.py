"""`evaluate_model`: COCO figures of any detector on a split of a data set, with a report."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from yolov7.data.index import Index
from yolov7.errors import ConfigError, nearest
from yolov7.evaluate import EVALUATION, Evaluation, evaluate
from yolov7.evaluate.run import Progress
from yolov7.files import write_text
from yolov7.letterbox import Border
from yolov7.model.spec import Network
from yolov7.predict import Predictor, load_detector
from yolov7.predict.benchmark import precision_of
from yolov7.report.evaluation import analyse, render_report
from yolov7.report.outputs import figures_of, left_out, write_outputs
from yolov7.runs.data import DESCRIPTION, DataSet, open_data
from yolov7.runs.folder import RunFolder

SPLITS = ("train", "val", "test")
REPORT = "report.html"
_FILES = (
    "metrics.json", "summary.json", "results.json", "per_class.csv", "precision_recall.csv", "detections", REPORT,
)  # fmt: skip
"""Written into an evaluation's folder after the index of the data."""


def evaluate_model(
    model: str | os.PathLike[str],
    *,
    data: DataSet,
    split: str = "val",
    out: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    image_size: int | None = None,
    batch_size: int = 16,
    confidence: float = EVALUATION.confidence,
    iou: float = EVALUATION.iou,
    max_detections: int = EVALUATION.max_detections,
    rectangular: bool = False,
    border: int = 0,
    pictures: int = 12,
    resamples: int = 200,
    data_options: Mapping[str, Any] | None = None,
    drop_bad_boxes: bool = False,
    network: Network | str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate `model`, whatever :func:`yolov7.load_detector` loads, on the images of `split`.

    The defaults are the settings of the published figures and of the pipeline, and give the same numbers
    (:func:`yolov7.evaluate.evaluate`). `border`: grey pixels along an image's long side. With `out`, `metrics.json`,
    tables, curves, the results in COCO form, `pictures` of detections beside the truth and `report.html` are written
    there. Raises :class:`ConfigError` for an unknown split or settings out of range, :class:`DataError` for wrong data
    and unreadable images, :class:`ModelError` for a model of other classes.
    """
    if split not in SPLITS:
        raise ConfigError(f"split: {split!r} is not one{nearest(split, list(SPLITS))}")
    if out is not None:
        _refuse_foreign(Path(out), split)
    predictor = load_detector(model, device=device, network=network)
    with _place(out) as folder:
        opened = open_data(
            data,
            Path(folder) / "data",
            splits=(split,),
            options=data_options,
            drop_bad_boxes=drop_bad_boxes,
            class_names=tuple(predictor.metadata.class_names),
        )
        index = opened.indices[split]
        result = evaluate(
            predictor,
            index,
            image_size=image_size,
            batch_size=batch_size,
            confidence=confidence,
            iou=iou,
            max_detections=max_detections,
            rectangular=rectangular,
            border=Border(border),
            progress=progress,
        )
        if out is not None:
            settings = f"confidence {confidence:g}, IoU {iou:g}, {max_detections} detections"
            settings += ", rectangular batches" if rectangular else ""
            settings += f", border of {border} pixels" if border else ""
            facts = _facts(model, predictor, index, split, opened.source, opened.sha256, settings)
            facts |= left_out(result, max_detections=max_detections)
            _write(Path(out), predictor, index, result, facts, pictures=pictures, resamples=resamples)
    return result


def _refuse_foreign(out: Path, split: str) -> None:
    """Raise :class:`ConfigError` for a folder of something else whose files would be written over."""
    run = RunFolder(out)
    if run.has_record():
        raise ConfigError(
            f"{out}: the folder of a training; write into one of its own, such as {run.evaluation(split)}"
        )
    taken = [name for name in _FILES if os.path.lexists(out / name)]
    if taken and not (out / "data" / DESCRIPTION).is_file():  # comes before those files
        raise ConfigError(f"{out}: holds {', '.join(taken)}, not of an evaluation; name another folder")


def _place(out: str | os.PathLike[str] | None) -> AbstractContextManager[str | os.PathLike[str]]:
    """The folder for the index of the data: `out`, or one that is removed afterwards."""
    if out is not None:
        return nullcontext(out)
    return tempfile.TemporaryDirectory(prefix="yolov7-", ignore_cleanup_errors=True)


def _facts(
    model: str | os.PathLike[str],
    predictor: Predictor,
    index: Index,
    split: str,
    source: str,
    sha256: str,
    settings: str,
) -> dict[str, str]:
    """Model, data and settings for the report."""
    metadata, precision = predictor.metadata, precision_of(predictor.runtime)
    return {
        "Model": f"{os.fspath(model)}, {metadata.variant}, {metadata.num_classes} classes, {metadata.image_size} px"
        + (f", {precision}" if precision != "float32" else ""),
        "Images": f"{len(index):,} of the {split} split, {index.num_boxes:,} objects",
        "Data": f"{source} ({sha256})",
        "Settings": settings,
    }


def _write(
    out: Path,
    predictor: Predictor,
    index: Index,
    result: Evaluation,
    facts: dict[str, str],
    *,
    pictures: int,
    resamples: int,
) -> None:
    analysis = analyse(result, index, resamples=resamples)
    inside = {"suppression_inside": predictor.suppression_inside} if predictor.suppression_inside else {}
    figures = {**figures_of(result, analysis, index), **inside}
    write_outputs(out, predictor, index, result, figures, pictures=pictures)
    page = render_report(predictor.metadata.variant, facts, result, analysis, index, pictures=pictures)
    write_text(out / REPORT, page)
