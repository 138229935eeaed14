"""Devices: the one place where their kinds are named."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import DTypeLike

from yolov7 import memory
from yolov7.errors import ConfigError, ModelError

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def choose_device(name: str = "auto", *, local_rank: int | None = None) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; a name that this machine does not have is a :class:`ConfigError`.

    Of several processes on a machine each gives its `local_rank` and gets the accelerator of that number.
    """
    if local_rank is not None and name in ("auto", "cuda") and torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise ConfigError(f"process {local_rank + 1} of this machine has no GPU of its own: there are {count}")
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available: {str(error).splitlines()[0]}") from None
    return device


def has_nvidia_gpu() -> bool:
    """Whether this machine has a GPU that runs TensorRT's engines."""
    return torch.cuda.is_available()


def constant(values: Any, dtype: DTypeLike, device: torch.device) -> torch.Tensor:
    """Numbers, nested sequences of them included, as a tensor on the device."""
    return torch.from_numpy(np.asarray(values, dtype=dtype)).to(device)


@functools.lru_cache(maxsize=256)
def cached_constant(values: tuple[Any, ...], dtype: DTypeLike, device: torch.device) -> torch.Tensor:
    """The same, laid out once: for the few that come in every step. Nobody may change it."""
    with torch.inference_mode(False):  # training may use tensors that validation built
        return constant(values, dtype, device)


def distributed_backend(device: torch.device) -> str:
    """Backend of the messages between processes: for tensors on the CPU, and for those on `device`."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def has_native_sync_batchnorm(device: torch.device) -> bool:
    """True if `torch.nn.SyncBatchNorm` works there."""
    return device.type == "cuda"


def pins_memory(device: torch.device) -> bool:
    """True if page-locked memory makes copies to the device faster."""
    return device.type == "cuda"


def has_fused_sgd(device: torch.device) -> bool:
    """True if fused SGD is faster there; on a CPU it is not."""
    return device.type == "cuda"


def widest_float(device: torch.device) -> torch.dtype:
    """The type for sums of very many terms: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def allow_tf32(device: torch.device, allowed: bool) -> None:
    """Allow or forbid TF32 (10 bits of mantissa) for float32 products, on devices that have it."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = allowed
        torch.backends.cuda.matmul.allow_tf32 = allowed


def step_memory_kept(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Context in which a training step finds the memory of the step before, as accelerators' own allocators do it."""
    return memory.freed_memory_kept() if device.type == "cpu" else contextlib.nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """Accelerators raise their own exception class; their libraries and the CPU and MPS allocators only a message."""
    texts = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)


@functools.cache
def float16_works(device: torch.device) -> bool:
    """True if convolutions in float16 are correct there: some GPUs return NaN (reference sheet: known problems, 13)."""
    generator = torch.Generator().manual_seed(0)
    for inputs, outputs, side, stride in ((16, 32, 3, 1), (64, 128, 1, 1), (32, 64, 3, 2)):
        images = torch.rand(2, inputs, 40, 40, generator=generator)
        kernels = torch.randn(outputs, inputs, side, side, generator=generator) / (inputs * side**2) ** 0.5
        convolve = functools.partial(F.conv2d, stride=stride, padding=side // 2)
        half = [
            tensor.to(device, torch.float16).contiguous(memory_format=torch.channels_last)
            for tensor in (images, kernels)
        ]
        found = convolve(half[0], half[1]).float().cpu()
        if not torch.allclose(found, convolve(images, kernels), rtol=0.02, atol=0.02):
            log.warning("%s computes convolutions in float16 wrongly: float32 is used instead", device)
            return False
    return True


def autocast_dtype(device: torch.device, precision: Precision) -> torch.dtype | None:
    """The type to compute convolutions in, or None for plain float32.

    `auto` is what the published training uses: float16 on CUDA, float32 elsewhere (training sheet, section 2), and on a
    CUDA device that fails :func:`float16_works`.
    """
    if precision == "auto":
        return torch.float16 if device.type == "cuda" and float16_works(device) else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Context in which convolutions run in `dtype` (None: nothing changes)."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def gradient_scaler(device: torch.device, dtype: torch.dtype | None) -> torch.amp.GradScaler:
    """Dynamic loss scaling, active where gradients are float16."""
    return torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: of the accelerator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return memory.peak_memory_gib()


def onnx_providers(name: str, available: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Execution providers of ONNX Runtime, the preferred first, for a device named as PyTorch names it.

    `available` are those of the installed ONNX Runtime; `auto` takes CUDA if it is among them. Raises
    :class:`ModelError` for a device none of them serves.
    """
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    chosen = ("cuda" if cuda in available else "cpu") if name == "auto" else name
    kind, _, number = chosen.partition(":")
    if kind == "cpu":
        return [(cpu, {})]
    if kind == "cuda" and cuda in available and (number.isdecimal() or not number):
        return [(cuda, {"device_id": number or "0"}), (cpu, {})]
    raise ModelError(
        f"device {name!r}: this ONNX Runtime has {', '.join(available)}; "
        "install onnxruntime-gpu for CUDA, or use the .safetensors file"
    )
