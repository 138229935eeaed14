"""The suite of rules: YAML files a user can edit, read and checked.

Each rule is one Great Expectations expectation on one column of one table (the columns: see `tables`). A missing value
passes every expectation but those about missing values, so a rule speaks up about one thing only: a box that is not
finite breaks `box-is-finite` and no rule about its position.

References between tables are columns too: an expectation with 118,000 permitted values takes seconds, a column of
booleans none.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, PrivateAttr

from stages.project.params import RuleSeverity
from yolov7.config import Group, parse
from yolov7.documents import MAX_YAML, DocumentError, read_text
from yolov7.errors import ConfigError, nearest
from yolov7.yaml_text import read_yaml

Table = Literal["splits", "categories", "classes", "images", "annotations", "balance", "drift"]
TABLES: tuple[Table, ...] = get_args(Table)
"""Order of judging and reporting: faults of the whole set before single records."""

REFERENCE = "reference.json"
"""File beside the rules: statistics of the champion's training data (see `statistics`)."""


class Rule(Group):
    """One expectation and the texts that report it."""

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    """Name in params.yaml and in the reports."""
    severity: RuleSeverity
    """`blocking` stops the pipeline; `warning` is reported; `off` is skipped."""
    table: Table
    """The table it checks."""
    column: str
    """The column it checks."""
    expectation: str
    """Great Expectations' name of the expectation; of one column."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """The expectation's other arguments."""
    says: str
    """The fact that holds when the rule passes."""
    found: str
    """Text of a finding: a format string over the columns of the record's row."""
    advice: str
    """Advice for the owner of the data."""
    needs: Literal["pixels", "reference"] | None = None
    """Skipped unless the images were decoded, or unless there is a champion to compare with."""
    _written: dict[str, Any] = PrivateAttr(default_factory=dict)
    """`arguments` with every scalar as the text in the file."""

    @property
    def concerns_a_record(self) -> bool:
        """True if a finding concerns one image or one annotation, which could be dropped."""
        return self.table in ("images", "annotations")

    def about_texts(self) -> Rule:
        """The rule for a column of texts: the items of lists, class names for example, are texts as written."""
        lists = {name: self._written.get(name, value) for name, value in self.arguments.items() if type(value) is list}
        return self.model_copy(update={"arguments": {**self.arguments, **lists}})


@dataclass(frozen=True)
class Skipped:
    """A rule that was skipped, and why."""

    rule: Rule
    reason: str


def read_suite(folder: Path, severity: Mapping[str, RuleSeverity], *, where: str) -> list[Rule]:
    """The rules of every YAML file in `folder`, with the severities of params.yaml applied.

    `where` is how the user knows those severities. Raises :class:`ConfigError` naming file, rule and field, for a rule
    that is not written as it should be, one that comes twice, and a severity for a rule there is not.
    """
    files = sorted(folder.glob("*.yaml")) if folder.is_dir() else []
    if not files:
        raise ConfigError(f"{folder}: no folder with rules (*.yaml); see validation.suite in params.yaml")
    rules: dict[str, Rule] = {}
    for file in files:
        for rule in _read_file(file):
            if rule.name in rules:
                raise ConfigError(f"{file}: {rule.name}: a rule of this name exists already; rename one of them")
            rules[rule.name] = rule
    for name in severity:
        if name not in rules:
            raise ConfigError(f"{where}: unknown rule {name!r}{nearest(name, list(rules))}")
    final = (rule.model_copy(update={"severity": severity.get(rule.name, rule.severity)}) for rule in rules.values())
    return sorted(final, key=lambda rule: TABLES.index(rule.table))


def _read_file(file: Path) -> list[Rule]:
    try:
        content = read_yaml(read_text(file, MAX_YAML))
    except (OSError, DocumentError) as error:
        raise ConfigError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from None
    documents = content.value
    if documents is None:
        return []
    if not isinstance(documents, list) or not all(isinstance(document, dict) for document in documents):
        raise ConfigError(f"{file}: a list of rules is expected, each beginning `- name: ...`")
    rules: list[Rule] = []
    for number, (document, written) in enumerate(zip(documents, content.written, strict=True), 1):
        rule = parse(Rule, document, where=f"{file}: {document.get('name', f'rule {number}')}", written=written)
        if isinstance(written.get("arguments"), dict):
            rule._written = written["arguments"]
        rules.append(rule)
    return rules


def choose(rules: Iterable[Rule], *, pixels: bool, no_reference: str | None) -> tuple[list[Rule], list[Skipped]]:
    """The rules that apply, and the skipped ones with the reason; `no_reference` says why there is no reference."""
    chosen: list[Rule] = []
    skipped: list[Skipped] = []
    for rule in rules:
        if rule.severity == "off":
            skipped.append(Skipped(rule, "switched off"))
        elif rule.needs == "pixels" and not pixels:
            skipped.append(Skipped(rule, "needs decoded images, and validation.check_images is off"))
        elif rule.needs == "reference" and no_reference is not None:
            skipped.append(Skipped(rule, no_reference))
        else:
            chosen.append(rule)
    return chosen, skipped


def check_columns(rule: Rule, columns: Iterable[str]) -> None:
    """Check that the rule names columns of its table. Raises :class:`ConfigError` naming the nearest one."""
    known = list(columns)
    where = f"rule {rule.name}"
    if rule.column not in known:
        raise ConfigError(f"{where}: table {rule.table} has no column {rule.column!r}{nearest(rule.column, known)}")
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(rule.found) if field is not None]
    except ValueError as error:
        raise ConfigError(f"{where}: `found` is not a valid format string: {error}") from None
    for field in fields:
        # Only columns, never their attributes or items: the text is data.
        if field not in known:
            raise ConfigError(
                f"{where}: `found` names {field!r}, which is not a column of {rule.table}{nearest(field, known)}"
            )
