"""AP of one detector on one index, with the settings of `params.yaml: evaluate`."""

from __future__ import annotations

from stages.project.params import Evaluate
from yolov7.data.index import Index
from yolov7.evaluate import Evaluation, evaluate
from yolov7.letterbox import Border
from yolov7.model.variants.borders import published_border
from yolov7.predict import AugmentedRuntime, Predictor
from yolov7.predict.augmented import Views


def run_evaluation(predictor: Predictor, index: Index, settings: Evaluate) -> Evaluation:
    """Evaluate with the settings of `params.yaml`."""
    return evaluate(
        _decoder(predictor, settings),
        index,
        batch_size=settings.batch_size,
        confidence=settings.confidence,
        iou=settings.iou,
        max_detections=settings.max_detections,
        rectangular=settings.rectangular,
        border=border_of(predictor, settings),
    )


def border_of(predictor: Predictor, settings: Evaluate) -> Border:
    """The grey border of `params.yaml` for this model."""
    given = settings.border
    pixels = published_border(predictor.metadata.variant) if given.pixels == "published" else given.pixels
    return Border(pixels, given.integer_offset, given.exact_scale, given.spare)


def _decoder(predictor: Predictor, settings: Evaluate) -> Predictor | AugmentedRuntime:
    if not settings.augment:
        return predictor
    views: Views = "all" if settings.augment is True else settings.augment
    return AugmentedRuntime(predictor.runtime, views)  # type: ignore[arg-type]  # checked at run time
