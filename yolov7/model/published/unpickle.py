"""Describe a foreign `.pt` file as JSON: a script that `reader.py` runs in a process of its own.

The pickle in such a file may name any function to call, and a few hundred bytes of it can keep a process busy for ever
(nested tuples as a dictionary key) or ask for all memory. So it is unpickled here, under limits of time and memory, by
Python's own unpickler, which resolves a short list of names to inert objects and refuses every other name. Nothing of
torch is imported: no foreign byte reaches it before it has been checked, and the process starts in milliseconds.

`python -I -S unpickle.py FILE PACKAGE...` prints one JSON object: the entry that was read, its class names and a
description of each tensor, or what is wrong with the file. Objects of the packages named become empty records.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

CPU_SECONDS, MEMORY = 3, 2**30
"""The largest published file takes 0.1 s and 40 MiB."""
MAX_PICKLE, MAX_DESCRIPTION = 256 * 2**20, 16 * 2**20
MAX_DEPTH, MAX_DIMENSIONS, MAX_NAME = 64, 16, 256

ITEM_SIZE = {
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
STORAGES = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
    ImportError,
)
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    KeyError,
    ValueError,
    RuntimeError,  # encrypted; also the base of zipfile's error for a compression it does not know
)


class RefusedError(Exception):
    """The file is not read; the message says why."""


class Record:
    """An object of a foreign class: its state and no behaviour."""

    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any):
        """Constructor arguments are ignored; the state follows through `__setstate__`."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str) -> Any:
        """An attribute of the object, or None."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class DType(str):
    """Element type of a storage or tensor."""


class Storage:
    """A storage of the archive, by name; its bytes are not read here."""

    def __init__(self, key: str, dtype: str):
        self.key, self.dtype = key, dtype


class Tensor:
    """A tensor as the pickle describes it: the storage, and which elements of it."""

    def __init__(self, storage: Storage, dtype: str, offset: int, shape: Sequence[int], stride: Sequence[int]):
        self.storage, self.dtype, self.offset, self.shape, self.stride = storage, dtype, offset, shape, stride


class Maker:
    """A function that the pickle may call. The pickle cannot change it: it has no `__setstate__`."""

    def __init__(self, make: Callable[..., Any]):
        self._make = make

    def __call__(self, *args: Any) -> Any:
        """Create the object."""
        return self._make(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function cannot be given a state")


def make_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
    """`torch._utils._rebuild_tensor*`; version 3 adds the dtype behind `requires_grad` and the hooks."""
    dtype = next((item for item in rest if isinstance(item, DType)), None)
    whole = isinstance(offset, int) and all(
        isinstance(item, tuple) and all(isinstance(number, int) and number >= 0 for number in item)
        for item in (shape, stride)
    )
    fits = whole and offset >= 0 and len(shape) == len(stride) <= MAX_DIMENSIONS
    if not isinstance(storage, Storage) or not fits:
        raise pickle.UnpicklingError("a tensor record is not well formed")
    return Tensor(storage, dtype or storage.dtype, offset, shape, stride)


def make_parameter(data: Any, *rest: Any) -> Any:
    """`torch._utils._rebuild_parameter*`."""
    return data


def make_nothing(*args: Any) -> None:
    """Devices, memory layouts and the bytes of numpy scalars: none of them is needed."""


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch._utils", "_rebuild_tensor"): Maker(make_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Maker(make_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Maker(make_tensor),
    ("torch._utils", "_rebuild_parameter"): Maker(make_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Maker(make_parameter),
    ("torch", "Size"): Maker(lambda numbers=(): tuple(numbers)),
    ("torch", "device"): Maker(make_nothing),
    ("torch.serialization", "_get_layout"): Maker(make_nothing),
    ("_codecs", "encode"): Maker(make_nothing),
}


class Unpickler(pickle.Unpickler):
    """Resolves the names of `ALLOWED`, element types and the classes of `packages`; refuses every other name."""

    def __init__(self, file: Any, packages: Sequence[str]):
        super().__init__(file, encoding="utf-8")
        self._packages = packages

    def find_class(self, module: str, name: str) -> Any:
        """Called for every name in the pickle."""
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return DType(STORAGES[name])
        if module == "torch" and name in ITEM_SIZE:
            return DType(name)
        if any(module == package or module.startswith(f"{package}.") for package in self._packages):
            return type("Record", (Record,), {})
        asked = f"{module}.{name}"[:MAX_NAME]
        raise RefusedError(f"refused: it asks for {asked}, which no checkpoint of weights needs; nothing of it was run")

    def persistent_load(self, reference: Any) -> Storage:
        """Called for every storage."""
        match reference:
            case ("storage", DType() as dtype, str() as key, str(), int()):
                return Storage(key, dtype)
        raise pickle.UnpicklingError("a storage reference is not well formed")


def describe(path: str, packages: Sequence[str]) -> dict[str, Any]:
    """Content of a `.pt` file. Raises :class:`RefusedError` for one that is damaged, hostile or of another kind."""
    try:
        archive = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise RefusedError(f"truncated, or not a checkpoint of torch 1.6 or newer (a zip archive): {error}") from None
    members = {info.filename: info for info in archive.infolist()}
    pickles = [info.filename for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise RefusedError(f"a zip archive, but not written by torch.save: it has {len(pickles)} data.pkl")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in members:
        order = read_member(archive, members[f"{prefix}byteorder"], 16).decode("ascii", "replace")
        if order != sys.byteorder:
            raise RefusedError(f"its byte order is {order!r}, this machine's is {sys.byteorder!r}")
    data = read_member(archive, members[pickles[0]], MAX_PICKLE)
    try:
        content = Unpickler(io.BytesIO(data), packages).load()
    except UNPICKLING_ERRORS as error:
        raise RefusedError(f"its pickle is damaged: {' '.join(str(error).split())[:MAX_NAME]}") from None
    entry, weights = weights_of(content)
    tensors = {name: located(name, tensor, prefix, members) for name, tensor in named_tensors(weights)}
    if not tensors:
        raise RefusedError(f"there are no tensors in {entry}")
    check_sizes(path, tensors, members)
    return {"entry": entry, "class_names": class_names(weights), "tensors": tensors}


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """Bytes of a small member, with its checksum verified."""
    name = info.filename.rpartition("/")[2]
    if info.file_size > limit:
        raise RefusedError(f"{name} is too large; torch.save writes no such file")
    check_stored(info)
    try:
        return archive.read(info)
    except ZIP_ERRORS as error:
        raise RefusedError(f"{name} is missing or damaged: {error}") from None


def check_stored(info: zipfile.ZipInfo) -> None:
    """`torch.save` never compresses; a compressed member could unfold to any size."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise RefusedError(f"{info.filename[:MAX_NAME]!r} is compressed; torch.save writes no such file")


def weights_of(content: Any) -> tuple[str, Any]:
    """The averaged weights if the file has them, else the model, else the file itself."""
    if isinstance(content, dict):
        for entry in ("ema", "model"):
            if isinstance(content.get(entry), dict | Record):
                return entry, content[entry]
    if isinstance(content, dict | Record):
        return "the file itself", content
    raise RefusedError(f"a {type(content).__name__} is pickled in it, not a network or its tensors")


def named_tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors by dotted name: of a module's record, as its state dict would name them, or of a dictionary."""
    if isinstance(value, dict):
        return ((name, item) for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor))
    return walk(value, "", set())


def walk(value: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a module and its children. Each module is visited once: modules may name one another."""
    if not isinstance(value, Record) or id(value) in seen or prefix.count(".") > MAX_DEPTH:
        return
    seen.add(id(value))
    hidden = value.get("_non_persistent_buffers_set")
    for kind in ("_parameters", "_buffers"):
        for name, tensor in attributes(value, kind):
            if isinstance(tensor, Tensor) and not (isinstance(hidden, set) and name in hidden):
                yield f"{prefix}{name}", tensor
    for name, child in attributes(value, "_modules"):
        yield from walk(child, f"{prefix}{name}.", seen)


def attributes(record: Record, kind: str) -> list[tuple[str, Any]]:
    """Named entries of one of a module's dictionaries."""
    found = record.get(kind)
    return [(name, item) for name, item in found.items() if isinstance(name, str)] if isinstance(found, dict) else []


def located(name: str, tensor: Tensor, prefix: str, members: dict[str, zipfile.ZipInfo]) -> dict[str, Any]:
    """Location of a tensor's values; checks that they all lie inside its storage."""
    if len(name) > MAX_NAME or not name.isprintable():
        raise RefusedError(f"its pickle is damaged: {name[:MAX_NAME]!r} is not the name of a tensor")
    member = f"{prefix}data/{tensor.storage.key}"
    if member not in members:
        raise RefusedError(f"data/{tensor.storage.key[:MAX_NAME]} is missing")
    check_stored(members[member])
    elements = members[member].file_size // ITEM_SIZE[tensor.dtype]
    count = prod(tensor.shape)
    if prod(max(side, 1) for side in tensor.shape) >= 2**62:  # without elements, and still too much to count
        raise RefusedError(f"{name}: its sides are too large")
    if any(step >= 2**62 for step in tensor.stride):  # of a side of 1, which nothing else looks at
        raise RefusedError(f"{name}: its strides are too large")
    reach = 1 + tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
    # A stride of 0 would let a few bytes claim to be a tensor of any size.
    if count and (reach > elements or count > elements):
        raise RefusedError(f"{name}: its data is cut off ({elements} elements, more are needed)")
    return {
        "member": member,
        "dtype": tensor.dtype,
        "offset": tensor.offset,
        "shape": tensor.shape,
        "stride": tensor.stride,
    }


def check_sizes(path: str, tensors: dict[str, Any], members: dict[str, zipfile.ZipInfo]) -> None:
    """Many tensors on one storage, or members that overlap, would unfold a small file to any size."""
    whole = Path(path).stat().st_size
    claimed = sum(prod(tensor["shape"]) * ITEM_SIZE[tensor["dtype"]] for tensor in tensors.values())
    stored = sum(members[member].file_size for member in {tensor["member"] for tensor in tensors.values()})
    if claimed > whole or stored > whole:
        raise RefusedError("its tensors claim more bytes than the file has")


def class_names(weights: Any) -> list[str]:
    """The class names a pickled module holds; empty if it has none."""
    names = weights.get("names") if isinstance(weights, Record) else None
    if isinstance(names, dict):
        names = list(names.values())
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return []
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return []
    return names


def limit_resources() -> None:
    """Bound this process; where the system has no such limits the caller's timeout still ends it."""
    try:
        import resource
    except ImportError:
        return
    for kind, limit in ((resource.RLIMIT_CPU, CPU_SECONDS), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (OSError, ValueError):  # a lower hard limit is already in force, or the system does not have this one
            continue


def main(path: str, *packages: str) -> None:
    """Print the description of one file and end the process."""
    limit_resources()
    try:
        text = json.dumps(describe(path, packages))
    except RefusedError as error:
        text = json.dumps({"error": str(error)})
    except MemoryError:
        text = json.dumps({"error": f"reading it takes more than {MEMORY >> 20} MiB, as no checkpoint does"})
    if len(text) > MAX_DESCRIPTION:
        text = json.dumps({"error": f"it names more tensors than {MAX_DESCRIPTION >> 20} MiB can describe"})
    sys.stdout.write(text)
    sys.stdout.flush()
    os._exit(0)  # even freeing a hostile structure can take for ever


if __name__ == "__main__":
    main(*sys.argv[1:])
