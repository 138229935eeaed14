"""Check the data, report, and index it if it passes.

Reads `data/ingested` and the rules; writes `reports/validation/` (results.json, findings.json, dropped.json,
statistics.json, index.html) in any case, and `data/index/{train,val,test}/` only if every blocking rule holds.
Otherwise the stage fails with the reasons.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from stages.dataset.layout import SPLITS, annotations_file, images_folder
from stages.project.command import run_stage
from stages.project.params import Params, Validation
from stages.project.redaction import redacted
from stages.project.workspace import INDEX, INDEXED, INGESTED, VALIDATION_REPORT, dataset_document
from stages.validation.check import Finding, RuleOutcome, findings_document, results_document
from stages.validation.images import ImageCheck, check_images
from stages.validation.judge import Verdict, dropped_counts, dropped_document, judge_data
from stages.validation.page import Report, render_page
from stages.validation.pictures import sample_pictures, worst_pictures
from stages.validation.statistics import Statistics, read_statistics
from stages.validation.suite import REFERENCE, Skipped, choose, read_suite
from stages.validation.tables import Context
from yolov7.data.columns import CocoColumns
from yolov7.data.index import build_index
from yolov7.data.read_columns import read_columns
from yolov7.errors import DataError
from yolov7.files import write_json, write_text
from yolov7.folders import replace_folder
from yolov7.text import printable

logger = logging.getLogger(__name__)

CACHE = Path(".state/image-checks.sqlite")
"""Results of decoding by content. Not an output of the stage, because it changes no result."""

_RULES_NAMED = 3
_FINDINGS_NAMED = 3
"""Named in the one line of a failure; the page has the rest."""


def main(params: Params, args: argparse.Namespace) -> None:
    """The stage: `validation` of params.yaml, the rules and the ingested data in, report and index out."""
    validate(params.validation, INGESTED, VALIDATION_REPORT, INDEX, cache=CACHE)
    from stages.preflight.check import look_ahead  # it needs torch, which a check of data does not

    ahead = look_ahead(params)
    for line in ahead.problems:
        logger.warning("the training will refuse this: %s", redacted(line))


def validate(
    parameters: Validation, ingested: Path, report: Path, index: Path, *, cache: Path | None = None
) -> Verdict:
    """Check the data in `ingested`, write `report`, and write `index` if every blocking rule holds.

    `cache` is the file with earlier results of decoding. Raises :class:`DataError` if a blocking rule does not hold,
    naming rules, counts and the first records; `index` then stays as it was. Raises :class:`ConfigError` for a suite
    with mistakes.
    """
    suite = Path(parameters.suite)
    reference, no_reference = _reference(suite)
    rules = read_suite(suite, parameters.severity, where="params.yaml: validation.severity")
    rules, skipped = choose(rules, pixels=parameters.check_images, no_reference=no_reference)
    splits = {split: read_columns(annotations_file(ingested, split)) for split in SPLITS}
    dataset = dataset_document(ingested)
    checks = _check_files(splits, ingested, parameters.check_images, cache)
    context = Context(
        sha256=str(dataset.get("sha256")),
        test_is_val=bool(dataset.get("test_is_val")),
        near_duplicate_bits=parameters.near_duplicate_bits,
        reference=reference,
    )
    drop = parameters.on_bad_record == "drop"
    verdict = judge_data(splits, checks, context, rules, drop=drop, max_findings=parameters.max_findings)
    _write_report(verdict, skipped, dataset, reference, parameters, ingested, report)
    _warn(verdict)
    if verdict.failed:
        raise DataError(_message(verdict.failed, verdict.findings, report), path=ingested)
    with replace_folder(index) as folder:
        for split, coco in verdict.kept.items():
            build_index(coco, images_folder(ingested, split), folder / split)
        write_json(folder / INDEXED.name, {"sha256": dataset["sha256"]})
    images = sum(len(coco.images) for coco in verdict.kept.values())
    held = sum(outcome.passed for outcome in verdict.outcomes)
    logger.info("%d rules hold for %d images; report: %s", held, images, report / "index.html")
    return verdict


def _reference(suite: Path) -> tuple[Statistics | None, str | None]:
    """The statistics of the champion's data, or the reason why there are none."""
    path = suite / REFERENCE
    if path.is_file():
        return read_statistics(path), None
    return None, f"there is no {path.as_posix()} to compare with (`python -m stages.data_reference` fetches it)"


def _check_files(
    splits: Mapping[str, CocoColumns], ingested: Path, decode: bool, cache: Path | None
) -> dict[str, list[ImageCheck]]:
    """Check every image file of every split in one call, so that the processes start once."""
    folders = {split: images_folder(ingested, split) for split in splits}
    paths = (f"{folders[split]}/{name}" for split, coco in splits.items() for name in coco.images.names)
    total = sum(len(coco.images) for coco in splits.values())
    found = check_images(paths, decode=decode, cache=cache)
    if decode:
        logger.info("%d images: %d decoded, the rest known by content", total, found.decoded)
    remaining = iter(found.checks)
    return {split: list(islice(remaining, len(coco.images))) for split, coco in splits.items()}


def _write_report(
    verdict: Verdict,
    skipped: Sequence[Skipped],
    dataset: dict[str, Any],
    reference: Statistics | None,
    parameters: Validation,
    ingested: Path,
    report: Path,
) -> None:
    with replace_folder(report) as folder:
        stopped = bool(verdict.failed)
        write_json(folder / "results.json", results_document(verdict.outcomes, skipped, stopped))
        write_json(folder / "findings.json", findings_document(verdict.findings))
        write_json(folder / "dropped.json", dropped_document(verdict.dropped))
        write_json(folder / "statistics.json", verdict.kept_tables.statistics.model_dump(exclude_none=True))
        page = Report(
            verdict=verdict,
            skipped=skipped,
            dataset=dataset,
            reference=reference,
            worst=worst_pictures(verdict.tables, verdict.findings, ingested, parameters.worst_pictures),
            samples=sample_pictures(verdict.tables, ingested, parameters.sample_pictures),
        )
        write_text(folder / "index.html", render_page(page))


def _warn(verdict: Verdict) -> None:
    for outcome in verdict.outcomes:
        if not outcome.passed and outcome.rule.severity == "warning":
            logger.warning("warning: %s", _summary(outcome, verdict.findings))
    if verdict.dropped:
        kinds = [record.kind for record in verdict.dropped]
        counts = f"{kinds.count('image')} images and {kinds.count('annotation')} annotations"
        logger.warning("left out (validation.on_bad_record): %s; see dropped.json in the report", counts)
        counted = dropped_counts(verdict)
        for line in counted.lines() if counted.lost else ():
            logger.warning("%s", line)
        for label in counted.mostly_lost():
            name, lost = counted.class_names[label], sum(counted.of_class(label).values())
            logger.warning(
                "class %r loses %d of %d boxes; correct them, or keep them with validation.severity: {RULE: warning}",
                name, lost, counted.objects[label],
            )  # fmt: skip


def _message(failed: Sequence[RuleOutcome], findings: Sequence[Finding], report: Path) -> str:
    broken = "; ".join(_summary(outcome, findings) for outcome in failed[:_RULES_NAMED])
    more = f"; and {len(failed) - _RULES_NAMED} more rules" if len(failed) > _RULES_NAMED else ""
    count = "1 blocking rule does" if len(failed) == 1 else f"{len(failed)} blocking rules do"
    return f"{count} not hold: {broken}{more}. Every finding: {report / 'index.html'}"


def _summary(outcome: RuleOutcome, findings: Sequence[Finding]) -> str:
    own = [finding for finding in findings if finding.rule == outcome.rule.name]
    named = ", ".join(str(finding) for finding in own[:_FINDINGS_NAMED])
    return printable(f"{outcome.rule.name} ({outcome.failures} of {outcome.records}): {named}")


if __name__ == "__main__":
    run_stage(main)
