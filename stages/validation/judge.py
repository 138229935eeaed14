"""Judge the data; on request, leave bad records out and judge the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from stages.validation.check import Finding, RuleOutcome, blocking, list_findings, run_rules
from stages.validation.images import ImageCheck
from stages.validation.suite import Rule
from stages.validation.tables import Context, Tables, make_tables
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.tally import Tally, tally

WITH_ITS_IMAGE = "its image is left out"


@dataclass(frozen=True)
class Dropped:
    """A record that is left out of the index."""

    split: str
    kind: str
    """`image` or `annotation`."""
    id: int
    image_id: int
    file: str
    because: tuple[str, ...]
    """The rules it breaks, or that its image is left out."""
    class_name: str = ""
    """Of an annotation; empty for an image, and where its category is unknown."""


@dataclass(frozen=True)
class Verdict:
    """Result of all rules."""

    outcomes: list[RuleOutcome]
    """One per rule, on all records; on the rest if it broke only after others were left out."""
    findings: list[Finding]
    tables: Tables
    """All records."""
    kept: Mapping[str, CocoAnnotations]
    """The splits without the dropped records."""
    kept_tables: Tables
    dropped: list[Dropped]
    failed: list[RuleOutcome]
    """Blocking rules that the kept records break: the pipeline stops."""


def judge_data(
    splits: Mapping[str, CocoAnnotations],
    checks: Mapping[str, Sequence[ImageCheck]],
    context: Context,
    rules: Sequence[Rule],
    *,
    drop: bool,
    max_findings: int,
) -> Verdict:
    """Judge all records by all rules; with `drop`, leave out those that break a blocking rule, and judge again."""
    tables = first = make_tables(splits, checks, context)
    outcomes = {outcome.rule.name: outcome for outcome in run_rules(tables, rules)}
    failed = blocking(list(outcomes.values()))
    findings: list[Finding] = []
    news = list(outcomes.values())
    dropped: list[Dropped] = []
    while True:
        bad = [outcome for outcome in failed if outcome.rule.concerns_a_record] if drop else []
        findings += list_findings(tables, news, limit=max_findings, in_full={outcome.rule.name for outcome in bad})
        if not any(outcome.rows for outcome in bad):
            break
        splits, checks, more = _leave_out(splits, checks, tables, bad)
        dropped += more
        # Without them a split may be empty, or an image may have lost its last box.
        tables = make_tables(splits, checks, context)
        failed = blocking(run_rules(tables, [rule for rule in rules if rule.severity == "blocking"]))
        news = [o for o in failed if o.rule.concerns_a_record or outcomes[o.rule.name].passed]
        outcomes |= {outcome.rule.name: outcome for outcome in news if outcomes[outcome.rule.name].passed}
    return Verdict(list(outcomes.values()), findings, first, splits, tables, dropped, failed)


def dropped_document(dropped: Sequence[Dropped]) -> list[dict[str, Any]]:
    """The dropped records as plain dictionaries."""
    return [asdict(record) for record in dropped]


def dropped_counts(verdict: Verdict) -> Tally:
    """The annotations of all splits by class, and those that were left out by reason."""
    records = [annotation for coco in verdict.kept.values() for annotation in coco.annotations]
    names = {category["id"]: category["name"] for coco in verdict.kept.values() for category in coco.categories}
    dropped = [record for record in verdict.dropped if record.kind == "annotation" and record.class_name]
    counts = Counter(names[record["category_id"]] for record in records if record["category_id"] in names)
    counts.update(record.class_name for record in dropped)
    lost: dict[str, Counter[str]] = {}
    for record in dropped:
        lost.setdefault(record.because[0], Counter())[record.class_name] += 1
    classes = list(dict.fromkeys(names.values()))
    by_reason = {reason: [found[name] for name in classes] for reason, found in lost.items()}
    return tally("the index", classes, np.array([counts[name] for name in classes], np.int64), by_reason)


def _leave_out(
    splits: Mapping[str, CocoAnnotations],
    checks: Mapping[str, Sequence[ImageCheck]],
    tables: Tables,
    bad: Sequence[RuleOutcome],
) -> tuple[dict[str, CocoAnnotations], dict[str, list[ImageCheck]], list[Dropped]]:
    """The splits and checks without the records that break these rules, and those records."""
    images, annotations = _reasons(bad, "images"), _reasons(bad, "annotations")
    kept: dict[str, CocoAnnotations] = {}
    kept_checks: dict[str, list[ImageCheck]] = {}
    dropped: list[Dropped] = []
    first_image = first_annotation = 0
    for split, coco in splits.items():
        gone = {i: images[first_image + i] for i in range(len(coco.images)) if first_image + i in images}
        gone_ids = {coco.images[i]["id"] for i in gone}
        gone_boxes = {
            i: annotations.get(first_annotation + i, (WITH_ITS_IMAGE,))
            for i, record in enumerate(coco.annotations)
            if first_annotation + i in annotations or record["image_id"] in gone_ids
        }
        dropped += _describe(split, coco, gone, gone_boxes)
        kept[split] = replace(
            coco,
            images=[record for i, record in enumerate(coco.images) if i not in gone],
            annotations=[record for i, record in enumerate(coco.annotations) if i not in gone_boxes],
        )
        kept_checks[split] = [check for i, check in enumerate(checks[split]) if i not in gone]
        first_image += len(coco.images)
        first_annotation += len(coco.annotations)
    return kept, kept_checks, dropped


def _reasons(bad: Sequence[RuleOutcome], table: str) -> dict[int, tuple[str, ...]]:
    """Rows of a table, with the names of the rules each breaks."""
    reasons: dict[int, tuple[str, ...]] = {}
    for outcome in bad:
        if outcome.rule.table == table:
            for row in outcome.rows:
                reasons[row] = (*reasons.get(row, ()), outcome.rule.name)
    return reasons


def _describe(
    split: str, coco: CocoAnnotations, images: Mapping[int, tuple[str, ...]], boxes: Mapping[int, tuple[str, ...]]
) -> list[Dropped]:
    names = {record["id"]: record["file_name"] for record in coco.images}
    classes = {record["id"]: record["name"] for record in coco.categories}
    found = [
        Dropped(split, "image", record["id"], record["id"], record["file_name"], why)
        for record, why in ((coco.images[i], why) for i, why in images.items())
    ]
    return found + [
        Dropped(
            split,
            "annotation",
            record["id"],
            record["image_id"],
            names.get(record["image_id"], ""),
            why,
            classes.get(record["category_id"], ""),
        )
        for record, why in ((coco.annotations[i], why) for i, why in boxes.items())
    ]
