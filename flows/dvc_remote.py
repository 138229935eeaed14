"""The DVC remote: results go there and come from there, and what it refuses is said in one line.

DVC tries a request several times by itself. What fails even so is told apart: a server that is away, slow or cuts
connections is worth another try after a pause; one that refuses will refuse again.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from flows.pipeline import Log, Pipeline, StageError


@dataclass(frozen=True)
class _Kind:
    words: re.Pattern[str]
    says: str
    lasting: bool


# Sought in this order in the output of DVC: its S3 client passes the server's words on.
_KINDS = (
    _Kind(
        re.compile(r"no remote (provided|specified)|config file error", re.IGNORECASE),
        "no remote is configured: `dvc remote add --default NAME URL`",
        True,
    ),
    _Kind(re.compile(r"NoSuchBucket|bucket does not exist", re.IGNORECASE), "there is no such bucket", True),
    _Kind(
        re.compile(r"Unable to locate credentials|NoCredentials|ProfileNotFound"),
        "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role",
        True,
    ),
    _Kind(
        re.compile(r"AccessDenied|Forbidden|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|Permission denied"),
        "the server refuses the credentials or their rights",
        True,
    ),
    _Kind(
        re.compile(r"No space left|quota exceeded|QuotaExceeded|EntityTooLarge", re.IGNORECASE), "no space left", True
    ),
    _Kind(
        re.compile(r"SlowDown|ServiceUnavailable|InternalError|RequestTimeout|reached max retries"),
        "the server is overloaded",
        False,
    ),
    _Kind(
        re.compile(r"Could not connect|timed out|Connection (was )?(closed|reset)|timeout on endpoint", re.IGNORECASE),
        "the server cannot be reached or cuts connections",
        False,
    ),
)


def push(pipeline: Pipeline, log: Log, *targets: str) -> None:
    """Push results (of `targets`, or of all stages) and the run cache to the default remote.

    Raises :class:`StageError`, lasting where another try would be refused as well.
    """
    _run(pipeline, "push", ["push", "--run-cache", *targets], log)


def pull(pipeline: Pipeline, log: Log, *targets: str, remote: str | None = None) -> None:
    """Bring the outputs of `targets`, as dvc.lock names them, from the cache or a remote. Raises as :func:`push`."""
    _run(pipeline, "pull", ["pull", *targets, *(["--remote", remote] if remote else [])], log)


def remotes(pipeline: Pipeline, log: Log) -> dict[str, str]:
    """Address of every remote by name, the default one first; folders by their full path."""
    lines = pipeline.run("remotes", [sys.executable, "-m", "dvc", "remote", "list"], log)
    rows = [line.split() for line in lines if line.strip()]
    rows.sort(key=lambda row: row[-1] != "(default)")
    return {row[0]: row[1] for row in rows}


def cache_folder(pipeline: Pipeline, log: Log) -> Path:
    """Where DVC keeps its cache."""
    return Path(pipeline.run("cache", [sys.executable, "-m", "dvc", "cache", "dir"], log)[-1])


def _run(pipeline: Pipeline, name: str, arguments: list[str], log: Log) -> None:
    try:
        pipeline.run(name, [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments], log)
    except StageError as error:
        raise explained(error, pipeline.root) from error


def explained(error: StageError, root: Path) -> StageError:
    """The error with its kind in words and whether it lasts, where its log tells; otherwise the error as it is."""
    if error.log is None:
        return error
    said = error.log.read_text(encoding="utf-8", errors="replace")
    for kind in _KINDS:
        if found := kind.words.search(said):
            message = (
                f"stage {error.stage}: the DVC remote: {kind.says} ({found[0]}); log: {error.log.relative_to(root)}"
            )
            return StageError(message, stage=error.stage, lasting=kind.lasting, log=error.log)
    return error
