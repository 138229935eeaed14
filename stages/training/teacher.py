"""The file of a self-distillation's teacher: one of the user's, or the weights behind a registered version."""

from __future__ import annotations

import tempfile
from pathlib import Path

from stages.project.home import home
from stages.project.locks import file_lock
from yolov7.config import Train
from yolov7.errors import ConfigError
from yolov7.files import sha256_file
from yolov7.train.teacher import SELF

ADDRESS = "models:/"
TEACHERS = Path(".local/teachers")
"""Weights that were fetched, named by their sha256; in the home, so that copies of the project have them too."""


def teacher_file(train: Train) -> Path | None:
    """The file that `train.distill_from` names, fetched where it is an address; None without a teacher, and for `self`.

    Raises :class:`ConfigError` if it is missing, or is not the one of `train.distill_sha256`: DVC watches params.yaml
    and not the file, and an alias moves. Fetched once, it needs no server.
    """
    name, digest = train.distill_from, train.distill_sha256
    if not name or name == SELF:
        return None
    if name.startswith(ADDRESS):
        return _fetched(name, digest)
    path, tracked = Path(name), Path(f"{name}.dvc")
    if not path.is_file():
        how = f"`dvc pull {tracked}` brings it" if tracked.is_file() else "put it there"
        raise ConfigError(f"params.yaml: train.distill_from: {path}: no such file; {how}")
    _require(sha256_file(path), digest, name)
    return path


def _require(found: str, digest: str, name: str) -> None:
    if not digest:
        raise ConfigError(
            f"params.yaml: train.distill_sha256: missing next to `distill_from: {name}`, whose content DVC does not "
            f"track; write `distill_sha256: {found}`"
        )
    if found != digest:
        raise ConfigError(
            f"params.yaml: train.distill_sha256: params.yaml expects {digest}, but {name} has {found}; write that "
            "digest to learn from this teacher, or restore the original"
        )


def _fetched(address: str, digest: str) -> Path:
    """The best weights of the training behind a version."""
    folder = home() / TEACHERS
    path = folder / f"{digest}.safetensors"
    if _is_whole(path, digest):
        return path
    from stages.registry.versions import ModelRegistry

    with file_lock(folder / ".lock"):  # of several processes one fetches
        if not _is_whole(path, digest):
            registry = ModelRegistry()
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
                found = registry.checkpoint(registry.resolve(address), Path(temporary))
                _require(sha256_file(found), digest, address)
                found.replace(path)
    return path


def _is_whole(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest
