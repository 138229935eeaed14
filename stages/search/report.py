"""The results of a search: the page, `best.yaml`, and their copies in MLflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from stages.search.space import Space
from stages.search.study import DEFAULT, ERROR, SURPLUS, ParameterStudy
from stages.trials.shorten import nested
from stages.trials.trial import Trial
from yolov7.files import write_json, write_text
from yolov7.report.search import Confirmed, SearchDocument, TrialRow, render_search

log = logging.getLogger(__name__)

FOLDER = Path("reports/search")
PAGE, BEST, FIGURES = FOLDER / "index.html", FOLDER / "best.yaml", FOLDER / "search.json"


def write_report(study: ParameterStudy) -> dict[str, Any]:
    """Write `reports/search`, and send it to the MLflow run of the search; returns the figures."""
    best = study.best
    document = SearchDocument(
        trials=[_row(trial, study.space) for trial in _shown(study)],
        importances=_importances(study),
        log_parameters=[key for key, dimension in study.space.dimensions.items() if dimension.log],
        confirmed=confirmed(study),
        best=None if best is None else best.number,
    )
    figures = _figures(study, document)
    write_text(PAGE, render_search(_facts(study), document))
    write_json(FIGURES, figures)
    if best is not None:
        write_text(BEST, patch(study, best))
    _send(study, document)
    return figures


def confirmed(study: ParameterStudy) -> list[Confirmed]:
    """Default and best with the seed of the search, and with every further seed that both were trained with."""
    best, default = study.best, study.default
    if best is None:
        return []
    seed = study.space.base.seed
    rows = [Confirmed(seed, default.value if default else None, best.value, "the seed of the search")]
    for further in seeds(study):
        default_again, best_again = (
            Trial.of(study.space.variant, train).result() for train in settings(study, best, further)
        )
        if default_again is not None and best_again is not None:
            rows.append(Confirmed(further, default_again.ap, best_again.ap, "a seed it has not seen"))
    return rows


def seeds(study: ParameterStudy) -> list[int]:
    """The further seeds."""
    return [study.space.base.seed + 1 + number for number in range(study.search.confirm_seeds)]


def settings(study: ParameterStudy, best: FrozenTrial, seed: int) -> tuple[Any, Any]:
    """Training parameters of the default and of the best setting with this seed."""
    return study.space.base.model_copy(update={"seed": seed}), study.space.train(best.params, seed=seed)


def patch(study: ParameterStudy, best: FrozenTrial) -> str:
    """The best setting as the part of params.yaml that holds it."""
    values = {"per_variant": {study.space.variant: nested(study.space.written(best.params))}}
    default = "" if study.default is None else f", the present setting {study.default.value:.4f}"
    head = (
        f"# Best of {len(study.finished)} trials of {study.name}: validation AP {best.value:.4f}{default}, after "
        f"{study.search.epochs} epochs.\n# Write it into params.yaml: python -m stages.apply_params {BEST}\n"
    )
    return head + yaml.safe_dump(values, sort_keys=False)


def _shown(study: ParameterStudy) -> list[FrozenTrial]:
    """All but the trials that were repeated, and those that were too many."""
    return [
        t
        for t in study.trials
        if t.state is not TrialState.FAIL or (ERROR in t.user_attrs and SURPLUS not in t.user_attrs)
    ]


def _row(trial: FrozenTrial, space: Space) -> TrialRow:
    reported = trial.intermediate_values
    states = {TrialState.FAIL: "failed", TrialState.WAITING: "to be repeated"}
    return TrialRow(
        number=trial.number,
        state=states.get(trial.state, trial.state.name.lower()),
        values=space.written(trial.params),
        ap=trial.value if trial.state is TrialState.COMPLETE else max(reported.values(), default=None),
        epochs=len(reported),
        note="the present setting" if trial.user_attrs.get(DEFAULT) else str(trial.user_attrs.get(ERROR, "")),
    )


def _importances(study: ParameterStudy) -> dict[str, float]:
    """Empty where fewer than four complete trials differ, of which nothing can be said."""
    import optuna

    complete = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=study.search.seed)
    return dict(optuna.importance.get_param_importances(study.study, evaluator=evaluator))


def _facts(study: ParameterStudy) -> dict[str, str]:
    search, base = study.search, study.space.base
    counts = {state: sum(t.state is state for t in study.trials) for state in (TrialState.COMPLETE, TrialState.PRUNED)}
    return {
        "Network": f"{study.space.variant}, {search.epochs} epochs at {base.image_size} px",
        "Study": study.name,
        "Trials": f"{len(study.finished)} of {search.trials}: "
        + ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items()),
        "Pruner": search.pruner,
        "Seed": f"{base.seed} of the trainings, {search.seed} of the sampler",
    }


def _figures(study: ParameterStudy, document: SearchDocument) -> dict[str, Any]:
    best = study.best
    return {
        "study": study.name,
        "variant": study.space.variant,
        "epochs": study.search.epochs,
        "trials": len(study.finished),
        "wanted": study.search.trials,
        "default_AP": None if study.default is None else study.default.value,
        "best_AP": None if best is None else best.value,
        "best": {} if best is None else study.space.written(best.params),
        "confirmed": [{"seed": each.seed, "default": each.default, "best": each.best} for each in document.confirmed],
        "importances": dict(document.importances),
    }


def _send(study: ParameterStudy, document: SearchDocument) -> None:
    parent = study.parent_run()
    with study.journal() as journal:
        if journal.empty and parent is not None:  # another machine began the run of the search
            journal.tags({"search": study.name, "mlflow.parentRunId": parent})
        journal.reopen()
        for trial in document.trials:
            if trial.ap is not None:
                journal.metrics({"trial/AP": trial.ap}, step=trial.number)
        if study.best is not None:
            summary: Mapping[str, float | None] = {"best/AP": study.best.value}
            if study.default is not None:
                summary = {**summary, "default/AP": study.default.value}
            journal.metrics({key: value for key, value in summary.items() if value is not None}, step=0)
            journal.artifact(BEST)
        journal.artifact(PAGE, "reports")
        journal.finish()
