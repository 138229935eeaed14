"""The quantised form of a network: deploy form that computes as its int8 files do, and can be trained (YOLOv6 paper,
section 2.5; reference sheet: yolov6-training, section 11).

Every convolution but the last of a path rounds its input and its weights, as the files do (:mod:`yolov7.ranges`).
Weights have a scale per output channel, by their magnitudes at the moment. Inputs have a learnt range each;
convolutions that read the same value share it. Gradients pass the rounding as if it were not there.

torch.ao.quantization is deprecated; its successors, PT2E of torchao and NNCF, train an exported graph in place of the
modules. Such a graph has fixed sides and names of its own, so the losses, the averages, the exact resume and the files
of this library would not know it, and neither learns the ranges of values or rounds biases as the files do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from yolov7.config import RangeMethod
from yolov7.errors import DataError, ModelError
from yolov7.model.detector import Detector
from yolov7.model.rounding import Convolution, InputRange, QuantizedConv
from yolov7.model.spec import HeadModule
from yolov7.ranges import Histogram, Range, range_of


def quantized(model: Detector) -> Detector:
    """A new detector in quantised form, in eval mode, with the weights of `model` and ranges that are still to be set.

    Its network has nothing that only training has. Raises :class:`ModelError` for a network with nothing to quantise.
    """
    deploy = model.reparameterize()
    deploy.deployed_only()
    groups = _readers(deploy)
    if not groups:
        raise ModelError(f"{model.variant}: no convolution can be quantised: each is the last of its path")
    for names in groups:
        values = InputRange()
        for name in names:
            conv = cast(Convolution, deploy.get_submodule(name))
            deploy.set_submodule(name, QuantizedConv(conv, values, owns=name == names[0]))
    deploy.form = "quantized"
    return deploy.to(next(model.parameters()).device)


@torch.no_grad()
def _readers(deploy: Detector) -> list[list[str]]:
    """Names of the convolutions that are quantised, those that read the same value together, in running order."""
    head = cast(HeadModule, deploy.head)
    try:
        last = {id(module) for output in head.outputs() for module in output.modules()}
    except AttributeError:
        raise ModelError(
            f"{deploy.variant}: its head does not say which convolutions are its last; give its module `outputs` "
            "(yolov7.model.spec.HeadModule)"
        ) from None
    names = {
        module: name
        for name, module in deploy.named_modules()
        if isinstance(module, Convolution) and id(module) not in last
    }
    groups: dict[int, list[str]] = {}
    seen: list[Tensor] = []  # keeps the values alive: an id is of one value as long as that lives

    def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        names_of_value = groups.setdefault(id(inputs[0]), [])
        if (name := names[cast(Convolution, module)]) not in names_of_value:
            names_of_value.append(name)

    like = next(deploy.parameters())
    image = torch.zeros(1, 3, deploy.stride, deploy.stride, device=like.device, dtype=like.dtype)
    with ExitStack() as hooks:
        for module in names:
            hooks.callback(module.register_forward_pre_hook(read).remove)
        head.leads(deploy.features(image))
    return list(groups.values())


def quantized_convolutions(model: Detector) -> dict[str, QuantizedConv]:
    """The quantised convolutions by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedConv)}


def is_of_range(name: str) -> bool:
    """True for the name of a tensor of an :class:`InputRange` in a quantised form."""
    return name.endswith(tuple(f".input.{tensor}" for tensor in ("bounds", "unit")))


def check_ranges(model: Detector) -> None:
    """Raise :class:`ModelError` for a range that is empty or not finite."""
    for name, conv in quantized_convolutions(model).items():
        low, high = conv.values.range()
        if not (math.isfinite(high - low) and high > low):
            raise ModelError(f"{name}: its input's range, from {low:g} to {high:g}, cannot be rounded to eight bits")


def learnt_ranges(model: Detector) -> dict[str, Range]:
    """The range of the input of every quantised convolution, by the name of its weight in deploy form."""
    return {f"{name}.weight": conv.values.range() for name, conv in quantized_convolutions(model).items()}


@torch.no_grad()
def calibrate(model: Detector, batches: Iterable[Tensor], method: RangeMethod) -> None:
    """Set the ranges of a quantised form by what its convolutions read, unrounded, on images (B, 3, H, W) in [0, 1].

    Raises :class:`DataError` without images, and :class:`ModelError` for values that are not finite.
    """
    plain = model.reparameterize()
    histograms = {
        name: Histogram(f"the input of {name}")
        for name, conv in quantized_convolutions(model).items()
        if conv.owns_values
    }

    def counted(histogram: Histogram) -> Any:
        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for image in inputs[0].detach().float().cpu().numpy():
                histogram.add(np.ascontiguousarray(image))

        return count

    images = 0
    with ExitStack() as hooks:
        for name, histogram in histograms.items():
            handle = plain.get_submodule(name).register_forward_pre_hook(counted(histogram))
            hooks.callback(handle.remove)
        for batch in batches:
            cast(HeadModule, plain.head).leads(plain.features(batch))
            images += len(batch)
    if not images:
        raise DataError("quantization: no images to calibrate with")
    convolutions = quantized_convolutions(model)
    for name, histogram in histograms.items():
        convolutions[name].values.set(*range_of(histogram, method))
