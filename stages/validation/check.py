"""Runs the rules with Great Expectations and turns what fails into findings, one record each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stages.validation.rules import Rule, Severity
from stages.validation.tables import Tables

if TYPE_CHECKING:
    import pandas as pd

_PIECE = 50_000
"""Rows judged at a time when listing the records that break a rule which very many break."""


@dataclass(frozen=True)
class Outcome:
    """What one rule found."""

    rule: Rule
    records: int
    """Records judged: rows of the table, missing values included."""
    failures: int
    """Records that break the rule: exact, however few are listed."""

    @property
    def passed(self) -> bool:
        """Whether no record breaks the rule."""
        return self.failures == 0


@dataclass(frozen=True)
class Finding:
    """One record that breaks one rule."""

    rule: str
    severity: Severity
    split: str
    file: str
    """The image's file name where there is one, otherwise the annotation file."""
    image_id: int | None
    annotation_id: int | None
    value: str
    """What was found."""
    action: str
    """What to do about it."""

    def __str__(self) -> str:
        ids = [("annotation", self.annotation_id), ("image", self.image_id)]
        where = ", ".join(f"{kind} {number}" for kind, number in ids if number is not None)
        return f"{self.split}/{self.file}{f' ({where})' if where else ''}: {self.value}"


def run_rules(tables: Tables, rules: Sequence[Rule], *, max_findings: int) -> tuple[list[Outcome], list[Finding]]:
    """Judge every rule; findings in the order of the rules and rows, at most `max_findings` of one rule."""
    gx = _GreatExpectations()
    outcomes: dict[str, Outcome] = {}
    for table in dict.fromkeys(rule.table for rule in rules):
        chosen = [rule for rule in rules if rule.table == table]
        frame = tables.frame(table)
        for rule, result in zip(chosen, gx.results(frame, chosen, "BASIC"), strict=True):
            outcomes[rule.name] = Outcome(rule, len(frame), int(result["unexpected_count"]))
    findings: list[Finding] = []
    for rule in rules:
        outcome = outcomes[rule.name]
        if not outcome.passed:
            rows = _failing_rows(gx, tables.frame(rule.table), outcome, max_findings)
            findings.extend(_finding(rule, row) for row in rows)
    return [outcomes[rule.name] for rule in rules], findings


def results_document(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The outcome of every expectation; no run ids and no times, so that equal data gives equal bytes."""
    results = [
        {
            "rule": outcome.rule.name,
            "severity": outcome.rule.severity,
            "table": outcome.rule.table,
            "expectation": outcome.rule.expectation,
            "arguments": {"column": outcome.rule.column, **outcome.rule.arguments},
            "success": outcome.passed,
            "element_count": outcome.records,
            "unexpected_count": outcome.failures,
        }
        for outcome in outcomes
    ]
    return {"success": not blocking(outcomes), "results": results}


def findings_document(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings as plain records."""
    return [asdict(finding) for finding in findings]


def blocking(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The failed rules that stop the pipeline."""
    return [outcome for outcome in outcomes if not outcome.passed and outcome.rule.severity == "blocking"]


class _GreatExpectations:
    """A context in memory: nothing is stored, nothing is sent (the environment of every stage says so)."""

    def __init__(self) -> None:
        import great_expectations

        # This module of theirs sets its own level when imported, and reports a temporary folder it removes at once.
        logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
        self._module = great_expectations
        self._context = great_expectations.get_context(mode="ephemeral")
        self._context.variables.progress_bars = {"globally": False, "metric_calculations": False}
        asset = self._context.data_sources.add_pandas("data").add_dataframe_asset("table")
        self._batches = asset.add_batch_definition_whole_dataframe("whole")

    def results(self, frame: pd.DataFrame, rules: Sequence[Rule], detail: str) -> list[dict[str, Any]]:
        """The result of each rule, in order. `detail` is BASIC for counts, COMPLETE for the failing rows as well."""
        from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

        expectations = [
            ExpectationConfiguration(
                type=rule.expectation, kwargs={"column": rule.column, **rule.arguments}, meta={"rule": rule.name}
            ).to_domain_obj()
            for rule in rules
        ]
        suite = self._module.ExpectationSuite("rules", expectations=expectations)
        batch = self._batches.get_batch({"dataframe": frame})
        form = {"result_format": detail, "unexpected_index_column_names": ["row"]} if detail == "COMPLETE" else detail
        validated = batch.validate(suite, result_format=form)
        by_rule = {result.expectation_config.meta["rule"]: result for result in validated.results}
        for name, result in by_rule.items():
            if "unexpected_count" not in result.result:
                # A column there is not, or an impossible demand: a defect of the rules, not of the data.
                raise RuntimeError(f"rule {name} could not be judged: {result.exception_info}")
        return [by_rule[rule.name].result for rule in rules]


def _failing_rows(gx: _GreatExpectations, frame: pd.DataFrame, outcome: Outcome, limit: int) -> list[dict[str, Any]]:
    """The first `limit` rows that break a rule. Listing is slow per failing row, so a bad table is taken in pieces."""
    piece = len(frame) if outcome.failures <= limit else _PIECE
    failing: list[int] = []
    for start in range(0, len(frame), piece):
        [result] = gx.results(frame.iloc[start : start + piece], [outcome.rule], "COMPLETE")
        failing.extend(sorted(int(entry["row"]) for entry in result["unexpected_index_list"]))
        if len(failing) >= limit:
            break
    return [_plain(row) for row in frame.iloc[failing[:limit]].to_dict("records")]


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    if "box_width" in row:
        numbers = (row["left"], row["top"], row["box_width"], row["box_height"])
        row["bbox"] = f"[{', '.join(f'{number:g}' for number in numbers)}]"
        for side in ("image_width", "image_height"):
            row[side] = f"{row[side]:g}"
    return row


def _finding(rule: Rule, row: dict[str, Any]) -> Finding:
    file_name = row.get("file_name")
    return Finding(
        rule=rule.name,
        severity=rule.severity,
        split=row["split"],
        file=file_name if isinstance(file_name, str) else "annotations.json",
        image_id=row.get("image_id"),
        annotation_id=row.get("annotation_id"),
        value=rule.value.format(**row),
        action=rule.action,
    )
