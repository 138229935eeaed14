"""Files that a run starts from, checked by their digests, and the refusal to abandon a stopped run unnoticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolov7.config import Train
from yolov7.errors import ConfigError, TrainingError
from yolov7.files import sha256_file
from yolov7.train.state import FIRST, StateFolder, differences
from yolov7.weights.fetch import kept_file, published_file
from yolov7.weights.releases import is_published_name


def start_weights(train: Train, *, fetch: bool = True) -> str | None:
    """The sha256 of the file that `train.weights` names, or None without any.

    A published file is fetched, unless `fetch` is false: then its digest is the one of params.yaml until it is here.
    Raises :class:`ConfigError` if the file is missing or is not the one that `train.weights_sha256` names. DVC tracks
    params.yaml and not that file: only a digest there makes other weights another training.
    """
    if is_published_name(train.weights):
        return _published("weights", train.weights, train.weights_sha256, fetch=fetch)
    return _given_file("weights", train.weights, train.weights_sha256)


def _published(key: str, name: str, sha256: str, *, fetch: bool) -> str:
    """Nothing is fetched that params.yaml does not name by its digest."""
    found = published_file(name, "training") if fetch and sha256 else kept_file(name, "training")
    if found is None and sha256:
        return sha256
    if not sha256:
        how = f"write `{key}_sha256: {found.sha256}`" if found else "write the digest that this command prints: "
        command = "" if found else f"`yolov7 fetch-weights {name} --form training`"
        raise ConfigError(
            f"params.yaml: train.{key}_sha256: missing next to `{key}: {name}`, whose content DVC does not track; "
            f"{how}{command}"
        )
    if found is not None and found.sha256 != sha256:
        raise ConfigError(
            f"params.yaml: train.{key}_sha256: params.yaml expects {sha256}, but the published {found.path.name} at "
            f"{found.path} has {found.sha256}; write that digest to train from this file"
        )
    return sha256


def start_scales(train: Train) -> str | None:
    """The same for `train.scales`."""
    return _given_file("scales", train.scales, train.scales_sha256)


def _given_file(key: str, name: str, sha256: str) -> str | None:
    if not name:
        return None
    path, tracked = Path(name), Path(f"{name}.dvc")
    if not path.is_file():
        how = f"`dvc pull {tracked}` brings it" if tracked.is_file() else "put it there"
        raise ConfigError(f"params.yaml: train.{key}: {path}: no such file; {how}")
    found = sha256_file(path)
    if not sha256:
        raise ConfigError(
            f"params.yaml: train.{key}_sha256: missing next to `{key}: {path}`, whose content DVC does not track; "
            f"write `{key}_sha256: {found}`"
        )
    if found != sha256:
        how = f"`dvc checkout {tracked}` or `dvc pull {tracked}`" if tracked.is_file() else "put that file back"
        raise ConfigError(
            f"params.yaml: train.{key}_sha256: params.yaml expects {sha256}, but {path} has {found}; "
            f"write that digest to train from this file, or restore the original: {how}"
        )
    return found


def refuse_changed(
    variant: str,
    states: StateFolder,
    *,
    stage: str = "train",
    inputs: Sequence[str] = ("data",),
    names: Mapping[str, str] | None = None,
) -> None:
    """Raise :class:`TrainingError`, with the differences, if a stopped training would be abandoned unnoticed.

    That is a training of this variant on the same `inputs` (keys of the identity) whose parameters are no longer those
    of params.yaml, while the current ones have no state. New inputs start a new run without asking. `names` says where
    in params.yaml a parameter of the identity is set, if not under the same name.
    """
    if any(states.folder.glob("state-*.safetensors")):
        return
    for folder in sorted(states.folder.parent.glob("*")):
        last = None if folder == states.folder else StateFolder(folder, {}).last()
        old = {} if last is None or last.finished else last.identity
        if old.get(FIRST) == states.folder.name:
            continue  # the second of two trainings, whose first this is: it resumes after it
        if old and all(old.get(name) == states.identity[name] for name in inputs):
            changes = [_named(line, names or {}) for line in differences(_comparable(old, states), states.identity)]
            raise TrainingError(
                f"{folder}: a training of {variant} with other parameters was stopped before its end "
                f"({'; '.join(changes)}); restore the old parameters to resume it "
                "(if params.yaml is unchanged, an upgrade changed defaults: docs/operations.md, Upgrade), "
                f"or delete that folder or run `python -m stages.{stage} --variant {variant} --fresh` to start over"
            )


def _named(difference: str, names: Mapping[str, str]) -> str:
    """A line of :func:`differences`, with the name that the parameter, or its group, has in params.yaml."""
    for name, where in names.items():
        if difference.startswith((f"{name}:", f"{name}.")):
            return where + difference.removeprefix(name)
    return difference


def _comparable(old: dict[str, Any], states: StateFolder) -> dict[str, Any]:
    """Of the second of two trainings the identity of its first, where that is what is there now: the two of a pair
    always differ in ways that nobody changed."""
    if FIRST not in old or FIRST in states.identity:
        return old
    first = StateFolder(states.folder.parent / old[FIRST], {}).last()
    return old if first is None else first.identity
