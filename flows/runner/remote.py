"""Push to and pull from the DVC remote, with its refusals explained in one line.

DVC retries a request several times by itself. What still fails is either transient (a server that is unavailable, slow
or drops connections), and worth a retry after a pause, or lasting: a server that refuses will refuse again.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.runner.pipeline import Log, Pipeline, StageError
from stages.project.command import environment
from stages.project.redaction import in_one_line
from yolov7.errors import ConfigError


@dataclass(frozen=True)
class _Kind:
    words: re.Pattern[str]
    says: str
    lasting: bool


# Searched in this order in the output of DVC, whose S3 client quotes the server.
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
    _Kind(
        re.compile(r"do not exist n?either locally nor on remote", re.IGNORECASE),
        "some of the data is missing there",
        True,
    ),
)


def push(pipeline: Pipeline, log: Log, *targets: str, name: str = "push") -> None:
    """Push results (of `targets`, or of all stages) and the run cache to the default remote.

    `name` is the name of its log, for pushes that may run at the same time. Raises :class:`StageError`, lasting if a
    retry would be refused as well.
    """
    _run(pipeline, name, ["push", "--run-cache", "--", *targets], log)


def pull(pipeline: Pipeline, log: Log, *targets: str, remote: str | None = None) -> None:
    """Bring the outputs of `targets`, as dvc.lock names them, from the cache or a remote. Raises as :func:`push`."""
    _run(pipeline, "pull", ["pull", *(["--remote", remote] if remote else []), "--", *targets], log)


def settings(root: Path) -> dict[str, str]:
    """DVC's settings of a project, from all its files, as `remote.NAME.url` and so on; folders as absolute paths.

    They may hold secrets. Raises :class:`ConfigError` if DVC cannot read them.
    """
    command = [sys.executable, "-m", "dvc", "config", "--list"]
    done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise ConfigError(f"{root}: DVC cannot read its settings: {in_one_line(done.stderr, 300)}")
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def remotes(found: Mapping[str, str]) -> dict[str, str]:
    """Address of every remote by its name, the default one first."""
    names = [key.removeprefix("remote.").removesuffix(".url") for key in found if re.fullmatch(r"remote\..+\.url", key)]
    names.sort(key=lambda name: name != found.get("core.remote"))
    return {name: found[f"remote.{name}.url"] for name in names}


def _run(pipeline: Pipeline, name: str, arguments: list[str], log: Log) -> None:
    try:
        pipeline.run(name, [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments], log)
    except StageError as error:
        raise explained(error, pipeline) from error


def explained(error: StageError, pipeline: Pipeline) -> StageError:
    """The error with its cause and whether it is lasting, if its log shows them; otherwise the error as it is."""
    if error.log is None:
        return error
    output = error.log.read_text(encoding="utf-8", errors="replace")
    for kind in _KINDS:
        if found := kind.words.search(output):
            where = pipeline.shown(error.log)
            message = f"stage {error.stage}: the DVC remote: {kind.says} ({found[0]}); log: {where}"
            return StageError(message, stage=error.stage, lasting=kind.lasting, log=error.log)
    return error
