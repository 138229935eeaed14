"""The trainings of the candidates."""

from __future__ import annotations

from pathlib import Path

from stages.project.params import Params
from stages.trials.shorten import short_run
from stages.trials.trial import Trial, TrialResult
from yolov7.errors import ConfigError, DataError, nearest


def candidate(params: Params, variant: str, epochs: int) -> Trial:
    """The training of a candidate for a rung: for `train.epochs` what the train stage trains."""
    known = list(params.choice.candidates)
    if variant not in known:
        raise ConfigError(f"--variant: {variant!r} is not in params.yaml: choice.candidates{nearest(variant, known)}")
    if epochs < 1:
        raise ConfigError(f"--epochs: a number from 1 on is expected, got {epochs}")
    train = params.training(variant)
    return Trial.of(variant, params.training(variant, short_run(train, epochs)))


def finished(trial: Trial) -> tuple[Path, TrialResult]:
    """The best weights and the figures of a finished training. Raises :class:`DataError` where it is not finished."""
    result = trial.result(weights=True)
    if result is None:
        epochs = trial.train.epochs
        raise DataError(f"{trial.variant} is not trained for {epochs} epochs; run `python -m flows.choose_model`")
    return trial.weights, result
