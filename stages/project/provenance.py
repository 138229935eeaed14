"""Origin of a result: git revision, hash of the data, lock of the packages."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from stages.project.stage_code import Code
from yolov7.documents import MAX_YAML, DocumentError, read_text
from yolov7.files import sha256_file
from yolov7.yaml_text import read_yaml

PACKAGES = Path("requirements.lock")
UNKNOWN, DIRTY = "unknown", "-dirty"
UNTRACKED = "not tracked by DVC"
_WRITTEN = ("dvc.lock", "reference.json")
"""Written by the pipeline itself: results of this revision, not changes to it. The second one holds the statistics of
the champion's data (`flow.fetch_reference`); it judges data and changes none."""


def git_revision() -> str:
    """The commit of the working tree, with `-dirty` if it differs (:func:`git_changes`); `unknown` outside git."""
    try:
        revision = _git("rev-parse", "HEAD")
        changed = git_changes()
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return f"{revision}{DIRTY}" if changed else revision


def git_changes() -> list[str]:
    """Tracked files that differ from the commit, and untracked Python files: they may define a network of the user.

    Raises the errors of `subprocess.run` outside git.
    """
    lines = _git("status", "--porcelain", "--untracked-files=all").splitlines()
    found = (line.split(maxsplit=1) for line in lines)
    names = [name for state, name in found if state != "??" or name.strip('"').endswith(".py")]
    return [name for name in names if Path(name).name not in _WRITTEN]


def code_origin() -> dict[str, str]:
    """Tags that identify the code: the revision, the changes to it, and the lock of the packages."""
    revision = git_revision()
    tags = {"git_revision": revision}
    if revision.endswith(DIRTY):
        tags["git_changes"] = ", ".join(git_changes())[:1000]
    if PACKAGES.is_file():
        tags["packages_sha256"] = sha256_file(PACKAGES)
    return tags


def stage_code(stage: str, pipeline: Path = Path("dvc.yaml")) -> str | None:
    """Digest of the code that a stage runs, and of the Python files among its dependencies in dvc.yaml; None if there
    is neither.

    DVC runs the stage again when one of them changes; by this digest the stage can tell.
    """
    try:
        named = read_yaml(read_text(pipeline, MAX_YAML)).written["stages"][stage]["deps"]
    except (OSError, TypeError, KeyError, DocumentError):
        named = []
    paths = [Path(name) for name in named if isinstance(name, str) and not name.startswith("data/")]
    files = {file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])}
    sums = [f"{sha256_file(file)}  {file.as_posix()}\n" for file in files if file.suffix == ".py" and file.is_file()]
    lines = sorted({*sums, *Code().listing(stage).splitlines(keepends=True)}, key=lambda line: line.partition("  ")[2])
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def dvc_hash(output: str, lock: Path = Path("dvc.lock")) -> str | None:
    """DVC's hash of a stage output as recorded in dvc.lock; None if DVC has not run."""
    try:
        stages = read_yaml(read_text(lock, MAX_YAML)).written["stages"]
    except (OSError, TypeError, KeyError, DocumentError):
        return None
    for stage in stages.values():
        for out in stage.get("outs", []):
            if out.get("path") == output:
                return out.get("md5") or out.get("hash")
    return None
