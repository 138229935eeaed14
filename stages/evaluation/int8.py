"""The int8 files of an export, measured as its float file is: on the same images, with the same settings."""

from __future__ import annotations

import logging
from pathlib import Path

from stages.evaluation.measure import run_evaluation
from stages.evaluation.timing import TIMED_IMAGES, first_images, timed
from stages.project.params import Evaluate
from yolov7.artefact import ONNX
from yolov7.data.index import Index
from yolov7.evaluate import Evaluation
from yolov7.evaluate.bootstrap import ap_difference_interval
from yolov7.files import sha256_file
from yolov7.int8_files import int8_files, read_makings, size_mb
from yolov7.predict import load_detector
from yolov7.report.int8 import EightBits, FileFigures, Int8Figures

log = logging.getLogger(__name__)


def measure_int8(
    folder: Path, floats: Evaluation, index: Index, settings: Evaluate, *, rounds: int = TIMED_IMAGES
) -> EightBits | None:
    """Figures of every int8 file in an export folder beside those of its `model.onnx`; None where it has none.

    `floats` is the evaluation of `model.onnx` on `index`. All files are timed in turn. Raises :class:`ModelError` for
    a file that is missing or differs from the manifest.
    """
    names = int8_files(folder)
    if not names:
        return None
    results = {}
    for name in names:
        results[name] = run_evaluation(load_detector(folder / name), index, settings)
        log.info("%s on %d test images: AP %.3f", folder / name, len(index), results[name].metrics["AP"])
    times = timed(
        {name: folder / name for name in (ONNX, *names)}, first_images(index, rounds), settings, rounds=rounds
    )

    def figures(name: str, result: Evaluation) -> FileFigures:
        latency = times[name].timings[-1].median
        return FileFigures(Path(name).name, result.metrics, result.per_class, size_mb(folder / name), latency)

    measured = [
        Int8Figures(
            figures(name, result),
            ap_difference_interval(result.matches, floats.matches, resamples=settings.resamples),
            sha256_file(folder / name),
        )
        for name, result in results.items()
    ]
    return EightBits(figures(ONNX, floats), measured, read_makings(folder))
