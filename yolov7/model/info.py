"""What the networks cost and what was published about them: the table of `yolov7 info`.

Costs are counted on the network itself, laid out without memory; the published figures are those of the paper (tables
1, 2 and 9) as the reference sheet's `facts.json` holds them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.model.detector import Detector, create_model
from yolov7.model.spec import Network
from yolov7.model.variants import list_variants


@dataclass(frozen=True)
class Published:
    """Published results on COCO: AP in percent, frames per second on one V100 (batch 1, half precision, no NMS)."""

    ap: float
    """AP on the split named below."""
    split: str
    """`test-dev` or `val2017`."""
    image_size: int
    """Side the AP was measured at, in pixels."""
    ap50: float
    ap75: float
    fps: int | None = None


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "yolov7-tiny": Published(35.2, "val2017", 416, 52.8, 37.3),
        "yolov7-tiny-silu": Published(38.7, "test-dev", 640, 56.7, 41.7, 286),
        "yolov7": Published(51.4, "test-dev", 640, 69.7, 55.9, 161),
        "yolov7-x": Published(53.1, "test-dev", 640, 71.2, 57.8, 114),
        "yolov7-w6": Published(54.9, "test-dev", 1280, 72.6, 60.1, 84),
        "yolov7-e6": Published(56.0, "test-dev", 1280, 73.5, 61.2, 56),
        "yolov7-d6": Published(56.6, "test-dev", 1280, 74.0, 61.8, 44),
        "yolov7-e6e": Published(56.8, "test-dev", 1280, 74.4, 62.1, 36),
    }
)


@dataclass(frozen=True)
class VariantInfo:
    """One row of the table."""

    variant: str
    parameters_training: int
    parameters_deploy_unfused: int
    """As the published deploy checkpoints hold it: plain head, batch norms and RepConv branches still separate."""
    parameters_deploy: int
    """Re-parameterised: one biased convolution per conv unit. To be compared with the paper."""
    gflops_training: float
    """2 x multiply-accumulates of the convolutions at `image_size`, in 10^9."""
    gflops_deploy: float
    image_size: int
    strides: tuple[int, ...]
    published: Published | None

    def as_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return asdict(self)


def variant_info(variant: str | Network, *, num_classes: int = 80, image_size: int | None = None) -> VariantInfo:
    """Count one network at a square image of `image_size` pixels (None: its own)."""
    model = create_model(variant, num_classes, device="meta")
    deploy = model.reparameterize()
    side = model.spec.image_size if image_size is None else image_size
    return VariantInfo(
        variant=model.variant,
        parameters_training=count_parameters(model),
        parameters_deploy_unfused=count_deploy_unfused(model),
        parameters_deploy=count_parameters(deploy),
        gflops_training=round(conv_gflops(model, side), 4),
        gflops_deploy=round(conv_gflops(deploy, side), 4),
        image_size=side,
        strides=model.strides,
        published=PUBLISHED.get(model.variant),
    )


def family_info(variants: Iterable[str] | None = None) -> list[VariantInfo]:
    """Rows of the given variants, or of all that come with the library."""
    return [variant_info(name) for name in (list_variants() if variants is None else variants)]


def as_table(rows: Iterable[VariantInfo]) -> list[tuple[str, ...]]:
    """Heading and rows as text, for a terminal."""
    table: list[tuple[str, ...]] = [
        ("variant", "params train", "params deploy", "GFLOPs", "input", "strides", "AP", "AP on", "FPS V100")
    ]
    for row in rows:
        known = row.published
        table.append(
            (
                row.variant,
                f"{row.parameters_training:,}",
                f"{row.parameters_deploy:,}",
                f"{row.gflops_deploy:.1f}",
                str(row.image_size),
                "/".join(map(str, row.strides)),
                f"{known.ap:.1f}" if known else "-",
                f"{known.split} @{known.image_size}" if known else "-",
                str(known.fps) if known and known.fps else "-",
            )
        )
    return table


def count_parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_deploy_unfused(model: Detector) -> int:
    """Number of weights of a training form without implicit vectors and auxiliary levels, nothing folded."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.endswith(".implicit") and not name.startswith("head.auxiliary.")
    )


def conv_gflops(model: Detector, image_size: int) -> float:
    """2 x multiply-accumulates of all convolutions for one square image, in 10^9; no bias, no norm (rule A of the
    reference sheet: architecture, section 9). Auxiliary levels count where the model has them.

    Raises :class:`ModelError` if the network does not take images of this side.
    """
    if image_size < 1 or image_size % model.stride:
        raise ModelError(
            f"image size {image_size} is not a multiple of {model.variant}'s largest stride {model.stride}"
        )
    counting = copy.deepcopy(model).eval()
    counters = _with_counters(counting)
    # A convolution's work grows with the area, so the smallest image tells the work for any.
    counting.raw(torch.zeros(1, 3, model.stride, model.stride))
    work = sum(counter.multiply_accumulates for counter in counters)
    return 2 * work * (image_size // model.stride) ** 2 / 1e9


class _Counter(nn.Module):
    """Stands for a convolution: adds up its work and puts out a map of its shape."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.kernel, self.stride, self.padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
        self.channels, self.inputs = conv.out_channels, conv.in_channels // conv.groups
        self.multiply_accumulates = 0

    def forward(self, x: Tensor) -> Tensor:
        height, width = (
            (side + 2 * self.padding - self.kernel) // self.stride + 1 for side in (x.shape[2], x.shape[3])
        )
        y = x.new_zeros(x.shape[0], self.channels, height, width)
        self.multiply_accumulates += y.numel() * self.inputs * self.kernel**2
        return y


def _with_counters(module: nn.Module) -> list[_Counter]:
    """Replace every convolution in `module` by a counter, and whatever else has weights by nothing."""
    counters = []
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            counters.append(_Counter(child))
            module._modules[name] = counters[-1]
        elif any(True for _ in child.parameters(recurse=False)):
            module._modules[name] = nn.Identity()
        else:
            counters.extend(_with_counters(child))
    return counters
