"""Measure the finalists of a choice, recommend one, and register it: `python -m stages.choose --plan FILE`.

FILE is what the flow `choose-model` knows after its trainings: the finalists, the figures of every rung, and what was
ruled out. The exported files are measured side by side on the test split. Written: `reports/choice/index.html` and
`choice.json`, and `models/choice/V/export` of every finalist; the recommended one becomes the challenger of the model
`choice.name`, whatever its variant.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.choice.candidates import candidate, finished
from stages.choice.plan import RuledOut, Standing, beyond, given_latencies, too_slow_to_train
from stages.choice.recommend import Difference, Measured, Recommendation, pareto, recommend
from stages.evaluation.int8 import measure_int8
from stages.evaluation.measure import run_evaluation
from stages.evaluation.timing import first_images, timed
from stages.export import export
from stages.project.command import Interrupted, run_stage
from stages.project.params import Params
from stages.project.workspace import TEST_SPLIT, dataset_document, open_index, read_json
from stages.register import record_of, register_export
from stages.registry.errors import RegistryUnavailableError
from stages.trials.trial import Trial
from yolov7.artefact import ONNX
from yolov7.data.index import Index
from yolov7.errors import ModelError
from yolov7.evaluate import Evaluation
from yolov7.evaluate.bootstrap import ap_difference_interval, ap_interval
from yolov7.files import sha256_file, write_json, write_text
from yolov7.predict import load_detector
from yolov7.report.choice import ChoiceDocument, Finalist, render_choice
from yolov7.report.int8 import EightBits

log = logging.getLogger(__name__)

MODELS = Path("models/choice")
FOLDER = Path("reports/choice")
PAGE, FIGURES = FOLDER / "index.html", FOLDER / "choice.json"
_NEEDS = {"epochs": int, "finalists": list, "standings": list, "ruled_out": list}


def main(params: Params, args: argparse.Namespace) -> None:
    """Measure, write page and figures, and register."""
    plan = read_json(Path(args.plan), "python -m flows.choose_model", needs=_NEEDS)
    document = dataset_document(needs=TEST_SPLIT)
    trials = {variant: candidate(params, variant, plan["epochs"]) for variant in plan["finalists"]}
    exports = {variant: _exported(params, trial) for variant, trial in trials.items()}
    index = open_index("test")
    results = _evaluated(params, exports, index)
    int8 = _int8(params, exports, results, index)
    measured = _measured(params, trials, exports, results, index)
    ruled_out = [RuledOut(**each) for each in plan["ruled_out"]]
    ruled_out += _beyond_now(params, measured, plan["epochs"])
    found = recommend(measured, ruled_out, _differences(params, results), prefer=params.choice.prefer)
    figures = _figures(params, plan, measured, ruled_out, found, document)
    figures |= {"int8": {variant: each.figures() for variant, each in int8.items()}} if int8 else {}
    write_text(PAGE, _page(params, plan, measured, ruled_out, found, int8, index, document))
    write_json(FIGURES, figures)
    for reason in found.reasons:
        log.info("%s", reason)
    if found.variant is None:
        raise ModelError(
            f"no candidate is within the limits of params.yaml: choice.budget; {PAGE} shows what they need"
        )
    log.info("recommended: %s; %s", found.variant, PAGE)
    try:
        record = _register(params, trials[found.variant], results[found.variant], figures)
    except RegistryUnavailableError as error:
        raise Interrupted(f"{error}; the same command registers the model once MLflow is back") from error
    write_json(FIGURES, {**figures, "registered": record})


def _exported(params: Params, trial: Trial) -> Path:
    """The verified export folder of a finalist, made once for its weights."""
    weights, _ = finished(trial)
    out, mark = MODELS / trial.variant / "export", MODELS / trial.variant / "exported.json"
    present = {"weights": sha256_file(weights), "export": params.export.model_dump(mode="json"), "code": trial.code}
    if mark.is_file() and read_json(mark, "python -m flows.choose_model") == present:
        return out
    mark.unlink(missing_ok=True)
    log.info("exporting %s", trial.variant)
    export(params, trial.variant, weights, out, run=_run(trial))
    write_json(mark, present)
    return out


def _run(trial: Trial) -> dict[str, Any]:
    """The training as a `run.json` describes it; its MLflow journal is found by these."""
    return {"variant": f"trial-{trial.variant}", "fingerprint": trial.key}


def _evaluated(params: Params, exports: Mapping[str, Path], index: Index) -> dict[str, Evaluation]:
    found = {}
    for variant, folder in exports.items():
        found[variant] = run_evaluation(load_detector(folder / ONNX, device="cpu"), index, params.evaluate)
        log.info("%s on %d test images: AP %.4f", variant, len(index), found[variant].metrics["AP"])
    return found


def _int8(
    params: Params, exports: Mapping[str, Path], results: Mapping[str, Evaluation], index: Index
) -> dict[str, EightBits]:
    """The int8 files of the exports that have some, by variant."""
    found = {name: measure_int8(exports[name], result, index, params.evaluate) for name, result in results.items()}
    return {name: each for name, each in found.items() if each is not None}


def _measured(
    params: Params,
    trials: Mapping[str, Trial],
    exports: Mapping[str, Path],
    results: Mapping[str, Evaluation],
    index: Index,
) -> list[Measured]:
    given = given_latencies(params.choice)
    files = {variant: folder / ONNX for variant, folder in exports.items()}
    here = {} if given else timed(files, first_images(index), params.evaluate)
    measured = []
    for variant, result in results.items():
        interval = ap_interval(result.matches, resamples=params.evaluate.resamples)
        measured.append(
            Measured(
                variant=variant,
                ap=result.metrics["AP"],
                ap_low=interval.low,
                ap_high=interval.high,
                latency_ms=given[variant] if given else here[variant].timings[-1].median,
                size_mb=files[variant].stat().st_size / 1e6,
                training_minutes=finished(trials[variant])[1].seconds / 60,
            )
        )
    return measured


def _beyond_now(params: Params, measured: list[Measured], epochs: int) -> list[RuledOut]:
    """Limits that the measured figures exceed."""
    found = [out for each in measured for out in beyond(each.variant, each.latency_ms, each.size_mb, params.choice)]
    took = [Standing(each.variant, epochs, 0.0, each.training_minutes * 60) for each in measured]
    return found + too_slow_to_train(took, epochs, params.choice.budget.training_minutes)


def _differences(params: Params, results: Mapping[str, Evaluation]) -> Any:
    def difference(best: str, other: str) -> Difference:
        found = ap_difference_interval(
            results[best].matches, results[other].matches, resamples=params.evaluate.resamples
        )
        return Difference(found.value, found.low, found.high)

    return difference


def _figures(
    params: Params,
    plan: Mapping[str, Any],
    measured: list[Measured],
    ruled_out: list[RuledOut],
    found: Recommendation,
    document: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "model": f"{params.registry.model_prefix}{params.choice.name}",
        "recommended": found.variant,
        "best": found.best,
        "reasons": found.reasons,
        "epochs": plan["epochs"],
        "measured": [asdict(each) for each in measured],
        "ruled_out": [asdict(each) for each in ruled_out],
        "standings": plan["standings"],
        "choice": params.choice.model_dump(mode="json"),
        "test_data_sha256": document["splits"]["test"]["sha256"],
    }


def _page(
    params: Params,
    plan: Mapping[str, Any],
    measured: list[Measured],
    ruled_out: list[RuledOut],
    found: Recommendation,
    int8: Mapping[str, EightBits],
    index: Index,
    document: Mapping[str, Any],
) -> str:
    choice, out = params.choice, {each.variant for each in ruled_out}
    machine = f"of {choice.budget.latencies}" if choice.budget.latencies else f"ONNX Runtime, {os.cpu_count()} cores"
    limits = {"latency": (choice.budget.latency_ms, "ms"), "size": (choice.budget.size_mb, "MB")}
    limits["training"] = (choice.budget.training_minutes, "min")
    named = [f"{name} {value:g} {unit}" for name, (value, unit) in limits.items() if value]
    facts = {
        "Recommended": found.variant or "none",
        "Model": f"{params.registry.model_prefix}{choice.name}",
        "Limits": ", ".join(named) or "none",
        "Preferred": "the fastest that may be as good as the best" if choice.prefer == "speed" else "the highest AP",
        "Test images": f"{len(index):,}, {index.num_boxes:,} objects",
        "Test data": document["splits"]["test"]["sha256"],
        "Latency": f"{machine}, batch 1, median",
    }
    front = pareto(measured)
    finalists = [
        Finalist(**asdict(each), on_front=each.variant in front, ruled_out=each.variant in out) for each in measured
    ]
    standings = [(each["variant"], each["epochs"], each["ap"], each["seconds"] / 60) for each in plan["standings"]]
    return render_choice(
        facts,
        ChoiceDocument(
            recommended=found.variant,
            reasons=found.reasons,
            finalists=finalists,
            standings=standings,
            ruled_out=[(each.variant, each.limit, each.finding) for each in ruled_out],
            int8=int8,
        ),
    )


def _register(params: Params, trial: Trial, result: Evaluation, figures: Mapping[str, Any]) -> dict[str, Any]:
    mine = next(each for each in figures["measured"] if each["variant"] == trial.variant)
    metrics = {**result.metrics, "AP_low": mine["ap_low"], "AP_high": mine["ap_high"]}
    metrics["test_data_sha256"] = figures["test_data_sha256"]
    int8 = figures.get("int8", {})
    metrics |= {"int8": int8[trial.variant]} if trial.variant in int8 else {}
    others = [each["variant"] for each in figures["measured"] if each["variant"] != trial.variant]
    tags = {"chosen_from": ", ".join(params.choice.candidates), "finalists": ", ".join(others) or "none"}
    version = register_export(
        params,
        MODELS / trial.variant / "export",
        name=figures["model"],
        variant=trial.variant,
        run=_run(trial),
        metrics=metrics,
        page=PAGE,
        tags={**tags, "choice_reason": figures["reasons"][-1], "epochs": figures["epochs"]},
    )
    return record_of(version, metrics)


if __name__ == "__main__":
    run_stage(main, options=[("--plan", {"required": True, "help": "what the flow knows, as json"})])
