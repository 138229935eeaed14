"""Weights of int8 files, rounded so that their errors cancel in a layer's outputs.

The nearest step for each weight is the best only where the inputs of a convolution are unrelated. Features are not:
behind a ReLU none is negative, and neighbouring pixels are alike. So the inputs are rounded one after the other, and
the error of each is made up for by those that are not yet rounded, as much as changes the outputs least on the
calibration images. Source: GPTQ (Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained
transformers", 2022, arXiv 2210.17323, section 3), after the optimal brain surgeon (Hassibi and Stork, 1993); here for
convolutions, and with the bound on neighbouring weights of :mod:`yolov7.ranges`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolov7.export.calibrate import observed, outputs
from yolov7.export.quantize import CONVOLUTIONS, Placement, layer_names, scales_for
from yolov7.ranges import TOGETHER

log = logging.getLogger(__name__)

_DAMPING = 0.01
"""Share of the mean power of an input that is added to each: images say little about rare combinations."""
_MOST_DAMPING = 10.0
"""Where not even this makes the moments definite, in floating point, the steps are the nearest."""
_SAMPLES, _SAMPLES_PER_INPUT = 8192, 2
"""Places in the calibration images whose inputs are looked at: so many, or so many per input of a layer if that is
more, as far as there are any."""
_MEMORY = 2 << 30
"""Bytes for the second moments of the layers that are looked at together; the images are run once for each part."""
_BLOCK = 128
"""Inputs after which the rest of a layer learns of their errors."""
_LARGEST = 127


@dataclass(frozen=True)
class _Layer:
    """A convolution as `groups` matrices: outputs by inputs, which are channels and places of the kernel."""

    name: str
    """Its name in the network."""
    value: str
    """What it reads."""
    weight: str
    transposed: bool
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    """Top, left, bottom, right."""
    groups: int
    channels: int
    """Inputs of a group, the kernel aside."""

    @property
    def inputs(self) -> int:
        return self.channels * self.kernel[0] * self.kernel[1]

    @property
    def alike(self) -> tuple[int, bool]:
        """What layers that share a weight have in common."""
        return self.groups, self.transposed

    def samples(self, value: NDArray[np.float32], wanted: int, generator: np.random.Generator) -> Tensor:
        """Inputs at random places of one image's feature map (1, C, H, W): (groups, inputs, places)."""
        if self.transposed:
            return torch.from_numpy(_some(value[0].reshape(1, self.channels, -1), wanted, generator))
        top, left, bottom, right = self.pads
        padded = np.pad(value[0], ((0, 0), (top, bottom), (left, right)))
        _, height, width = padded.shape
        down, across = (dilation * np.arange(size) for dilation, size in zip(self.dilations, self.kernel, strict=True))
        rows = np.arange(0, height - int(down[-1]), self.strides[0])
        columns = np.arange(0, width - int(across[-1]), self.strides[1])
        corners = _some((rows[:, None] * width + columns).reshape(-1), wanted, generator)
        places = (down[:, None] * width + across).reshape(-1, 1) + corners
        found = padded.reshape(len(padded), -1)[:, places]  # channel, place in the kernel, sample
        return torch.from_numpy(found.reshape(self.groups, self.inputs, -1))

    def moments(self, found: Tensor) -> Tensor:
        """Sums of products of inputs (groups, inputs, inputs) over such samples.

        A transposed convolution's output reads one place of the kernel (two where the kernel exceeds the stride, which
        are taken as unrelated), so channels go together place by place.
        """
        products = found @ found.transpose(1, 2)
        if not self.transposed:
            return products
        return torch.kron(products[0], torch.eye(self.inputs // self.channels))[None]


def compensated_weights(
    graph: onnx.ModelProto,
    convolutions: Collection[str],
    batches: Callable[[], Iterable[np.ndarray]],
    images: int,
    placement: Placement,
) -> dict[str, NDArray[np.float32]]:
    """Weight name -> weight of the same shape, each number a whole number of its channel's steps, for these
    convolutions of a float graph.

    `batches` gives the calibration images, uint8 (B, 3, H, W) RGB, `images` in all; they are run once for every 2 GB of
    moments, which are as many numbers as a layer has inputs, squared. A weight that two convolutions share is rounded
    for both. Left out, so rounded to the nearest: transposed convolutions in groups, and, with a warning, layers whose
    values are too large for moments.
    """
    layers = _layers(graph, convolutions)
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in graph.graph.initializer
        if any(tensor.name == layer.weight for layer in layers)
    }
    started, found = time.monotonic(), dict[str, NDArray[np.float32]]()
    for part in _parts(layers):
        for name, (layer, moments, seen) in _moments(graph, part, batches, images).items():
            try:
                found[name] = _rounded(weights[name], layer, moments, seen, placement)
            except torch.linalg.LinAlgError:
                log.warning("int8: the inputs of %s are too large; its weights have the nearest steps", layer.name)
    log.info("int8: weights of %d layers rounded in %.0f s", len(found), time.monotonic() - started)
    return found


def round_compensated(
    weight: NDArray[np.float64],
    moments: Tensor,
    scales: NDArray[np.float64],
    neighbours: NDArray[np.int64] | None = None,
    damping: float = _DAMPING,
) -> NDArray[np.float64]:
    """Whole steps (O, I), -127 to 127, for `weight` (O, I) with a scale for each of O outputs.

    `moments` (I, I) are the inputs' mean products, of any scale. `neighbours` (I, N) are the inputs whose weights may
    have magnitudes of 128 together with an input's own; I stands for none. `damping` is the share of an input's mean
    power that is added to each. Raises :class:`torch.linalg.LinAlgError` for moments that are not finite.
    """
    count = weight.shape[1]
    power = moments.diagonal().numpy().astype(np.float64)
    order = np.argsort(-power, kind="stable")  # the inputs that matter most are rounded while others can make up for it
    spread = _spread(moments.to(torch.float64).numpy()[np.ix_(order, order)], damping)
    left, steps = weight[:, order].copy(), np.zeros((len(weight), count + 1))
    most = np.full(len(weight), float(_LARGEST))
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = np.zeros((len(weight), end - start))
        for column in range(start, end):
            place = order[column]
            if neighbours is not None:
                most = np.minimum(TOGETHER - np.abs(steps[:, neighbours[place]]).max(axis=1), _LARGEST)
            steps[:, place] = np.clip(np.round(left[:, column] / scales), -most, most)
            error = (left[:, column] - steps[:, place] * scales) / spread[column, column]
            left[:, column:end] -= np.outer(error, spread[column, column:end])
            errors[:, column - start] = error
        left[:, end:] -= errors @ spread[start:end, end:]
    return steps[:, :count]


def _spread(moments: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """The upper triangular U with inverse(moments) = U^T U: row i is how the error of input i is made up for."""
    powers = np.diag(moments).copy()
    if not np.isfinite(powers).all():
        raise torch.linalg.LinAlgError("moments that are not finite")
    unseen, diagonal = powers == 0, np.diag_indices(len(moments))
    turned = torch.from_numpy(moments[::-1, ::-1].copy())
    while True:
        # Nothing is known of those that were never seen: rounded to the nearest, and no help to others.
        damped = np.where(unseen, 1.0, powers + damping * powers.mean())
        turned.numpy()[diagonal] = damped[::-1]
        # moments = V V^T with V upper triangular, by Cholesky from the last input on; then U is the inverse of V.
        factor, failed = torch.linalg.cholesky_ex(turned)
        if not int(failed):
            eye = torch.eye(len(moments), dtype=torch.float64)
            return np.asarray(torch.linalg.solve_triangular(factor.flip(0, 1), eye, upper=True).numpy())
        damping *= 10
        if damping > _MOST_DAMPING:
            raise torch.linalg.LinAlgError("moments that are not definite")


def _rounded(
    weight: NDArray[np.float32], layer: _Layer, moments: Tensor, seen: int, placement: Placement
) -> NDArray[np.float32]:
    """The weight on its steps, by the moments of `seen` samples: the fewer, the less they are believed."""
    damping = _DAMPING * max(1.0, layer.inputs / (2 * max(seen, 1)))
    axis = int(layer.transposed)
    scales = scales_for(placement)(weight, axis=axis).astype(np.float64)
    neighbours = None if placement == "tensorrt" else neighbouring(layer.channels, layer.kernel)
    rows = np.moveaxis(weight, axis, 0)
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    steps, each = np.empty_like(flat), len(flat) // layer.groups
    for group in range(layer.groups):
        mine = slice(group * each, (group + 1) * each)
        steps[mine] = round_compensated(flat[mine], moments[group], scales[mine], neighbours, damping)
    values = (steps * scales[:, None]).astype(np.float32).reshape(rows.shape)
    return np.ascontiguousarray(np.moveaxis(values, 0, axis))


def neighbouring(channels: int, kernel: tuple[int, int]) -> NDArray[np.int64]:
    """For each input (channel, then place of the kernel), those that :func:`yolov7.ranges.weight_scales` calls its
    neighbours: (channels * places, 4), with the number of inputs for none."""
    places = kernel[0] * kernel[1]
    count = channels * places
    first = np.arange(count)
    second = first.reshape(channels, places).T.reshape(-1)  # the inputs in the other order
    found = np.full((count, 4), count)
    for at, order in ((0, first), (2, second)):
        found[order[1:], at] = order[:-1]
        found[order[:-1], at + 1] = order[1:]
    return found


def _layers(graph: onnx.ModelProto, convolutions: Collection[str]) -> list[_Layer]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    found, names = list[_Layer](), layer_names(graph)
    for node in graph.graph.node:
        if node.name not in convolutions or node.op_type not in CONVOLUTIONS or node.input[1] not in shapes:
            continue
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        transposed, groups, shape = node.op_type == "ConvTranspose", given.get("group", 1), shapes[node.input[1]]
        if (transposed and groups > 1) or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            continue
        found.append(
            _Layer(
                name=names[node.name],
                value=node.input[0],
                weight=node.input[1],
                transposed=transposed,
                kernel=(shape[2], shape[3]),
                strides=tuple(given.get("strides", (1, 1))),
                dilations=tuple(given.get("dilations", (1, 1))),
                pads=tuple(given.get("pads", (0, 0, 0, 0))),
                groups=groups,
                channels=shape[0 if transposed else 1],
            )
        )
    # Moments of convolutions that read one weight in different ways have no sum.
    different = {
        one.weight for one in found for other in found if one.weight == other.weight and one.alike != other.alike
    }
    return [layer for layer in found if layer.weight not in different]


def _parts(layers: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    """The layers in parts whose moments fit in memory; those that share a weight stay together."""
    by_weight: dict[str, list[_Layer]] = {}
    for layer in layers:
        by_weight.setdefault(layer.weight, []).append(layer)
    part, used = list[_Layer](), 0
    for together in by_weight.values():
        size = 4 * together[0].groups * together[0].inputs ** 2
        if part and used + size > _MEMORY:
            yield part
            part, used = [], 0
        part += together
        used += size
    if part:
        yield part


def _moments(
    graph: onnx.ModelProto, layers: Sequence[_Layer], batches: Callable[[], Iterable[np.ndarray]], images: int
) -> Mapping[str, tuple[_Layer, Tensor, int]]:
    """Weight name -> its layer, sums of products of its inputs (groups, inputs, inputs), and the number of samples."""
    generator = np.random.default_rng(0)
    names = sorted({layer.value for layer in layers})
    found: dict[str, tuple[_Layer, Tensor, int]] = {}
    for values in outputs(observed(graph, names), names, batches()):
        by_name = dict(zip(names, values, strict=True))
        for layer in layers:
            wanted = -(-max(_SAMPLES, _SAMPLES_PER_INPUT * layer.inputs) // images)
            samples = layer.samples(by_name[layer.value], wanted, generator)
            more, count = layer.moments(samples), samples.shape[2]
            if layer.weight in found:
                first, sums, seen = found[layer.weight]
                found[layer.weight] = first, sums.add_(more), seen + count
            else:
                found[layer.weight] = layer, more, count
    return found


def _some(values: NDArray, wanted: int, generator: np.random.Generator) -> NDArray:
    """Up to `wanted` of the last axis, each at most once."""
    count = values.shape[-1]
    return values if count <= wanted else values[..., generator.choice(count, wanted, replace=False)]
