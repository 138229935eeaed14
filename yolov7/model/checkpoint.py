"""Weights on disk: one .safetensors file whose header describes them.

The header holds one entry, `yolov7`: JSON with the metadata and the whole network as data. So a file of a user's own
network can be read wherever the library is installed; only its own kinds of block, if it has any, must be handed over.
Nothing in a file is ever executed or imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.modules.module import register_module_module_registration_hook

from yolov7.documents import DocumentError, parse_json
from yolov7.errors import ModelError
from yolov7.files import atomic_path, why_not_written
from yolov7.metadata import MAX_STRIDE, StatedModel, read_stated, stated
from yolov7.model.detector import Detector, create_model
from yolov7.model.heads.anchor import AnchorTable, anchors_of, with_anchors
from yolov7.model.quantized import check_ranges, is_of_range, quantized
from yolov7.model.spec import Network
from yolov7.model.spec_json import LARGEST, network_from_json, network_to_json, own_kinds
from yolov7.model.variants import find_variant
from yolov7.text import printable

HEADER_KEY = "yolov7"
FORMAT = 1
MAX_MODULES = 10_000
"""The largest network of the library has 1,100."""
_BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class ModelMetadata:
    """Description of a file of weights."""

    variant: str
    form: str
    """`training`, `deploy` or `quantized`."""
    num_classes: int
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    """Category id in the data set, by class number."""
    image_size: int
    """Side of the square image it was trained at, in pixels."""
    anchors: AnchorTable = ()
    """(L, A, 2) in pixels; empty for a head without anchors."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Anything else that JSON can hold: how it was made."""

    @classmethod
    def of(
        cls,
        model: Detector,
        *,
        class_names: tuple[str, ...],
        category_ids: tuple[int, ...] | None = None,
        image_size: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ModelMetadata:
        """Metadata of `model`. Category ids default to 1..C, the image side to the network's own."""
        return cls(
            variant=model.variant,
            form=model.form,
            num_classes=model.num_classes,
            class_names=tuple(class_names),
            category_ids=tuple(range(1, model.num_classes + 1)) if category_ids is None else tuple(category_ids),
            image_size=model.spec.image_size if image_size is None else image_size,
            anchors=anchors_of(model.spec),
            extra=dict(extra or {}),
        )

    @classmethod
    def from_json(cls, text: str) -> ModelMetadata:
        """Inverse of :meth:`to_json`. Raises :class:`ModelError` for anything else."""
        try:
            return _metadata(read_stated(StatedModel, text)[0])
        except ModelError as error:
            raise ModelError(f"not the metadata of a model of this project: {error}") from None

    def to_json(self) -> str:
        """One JSON object, for formats that carry text beside the weights (ONNX)."""
        return json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name; `anchors` only where there are any."""
        return {name: value for name, value in asdict(self).items() if name != "anchors" or value}

    def __post_init__(self) -> None:
        if self.form not in ("training", "deploy", "quantized"):
            raise ModelError(f"form: 'training', 'deploy' or 'quantized' is expected, got {self.form!r}")
        for name in ("class_names", "category_ids"):
            if len(getattr(self, name)) != self.num_classes:
                raise ModelError(f"{name}: {self.num_classes} are expected, got {len(getattr(self, name))}")


def save_checkpoint(path: str | os.PathLike[str], model: Detector, metadata: ModelMetadata) -> None:
    """Write `model` in float32, in one step.

    The header's network has the anchors in use. Raises :class:`ModelError` if `metadata` is of another model, or the
    file cannot be written; the previous file at `path` is then still there.
    """
    found = (model.variant, model.form, model.num_classes)
    stated = (metadata.variant, metadata.form, metadata.num_classes)
    if found != stated:
        raise ModelError(f"{os.fspath(path)}: the metadata says {stated}, the model is {found}")
    network = model.spec
    if not _same_anchors(metadata.anchors, anchors_of(network)):
        raise ModelError(f"{os.fspath(path)}: the metadata's anchors are not the model's")
    header = {"format": FORMAT, **metadata.to_dict(), "network": network_to_json(network)}
    own = own_kinds(network)
    if own:  # named in the error of a reader without them
        header["own_kinds"] = {name: f"{kind.__module__}.{kind.__qualname__}" for name, kind in own.items()}
    tensors = {name: _stored(tensor) for name, tensor in model.state_dict().items()}
    metadata_text = json.dumps(header, ensure_ascii=False, sort_keys=True)
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={HEADER_KEY: metadata_text})
    except (OSError, SafetensorError) as error:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        message = f"{os.fspath(path)}: the weights could not be written: {why_not_written(error, size)}"
        raise ModelError(message) from error


def load_checkpoint(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", *, network: Network | str | None = None
) -> tuple[Detector, ModelMetadata]:
    """Read a file of :func:`save_checkpoint` into a model in eval mode, of the form it was saved in.

    The file describes its network. `network`, a :class:`Network` or MODULE:FUNCTION, is only needed where that has
    kinds of block of your own: they are taken from it, since a file never makes the library import anything.
    Raises :class:`ModelError` for a file that is missing, damaged, or not of this project.
    """
    file = Path(path)
    header, tensors = _read(file)
    try:
        metadata = _metadata(stated(StatedModel, header))
        model = _built(_network(header, metadata, network), metadata)
        if metadata.form == "deploy":
            unneeded = _pruned(model)
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(unneeded)}
        if metadata.form == "quantized":
            model = _quantized(model, tensors)
        else:
            _fill(model, tensors)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None
    except _BUILD_ERRORS as error:
        # The blocks check what their authors may do wrong, and torch the rest, in words of its own.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(f"{file}: the network in its header cannot be built: {reason}") from None
    return model.to(device).eval(), metadata


def _built(network: Network, metadata: ModelMetadata) -> Detector:
    """The described network without weights, in its form."""
    for name, found in network.maps().items():
        if not (1 <= found.channels <= LARGEST and 1 <= found.stride <= MAX_STRIDE):
            raise ModelError(f"stage {name!r} has {found.channels} channels at stride {found.stride}")
    with _few_modules():
        model = create_model(network, metadata.num_classes, device="meta")
    if not all(1 <= stride <= MAX_STRIDE for stride in model.strides):
        raise ModelError(f"the levels of its head have strides {model.strides}")
    return model if metadata.form == "training" else model.reparameterize()


def _quantized(deploy: Detector, tensors: Mapping[str, Tensor]) -> Detector:
    """The quantised form of a model on the meta device. Which ranges it has is only seen when it runs, with weights."""
    _fill(deploy, {name: tensor for name, tensor in tensors.items() if not is_of_range(name)})
    model = quantized(deploy)
    _fill(model, tensors)
    check_ranges(model)
    return model


@contextlib.contextmanager
def _few_modules() -> Iterator[None]:
    """Stop the building of a network of absurd depth."""
    left, thread = MAX_MODULES, threading.get_ident()

    def count(*_: object) -> None:
        nonlocal left
        if threading.get_ident() == thread:
            left -= 1
            if left < 0:
                raise ModelError(f"its network has more than {MAX_MODULES} modules")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _network(header: Mapping[str, Any], metadata: ModelMetadata, given: Network | str | None) -> Network:
    """The network of the header, with kinds of the `given` one where it has kinds of its own."""
    if isinstance(given, str):
        given = find_variant(metadata.variant, source=given) if given else None
    if given is not None and given.name != metadata.variant:
        raise ModelError(f"holds a {metadata.variant}, not a {given.name}")
    kinds = {} if given is None else own_kinds(given)
    origins = header.get("own_kinds", {})
    if not isinstance(origins, dict):
        raise ModelError("own_kinds: an object is expected")
    absent = [f"{name!r} ({origin})" for name, origin in origins.items() if name not in kinds]
    if absent:
        where = "the library does not have" if given is None else f"{given.name} as given does not have"
        raise ModelError(
            f"its network has kinds of block of its own that {where}: {', '.join(absent)}; say which network they are "
            "from: `network` of load_checkpoint and load_detector, or --network MODULE:FUNCTION"
        )
    network = network_from_json(header.get("network"), kinds=kinds)
    if network.name != metadata.variant:
        raise ModelError(f"holds a {metadata.variant}, not a {network.name}")
    if bool(anchors_of(network)) != bool(metadata.anchors):
        raise ModelError("the header is not that of a checkpoint of this project: it has no anchors")
    # Earlier files describe the network with its published anchors; the anchors in use are those beside it.
    return with_anchors(network, metadata.anchors) if metadata.anchors else network


def _pruned(model: Detector) -> tuple[str, ...]:
    """Prefixes of the tensors of stages that deploy form drops today and earlier files of that form may hold."""
    spec = model.spec
    kept = {wire.stage.name for wire in spec.wires_of("deploy")}
    return tuple(
        f"{wire.part}.{wire.stage.name}."
        for wire in spec.wires()
        if wire.stage.name not in kept and wire.part != "auxiliary"
    )


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not file.is_file():
        raise ModelError(f"{file}: no such file")
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(HEADER_KEY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]  # it may quote the file
        raise ModelError(f"{file}: damaged, or not a .safetensors file: {reason}") from None
    if text is None:
        raise ModelError(f"{file}: a .safetensors file, but not a checkpoint of this project (its header says nothing)")
    try:
        header = parse_json(text)
    except DocumentError as error:
        raise ModelError(f"{file}: the header cannot be read: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ModelError(f"{file}: the header is not of format {FORMAT}; it was written by another version")
    return header, tensors


def _metadata(stated: StatedModel) -> ModelMetadata:
    return ModelMetadata(
        variant=stated.variant,
        form=stated.form,
        num_classes=stated.num_classes,
        # As the names of an index are read: the two are compared.
        class_names=tuple(map(printable, stated.class_names)),
        category_ids=tuple(stated.category_ids),
        image_size=stated.image_size,
        anchors=tuple(tuple((float(w), float(h)) for w, h in level) for level in stated.anchors),
        extra=dict(stated.extra),
    )


def _fill(model: Detector, tensors: Mapping[str, Tensor]) -> None:
    """Fill a model on the meta device; every tensor must be present, with the right shape and type."""
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(tensors))
    foreign = sorted(set(tensors) - set(wanted))
    if missing or foreign:
        parts = [
            f"{len(names)} tensors are {what} (first {names[0]!r})"
            for names, what in ((missing, "missing"), (foreign, "not of this network"))
            if names
        ]
        raise ModelError(f"does not hold a {model.variant} in {model.form} form: {', '.join(parts)}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            have, want = (f"{tuple(t.shape)} {t.dtype}" for t in (tensor, wanted[name]))
            raise ModelError(f"{name}: {want} is expected, got {have}")
    _require_finite(tensors)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.load_state_dict(dict(tensors), assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    """One pass over the weights, milliseconds for a small network: a network with NaN runs, and finds nothing."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or bool(tensor.sum(dtype=torch.float32).isfinite()):
            continue
        if not bool(tensor.isfinite().all()):  # a sum may overflow
            raise ModelError(f"{name}: holds values that are not finite; the weights are damaged")


def _stored(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


def _same_anchors(first: AnchorTable, second: AnchorTable) -> bool:
    a, b = torch.tensor(first), torch.tensor(second)
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-3)
