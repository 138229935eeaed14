"""The resumable state of a training: everything the next step depends on, in one file that is never half written.

A state is a safetensors file whose header carries a JSON document; nothing is pickled. The two newest are kept, and
:meth:`StateFolder.newest` takes the newest that is complete, so a kill at any moment, inside a save too, costs at most
the work since the save before.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from yolov7.documents import parse_json
from yolov7.errors import TrainingError
from yolov7.files import atomic_path, why_not_written

log = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"state-(\d{9})\.safetensors")
_KEPT = 2
FIRST = "first"
"""Key of an identity: name of the folder, beside its own, of another run whose weights the run needs."""


@dataclass(frozen=True)
class TrainingState:
    """Tensors by name, and the plain values beside them."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors under `prefix.`, without it."""
        start = prefix + "."
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}


@dataclass(frozen=True)
class Last:
    """The run that a state belongs to, the code that saved it, and whether the run had come to its end."""

    identity: dict[str, Any]
    code: str
    finished: bool


class StateFolder:
    """Folder of the states of one run. `identity` identifies the run by parameters, data and network.

    `code` is a digest of the program that saves, which may change in the middle of a run; empty: not known.
    `on_saved` is called with the path of every state that was written; it must not raise.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        code: str = "",
        on_saved: Callable[[Path], None] = lambda path: None,
    ):
        self.folder = folder
        self.code = code
        self.on_saved = on_saved
        self.identity = json.loads(json.dumps(identity, sort_keys=True))

    def save(self, state: TrainingState, iteration: int) -> Path:
        """Write the state of `iteration`; older ones beyond two are removed afterwards.

        Raises :class:`TrainingError` where the disk is full; the states before stay.
        """
        path = self.folder / f"state-{iteration:09d}.safetensors"
        document = json.dumps({"format": FORMAT, "identity": self.identity, "code": self.code, "values": state.values})
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        try:
            with atomic_path(path) as temporary:
                save_file(tensors, temporary, metadata={"state": document})
        except (OSError, SafetensorError) as error:
            raise _save_error(error, path, tensors) from error
        for old in sorted(self._files())[:-_KEPT]:
            old.unlink(missing_ok=True)
        self.on_saved(path)
        return path

    def newest(self) -> TrainingState | None:
        """The newest complete state, or None; a damaged file is named in the log and skipped.

        Raises :class:`TrainingError` with the differences if the states belong to a run with other parameters.
        """
        # Left over from a save that was killed.
        for leftover in self.folder.glob(".state-*.tmp.safetensors"):
            leftover.unlink(missing_ok=True)
        for path in sorted(self._files(), reverse=True):
            try:
                document, tensors = _read(path)
            except (OSError, SafetensorError, ValueError, KeyError) as error:
                log.warning("%s: not a complete training state (%.200s); trying the one before", path, error)
                continue
            self._check(document, path)
            return TrainingState(tensors, document["values"])
        return None

    def last(self) -> Last | None:
        """The run that the newest complete state belongs to, None without one."""
        for path in sorted(self._files(), reverse=True):
            try:
                document = _header(path)
                finished = bool(document["values"]["position"]["finished"])
                return Last(document["identity"], document.get("code", ""), finished)
            except (OSError, SafetensorError, ValueError, KeyError, TypeError):
                continue
        return None

    def clear(self) -> None:
        """Remove the states, to start over."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return _states(self.folder)

    def _check(self, document: Mapping[str, Any], path: Path) -> None:
        if document["format"] != FORMAT:
            raise TrainingError(f"{path}: written in format {document['format']}, this version reads {FORMAT}")
        changes = differences(document["identity"], self.identity)
        if changes:
            raise TrainingError(
                f"{path}: this state belongs to another run ({'; '.join(changes)}); "
                "restore the old parameters, or delete the folder to start over"
            )


def iteration_of(path: Path) -> int:
    """The iteration after which a state was saved, by its name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path}: not the name of a training state")
    return int(match[1])


def newest_iteration(folder: Path) -> int:
    """The iteration of the newest state in a run's folder; -1 where there is none."""
    return max(map(iteration_of, _states(folder)), default=-1)


def _states(folder: Path) -> list[Path]:
    return [path for path in folder.glob("state-*.safetensors") if _NAME.fullmatch(path.name)]


def _document(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The document in a state's header. Raises ValueError for one that no training saved."""
    document = parse_json((metadata or {})["state"], any_text=True)
    if not isinstance(document, dict):
        raise ValueError("its header is not an object")
    needs = {"format": int, "identity": dict, "values": dict}
    wrong = [key for key, kind in needs.items() if type(document.get(key)) is not kind]
    if wrong or not isinstance(document.get("code", ""), str):
        raise ValueError(f"its header has no {', '.join(wrong or ['code'])}")
    return document


def _header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return _document(file.metadata())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        document = _document(file.metadata())
        return document, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Differences between two nested mappings, a line a value: `train.epochs: was 300, is now 100`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{at}.{key}".strip("."))]
    return [] if old == new else [f"{at}: was {old!r}, is now {new!r}"]


def _save_error(error: Exception, path: Path, tensors: Mapping[str, torch.Tensor]) -> TrainingError:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    why = why_not_written(error, size)
    return TrainingError(f"{path}: the training state could not be saved: {why}. The state before it is intact")


def prune(parent: Path, keep: int, current: Path, *, needs: str | None = None) -> None:
    """Remove the state folders of the oldest runs under `parent`, leaving `keep` and never `current`.

    What a run that stays needs the weights of (:data:`FIRST`) stays too, and what needs those of `current`. `needs` is
    the name of the folder that `current` itself needs.
    """
    # Folders without a state, of runs that were refused or failed early, do not count.
    folders = [path for path in parent.glob("*") if path != current and any(path.glob("state-*.safetensors"))]
    folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    first_of = {path: _first_of(path) for path in folders}
    kept = {*folders[: max(keep - 1, 0)], *(path for path in folders if first_of[path] == current.name)}
    needed = {needs, *(first_of[path] for path in kept)}
    for folder in folders:
        if folder in kept or folder.name in needed:
            continue
        log.info("removing the state of an older run: %s", folder)
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _first_of(folder: Path) -> str | None:
    last = StateFolder(folder, {}).last()
    return None if last is None else last.identity.get(FIRST)
