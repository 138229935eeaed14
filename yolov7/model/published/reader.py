"""Read the tensors of a foreign `.pt` file without executing anything in it (reference sheet: checkpoint-keys, 1).

`unpickle.py` reads the structure in a limited process; here the bytes it points at become tensors.

Why not `torch.load(weights_only=True)`: measured with torch 2.13, a pickle of 400 bytes makes it allocate 2 GiB
(`bytearray`), a compressed archive of 0.4 MB unfolds to 400 MB, and a flipped bit passes; in a process of its own it
would add the seconds in which torch is imported to every file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolov7.errors import ModelError
from yolov7.model.published import unpickle

# A training run leaves modules of torch and scalars of numpy beside the network's own classes.
RECORD_PACKAGES = ("torch.nn", "numpy")
WALL_SECONDS = 30.0
"""The process's own limit is processor time; this one ends it on a machine that is busy with other things."""


@dataclass(frozen=True)
class Checkpoint:
    """Content of a `.pt` file."""

    path: Path
    entry: str
    """Entry that held its tensors: `ema`, `model`, or `the file itself` (a bare dictionary or module)."""
    tensors: dict[str, Tensor]
    """By the names of the file, contiguous, in the element types of the file."""
    class_names: tuple[str, ...]
    """Class names that a pickled module holds; empty if there are none."""


def read_checkpoint(path: str | os.PathLike[str], packages: Collection[str] = ()) -> Checkpoint:
    """Read a `.pt`: a pickled module or a dictionary of tensors, under `ema` or `model`, or bare.

    Objects of `packages` (`models`, say) are read as empty records; their code is never looked up. Raises
    :class:`ModelError`, within seconds, for a file that is missing, damaged or hostile.
    """
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"{file}: no such file")
    found = _described(file, packages)
    return Checkpoint(file, found["entry"], _tensors(file, found["tensors"]), tuple(found["class_names"]))


def _described(path: Path, packages: Collection[str]) -> dict[str, Any]:
    script = [sys.executable, "-I", "-S", unpickle.__file__, str(path), *RECORD_PACKAGES, *packages]
    try:
        done = subprocess.run(script, stdin=subprocess.DEVNULL, capture_output=True, timeout=WALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{path}: its pickle was not read within {WALL_SECONDS:g} s; no checkpoint needs that"
        ) from None
    except OSError as error:
        raise ModelError(f"{path}: the process that reads it cannot be started: {error}") from None
    if done.returncode:
        raise ModelError(
            f"{path}: its pickle cannot be read: the process that tried ended with exit code {done.returncode} "
            f"(it may use {unpickle.CPU_SECONDS} s and {unpickle.MEMORY >> 20} MiB, far more than a checkpoint needs)"
        )
    found: dict[str, Any] = json.loads(done.stdout)
    if "error" in found:
        raise ModelError(f"{path}: {found['error']}")
    return found


def _tensors(path: Path, described: Mapping[str, Any]) -> dict[str, Tensor]:
    """Each storage is read once, however many tensors lie in it, and its checksum verified."""
    by_member = defaultdict(list)
    for name, tensor in described.items():
        by_member[tensor["member"]].append((name, tensor))
    values: dict[str, Tensor] = {}
    with zipfile.ZipFile(path) as archive:
        for member, tensors in by_member.items():
            try:
                data = bytearray(archive.read(member))
            except unpickle.ZIP_ERRORS as error:
                raise ModelError(f"{path}: {member} is missing or damaged: {error}") from None
            values |= {name: _tensor(data, tensor) for name, tensor in tensors}
    return {name: values[name] for name in described}


def _tensor(data: bytearray, described: Mapping[str, Any]) -> Tensor:
    dtype, shape = getattr(torch, described["dtype"]), described["shape"]
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(data, dtype=dtype, count=len(data) // dtype.itemsize)
    return torch.as_strided(flat, shape, described["stride"], described["offset"]).clone(
        memory_format=torch.contiguous_format
    )
