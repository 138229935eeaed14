"""All checks, and the one message about them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from stages.preflight.environment import check_environment
from stages.preflight.findings import Findings
from stages.preflight.machine import check_folders, check_keys, check_space, check_state_remote
from stages.preflight.outputs import check_evaluation, check_formats, check_opset
from stages.preflight.records import check_addresses, check_records
from stages.preflight.trainings import check_classes, check_teachers, check_weights
from stages.project.params import Params
from stages.project.redaction import redacted
from yolov7.errors import ConfigError

log = logging.getLogger(__name__)


def look_ahead(params: Params) -> Findings:
    """The checks that take no time and ask no server, for the stages before the training."""
    found = Findings()
    check_environment(found)
    check_addresses(found)
    check_formats(params.export, found)
    check_evaluation(params, found)
    check_keys(found)
    return found


def check(params: Params, variants: Sequence[str], *, space: bool = True) -> Findings:
    """Everything that can be known before these variants are trained. `space`: measure the disk against the networks,
    and look for the classes that settings name and for teachers, which needs the ingested data."""
    found = look_ahead(params)
    check_opset(params.export, found)
    check_folders(variants, found)
    check_weights(params, variants, found)
    check_state_remote(params.flow, found)
    check_records(params, variants, found)
    if space and not found.problems:
        for variant in variants:
            check_space(params, variant, found)
        check_classes(params, variants, found)
        check_teachers(params, variants, found)
    return found


def require(params: Params, variants: Sequence[str]) -> None:
    """Log the warnings. Raises :class:`ConfigError` with all problems in one line."""
    demand(check(params, variants))


def demand(found: Findings) -> None:
    """Log the warnings of checks that were made. Raises :class:`ConfigError` with their problems in one line."""
    for line in found.warnings:
        log.warning("%s", redacted(line))
    if len(found.problems) == 1:
        raise ConfigError(found.problems[0])
    if found.problems:
        numbered = "; ".join(f"({number}) {line}" for number, line in enumerate(found.problems, 1))
        raise ConfigError(f"{len(found.problems)} things would stop the pipeline after the training: {numbered}")
