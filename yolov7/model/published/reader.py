"""Reads a foreign `.pt` file without executing anything in it (reference sheet: checkpoint-keys, section 1).

Such a file is a zip archive with a pickle, and the pickle may name any function it wants called. The unpickler here
resolves a short list of names to inert stand-ins of its own - no function or class of torch, of the network's code or
of anybody else is looked up - and refuses every other name. What comes out are plain containers, :class:`Record`
objects in place of module objects, and :class:`TensorRecord` objects, whose bytes are read and checked afterwards.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yolov7.errors import ModelError

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "FloatStorage": torch.float32,
        "DoubleStorage": torch.float64,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
    }
)
NAMED_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
)
# Objects of these packages become records: the networks' own classes, torch's modules, and numpy's scalars (a training
# run leaves one behind). Their code is not loaded, so their names cannot do anything.
RECORD_PACKAGES = ("models", "torch.nn", "numpy")
MAX_PICKLE_BYTES = 256 * 2**20
MAX_DEPTH = 64

# What a broken or hostile pickle makes the unpickler raise.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
    ImportError,
)


class Record:
    """Stands for an object of a foreign class: its state, and no behaviour."""

    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any):
        """Arguments of a constructor are of no interest; the state comes by `__setstate__`."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str) -> Any:
        """An attribute the object had, or None."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class Storage(NamedTuple):
    """A storage of the archive, named but not read."""

    key: str
    dtype: torch.dtype
    elements: int


class TensorRecord:
    """A tensor of the archive: where its elements lie in a storage."""

    def __init__(
        self, storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
    ):
        self.storage, self.offset, self.shape, self.stride, self.dtype = storage, offset, shape, stride, dtype

    def __setstate__(self, state: Any) -> None:
        """A tensor's extra state (hooks, attributes) is of no interest."""


class _Maker:
    """A function the pickle may call. Unlike a plain function it has no attributes a pickle could set."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]):
        object.__setattr__(self, "_make", make)

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a function cannot be given a state")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function cannot be given a state")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorRecord:
    # torch 2's version 3 of this record carries the dtype after requires_grad and hooks; before, the storage tells it.
    dtype = next((item for item in rest if isinstance(item, torch.dtype)), None)
    integers = isinstance(offset, int) and all(
        isinstance(item, tuple) and all(isinstance(number, int) and number >= 0 for number in item)
        for item in (shape, stride)
    )
    if not isinstance(storage, Storage) or not integers or offset < 0 or len(shape) != len(stride):
        raise pickle.UnpicklingError("a tensor record is not well formed")
    return TensorRecord(storage, offset, shape, stride, dtype or storage.dtype)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    return tuple(numbers)


def _nothing(*args: Any) -> None:
    return None


_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = MappingProxyType(
    {
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("torch._utils", "_rebuild_tensor"): _Maker(_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): _Maker(_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): _Maker(_tensor),
        ("torch._utils", "_rebuild_parameter"): _Maker(_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): _Maker(_parameter),
        ("torch", "Size"): _Maker(_size),
        ("torch", "device"): _Maker(_nothing),
        ("torch.serialization", "_get_layout"): _Maker(_nothing),
        # The bytes of a numpy scalar; it is not needed.
        ("_codecs", "encode"): _Maker(_nothing),
    }
)


class _Unpickler(pickle.Unpickler):
    """Resolves the names above and no other; everything else in the pickle machine is data."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("torch", "torch.storage"):
            if name in DTYPES:
                return DTYPES[name]
            if module == "torch" and name in NAMED_DTYPES:
                return NAMED_DTYPES[name]
            if name == "UntypedStorage":
                return torch.uint8
        if any(module == package or module.startswith(f"{package}.") for package in RECORD_PACKAGES):
            return type("Record", (Record,), {"origin": f"{module}.{name}"})
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, reference: Any) -> Storage:
        match reference:
            case ("storage", torch.dtype() as dtype, str() as key, str(), int() as elements):
                return Storage(key, dtype, elements)
        raise pickle.UnpicklingError("a storage reference is not well formed")


class _RefusedError(Exception):
    """A name that is not on the list."""


class Archive:
    """An open `.pt` file: `content` is what the pickle holds, :meth:`tensor` reads a tensor of it.

    Raises :class:`ModelError` for a file that is not such an archive, is damaged, or names what it should not.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError(f"{self.path}: no such file")
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ModelError(
                f"{self.path}: truncated, or not a checkpoint of torch 1.6 or newer (a zip archive): {error}"
            ) from None
        try:
            self._read_index()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exception: object) -> None:
        self._zip.close()

    def _read_index(self) -> None:
        pickles = [name for name in self._zip.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ModelError(f"{self.path}: a zip archive, but not of torch.save: it has {len(pickles)} data.pkl")
        self._prefix = pickles[0].removesuffix("data.pkl")
        names = set(self._zip.namelist())
        order = (
            self._member("byteorder").decode("ascii", "replace") if f"{self._prefix}byteorder" in names else "little"
        )
        if order != sys.byteorder:
            raise ModelError(f"{self.path}: its byte order is {order!r}, this machine's is {sys.byteorder!r}")
        data = self._member("data.pkl", limit=MAX_PICKLE_BYTES)
        try:
            self.content = _Unpickler(io.BytesIO(data), encoding="utf-8").load()
        except _RefusedError as error:
            raise ModelError(
                f"{self.path}: refused: it asks for {error}, which a checkpoint of weights has no use for; nothing of "
                "it was run"
            ) from None
        except _UNPICKLING_ERRORS as error:
            raise ModelError(f"{self.path}: its pickle is damaged: {' '.join(str(error).split())}") from None

    def _member(self, name: str, limit: int | None = None) -> bytes:
        try:
            info = self._zip.getinfo(f"{self._prefix}{name}")
            # torch.save stores, it never compresses: a compressed member could unfold to any size.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > (limit or info.file_size):
                raise ModelError(f"{self.path}: {name} is compressed or too large; torch.save writes no such file")
            return self._zip.read(info)
        except (KeyError, zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
            raise ModelError(f"{self.path}: {name} is missing or damaged: {error}") from None

    def tensor(self, record: TensorRecord, name: str) -> Tensor:
        """The values of a record, contiguous, in the dtype of the file. `name` is for the error message."""
        data = self._member(f"data/{record.storage.key}")
        elements = len(data) // record.dtype.itemsize
        reach = 1 + record.offset + sum((n - 1) * s for n, s in zip(record.shape, record.stride, strict=True))
        count = 1
        for side in record.shape:
            count *= side
        # Strides of 0 would let a few bytes claim to be a tensor of any size.
        if count and (reach > elements or count > elements):
            raise ModelError(f"{self.path}: {name}: its data is cut off ({elements} elements, {reach} needed)")
        if not count:
            return torch.empty(record.shape, dtype=record.dtype)
        flat = torch.frombuffer(bytearray(data), dtype=record.dtype, count=elements)
        return torch.as_strided(flat, record.shape, record.stride, record.offset).clone(
            memory_format=torch.contiguous_format
        )


def named_tensors(value: Any) -> dict[str, TensorRecord]:
    """Tensors by dotted name: of a module's record, as its state dict would name them, or of a mapping of tensors."""
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, TensorRecord)}
    return dict(_walk(value, "", set()))


def _walk(value: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, TensorRecord]]:
    # A module met again is not walked again: a few modules that name one another could be walked for ever.
    if not isinstance(value, Record) or id(value) in seen or prefix.count(".") > MAX_DEPTH:
        return
    seen.add(id(value))
    hidden = value.get("_non_persistent_buffers_set")
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _members(value, kind):
            if isinstance(tensor, TensorRecord) and not (isinstance(hidden, set) and name in hidden):
                yield f"{prefix}{name}", tensor
    for name, child in _members(value, "_modules"):
        yield from _walk(child, f"{prefix}{name}.", seen)


def _members(record: Record, kind: str) -> list[tuple[str, Any]]:
    members = record.get(kind)
    if not isinstance(members, dict):
        return []
    return [(name, item) for name, item in members.items() if isinstance(name, str)]
