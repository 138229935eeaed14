"""Judge the data; on request, leave bad records out and judge the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stages.validation.check import Finding, RuleOutcome, blocking, list_findings, run_rules
from stages.validation.images import ImageCheck
from stages.validation.suite import Rule
from stages.validation.tables import Context, Tables, make_tables
from yolov7.data.columns import CocoColumns
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
    kept: Mapping[str, CocoColumns]
    """The splits without the dropped records."""
    kept_tables: Tables
    dropped: list[Dropped]
    failed: list[RuleOutcome]
    """Blocking rules that the kept records break: the pipeline stops."""


def judge_data(
    splits: Mapping[str, CocoColumns],
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
    names = {category["id"]: category["name"] for coco in verdict.kept.values() for category in coco.categories}
    dropped = [record for record in verdict.dropped if record.kind == "annotation" and record.class_name]
    counts: Counter[str] = Counter()
    for coco in verdict.kept.values():
        ids, numbers = np.unique(coco.annotations.category_ids, return_counts=True)
        for identity, number in zip(ids.tolist(), numbers.tolist(), strict=True):
            if identity in names:
                counts[names[identity]] += number
    counts.update(record.class_name for record in dropped)
    lost: dict[str, Counter[str]] = {}
    for record in dropped:
        lost.setdefault(record.because[0], Counter())[record.class_name] += 1
    classes = list(dict.fromkeys(names.values()))
    by_reason = {reason: [found[name] for name in classes] for reason, found in lost.items()}
    return tally("the index", classes, np.array([counts[name] for name in classes], np.int64), by_reason)


def _leave_out(
    splits: Mapping[str, CocoColumns],
    checks: Mapping[str, Sequence[ImageCheck]],
    tables: Tables,
    bad: Sequence[RuleOutcome],
) -> tuple[dict[str, CocoColumns], dict[str, list[ImageCheck]], list[Dropped]]:
    """The splits and checks without the records that break these rules, and those records."""
    images, annotations = _reasons(bad, "images"), _reasons(bad, "annotations")
    kept: dict[str, CocoColumns] = {}
    kept_checks: dict[str, list[ImageCheck]] = {}
    dropped: list[Dropped] = []
    for split, coco in splits.items():
        own = tables.images.rows(split), tables.annotations.rows(split)
        gone = {row - own[0].start: why for row, why in images.items() if row in own[0]}
        reasons = {row - own[1].start: why for row, why in annotations.items() if row in own[1]}
        kept_images, kept_boxes = np.ones(len(own[0]), np.bool_), np.ones(len(own[1]), np.bool_)
        kept_images[list(gone)] = False
        kept_boxes[list(reasons)] = False
        kept_boxes &= ~np.isin(coco.annotations.image_ids, coco.images.ids[~kept_images])
        boxes = {row: reasons.get(row, (WITH_ITS_IMAGE,)) for row in np.flatnonzero(~kept_boxes).tolist()}
        dropped += _describe(split, coco, dict(sorted(gone.items())), boxes)
        kept[split] = coco.take(kept_images, kept_boxes)
        kept_checks[split] = [check for check, keep in zip(checks[split], kept_images, strict=True) if keep]
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
    split: str, coco: CocoColumns, images: Mapping[int, tuple[str, ...]], boxes: Mapping[int, tuple[str, ...]]
) -> list[Dropped]:
    records, annotations = coco.images, coco.annotations
    found = [
        Dropped(split, "image", int(records.ids[i]), int(records.ids[i]), records.names[i], why)
        for i, why in images.items()
    ]
    rows = list(boxes)
    image_ids, category_ids = annotations.image_ids[rows].tolist(), annotations.category_ids[rows].tolist()
    named = np.isin(records.ids, image_ids)
    names = dict(zip(records.ids[named].tolist(), records.names[named], strict=True))
    classes = {record["id"]: record["name"] for record in coco.categories}
    ids = annotations.ids[rows].tolist()
    return found + [
        Dropped(split, "annotation", own, image, names.get(image, ""), why, classes.get(category, ""))
        for own, image, category, why in zip(ids, image_ids, category_ids, boxes.values(), strict=True)
    ]
