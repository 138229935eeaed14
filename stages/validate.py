"""Check the data, report, and index it if it passes.

Reads `data/ingested`; writes `reports/validation/` (results.json, findings.json, index.html) in any case, and
`data/index/{train,val,test}/` only when every blocking rule holds. Otherwise the stage fails and says why.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.command import run_stage
from stages.folders import replace_folder
from stages.ingested import SPLITS, annotations_file, images_folder
from stages.params import Params, Validation
from stages.provenance import INGESTED
from stages.validation.check import Finding, Outcome, blocking, findings_document, results_document, run_rules
from stages.validation.images import ImageCheck, check_images
from stages.validation.page import render_page
from stages.validation.pictures import sample_pictures
from stages.validation.rules import RULES
from stages.validation.tables import make_tables
from yolov7.data.coco import CocoAnnotations, read_coco
from yolov7.data.index import build_index
from yolov7.errors import DataError
from yolov7.files import write_json, write_text

logger = logging.getLogger(__name__)

INDEX = Path("data/index")
REPORT = Path("reports/validation")

_RULES_NAMED = 3
_FINDINGS_NAMED = 3
"""What the one line of a failure has room for; the page has the rest."""


def main(params: Params, args: argparse.Namespace) -> None:
    """The stage: `validation` of params.yaml and the ingested data in, report and index out."""
    validate(params.validation, INGESTED, REPORT, INDEX)


def validate(parameters: Validation, ingested: Path, report: Path, index: Path) -> None:
    """Check the data in `ingested`, write `report`, and write `index` if every blocking rule holds.

    Raises :class:`DataError` where one does not, naming rules, counts and the first records; what stood at `index`
    stays then as it was.
    """
    splits = {split: read_coco(annotations_file(ingested, split)) for split in SPLITS}
    dataset = _dataset_document(ingested)
    checks = _check_files(splits, ingested, decode=parameters.check_images)
    tables = make_tables(splits, checks)
    rules = [rule for rule in RULES if parameters.check_images or not rule.needs_pixels]
    outcomes, findings = run_rules(tables, rules, max_findings=parameters.max_findings)
    pictures = sample_pictures(tables, ingested, parameters.sample_pictures)
    with replace_folder(report) as folder:
        write_json(folder / "results.json", results_document(outcomes))
        write_json(folder / "findings.json", findings_document(findings))
        page = render_page(tables, outcomes, len(RULES) - len(rules), findings, pictures, dataset)
        write_text(folder / "index.html", page)
    for outcome in outcomes:
        if not outcome.passed and outcome.rule.severity == "warning":
            logger.warning("warning: %s", _summary(outcome, findings))
    failed = blocking(outcomes)
    if failed:
        raise DataError(_message(failed, findings, report), path=ingested)
    with replace_folder(index) as folder:
        for split, coco in splits.items():
            build_index(coco, images_folder(ingested, split), folder / split)
    images = sum(len(coco.images) for coco in splits.values())
    logger.info(
        "%d rules hold for %d images; report: %s", len(outcomes) - _failures(outcomes), images, report / "index.html"
    )


def _failures(outcomes: Sequence[Outcome]) -> int:
    return sum(not outcome.passed for outcome in outcomes)


def _dataset_document(ingested: Path) -> dict[str, Any]:
    path = ingested / "dataset.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("no such file; run the ingest stage first", path=path) from None
    except ValueError as error:
        raise DataError(f"not readable ({error}); run the ingest stage again", path=path) from None


def _check_files(splits: Mapping[str, CocoAnnotations], ingested: Path, *, decode: bool) -> dict[str, list[ImageCheck]]:
    """Look at every image file of every split, all in one go, so that the workers start once."""
    paths = [
        images_folder(ingested, split) / image["file_name"] for split, coco in splits.items() for image in coco.images
    ]
    remaining = iter(check_images(paths, decode=decode))
    return {split: [next(remaining) for _ in coco.images] for split, coco in splits.items()}


def _message(failed: Sequence[Outcome], findings: Sequence[Finding], report: Path) -> str:
    broken = "; ".join(_summary(outcome, findings) for outcome in failed[:_RULES_NAMED])
    more = f"; and {len(failed) - _RULES_NAMED} more rules" if len(failed) > _RULES_NAMED else ""
    count = "1 blocking rule does" if len(failed) == 1 else f"{len(failed)} blocking rules do"
    return f"{count} not hold: {broken}{more}. Every finding: {report / 'index.html'}"


def _summary(outcome: Outcome, findings: Sequence[Finding]) -> str:
    own = [finding for finding in findings if finding.rule == outcome.rule.name]
    named = ", ".join(str(finding) for finding in own[:_FINDINGS_NAMED])
    return f"{outcome.rule.name} ({outcome.failures} of {outcome.records}): {named}"


if __name__ == "__main__":
    run_stage(main)
