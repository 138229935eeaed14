"""The accelerator at hand: the one place where device kinds are named."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

from yolov7.errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def choose_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; a name that this machine does not have is a :class:`ConfigError`."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not to be had here: {str(error).splitlines()[0]}") from None
    return device


def autocast_dtype(device: torch.device, precision: Precision) -> torch.dtype | None:
    """The type to compute convolutions in, or None for plain float32.

    `auto` is what the published training uses: float16 on CUDA, float32 elsewhere (training sheet, section 2).
    """
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Context in which convolutions run in `dtype` (None: nothing changes)."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def gradient_scaler(device: torch.device, dtype: torch.dtype | None) -> torch.amp.GradScaler:
    """Dynamic loss scaling, active where gradients are float16."""
    return torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory used so far in GiB: of the accelerator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    # Linux counts in KiB; macOS in bytes.
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
