"""Values and weights rounded as in int8 files (:mod:`yolov7.ranges`), with gradients: parts of the quantised form."""

# ruff: noqa: D102 - `forward` computes what the class says

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, wrap_torch_function

from yolov7.device import widest_float
from yolov7.errors import ModelError
from yolov7.ranges import HALF, PAIR, Range

_STEPS = 255

_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")

Convolution = nn.Conv2d | nn.ConvTranspose2d


class InputRange(nn.Module):
    """The learnt range of a value, and its rounding to 256 steps: x of any shape -> the same shape.

    `bounds` (2,) are the ends of the range in units of its width when it was set, `unit`: so one learning rate suits
    values of every size. The range that is used always includes zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bounds = nn.Parameter(torch.tensor([0.0, 1.0]))
        self.unit: Tensor
        self.register_buffer("unit", torch.ones(()))

    @torch.no_grad()
    def set(self, low: float, high: float) -> None:
        """Set the range. Raises :class:`ModelError` for one that is empty or not finite."""
        low, high = min(low, 0.0), max(high, 0.0)
        if not (math.isfinite(high - low) and high > low):
            raise ModelError(f"a range from {low:g} to {high:g} cannot be rounded to eight bits")
        self.unit.fill_(high - low)
        self.bounds.copy_(torch.tensor([low / (high - low), high / (high - low)]))

    def range(self) -> Range:
        """Smallest and largest number in eight bits."""
        low, high = (self.bounds.detach() * self.unit).tolist()
        return min(low, 0.0), max(high, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = _Rounding.apply(x, self.bounds * self.unit)
        return rounded

    def scale(self) -> Tensor:
        """The width of a step, without gradient."""
        ends = self.bounds.detach() * self.unit
        return _steps(ends[0].clamp(max=0.0), ends[1].clamp(min=0.0))[0]


class _Rounding(torch.autograd.Function):
    """x -> x in 256 steps of the range `ends` (2,).

    As in LSQ+ (Bhalgat et al. 2020): inside the range the gradient of x passes, and an end moves with the rounding
    error; outside it goes to the end that x was clipped to. The gradient of the ends is divided by the square root of
    the numbers in an image times steps (LSQ, Esser et al. 2020, section 2.2): it grows with both.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor) -> Tensor:
        low, high = ends[0].clamp(max=0.0), ends[1].clamp(min=0.0)
        scale, zero = _steps(low, high)
        # Not torch.fake_quantize_per_tensor_affine: it multiplies by 1 / scale and adds the zero point before it
        # rounds, so a value in the middle of two steps, as means of rounded values are, falls to another side.
        rounded = (x / scale).round_().clamp_(-zero, _STEPS - zero).mul_(scale)
        first, last = -zero * scale, (_STEPS - zero) * scale  # what x is clipped to
        ctx.save_for_backward(x, rounded, first, last)
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor | None]:
        x, rounded, first, last = ctx.saved_tensors
        clipped = x.clamp(first, last)
        passed = torch.where(clipped == x, upstream, 0.0)
        if not ctx.needs_input_grad[1]:
            return passed, None
        stopped = upstream - passed
        above = (stopped * (x > last)).sum()
        below = stopped.sum() - above
        error = (upstream * (rounded - clipped)).sum() / (last - first)
        factor = 1.0 / math.sqrt(max(x[0].numel(), 1) * _STEPS)
        return passed, torch.stack((below - error, above + error)) * factor


def _steps(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point as :func:`yolov7.ranges.steps` has them, tensors that never leave the device."""
    wide = widest_float(low.device)
    width = high.to(wide) - low.to(wide)
    scale = width / _STEPS
    tiny = scale < torch.finfo(torch.float32).tiny
    zero = torch.where(tiny, 0.0, (-low.to(wide) / scale).round())
    return torch.where(tiny, 1.0, scale).float(), zero.float()


class QuantizedConv(nn.Module):
    """A convolution of rounded values with rounded weights, and a bias in steps of the two, as in the files.

    Of the convolutions that share the range of their input one has it among its modules.
    """

    def __init__(self, conv: Convolution, values: InputRange, *, owns: bool):
        super().__init__()
        self.transposed = isinstance(conv, nn.ConvTranspose2d)
        self._geometry: dict[str, Any] = {name: getattr(conv, name) for name in _GEOMETRY}
        self.weight = nn.Parameter(conv.weight.detach())
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach())
        if owns:
            self.input = values
        # In a tuple, so that no module has two names.
        self._values = (values,)

    @property
    def values(self) -> InputRange:
        """The range of the input."""
        return self._values[0]

    @property
    def owns_values(self) -> bool:
        """True if the range is among its modules."""
        return "input" in self._modules

    def forward(self, x: Tensor) -> Tensor:
        x, scales, options = rounded_value(x, self.values), self._weight_scales(), self._geometry
        weight, bias = self.rounded_weight(scales), self.rounded_bias(scales)
        stride, padding, groups, dilation = (options[name] for name in ("stride", "padding", "groups", "dilation"))
        if self.transposed:
            return F.conv_transpose2d(x, weight, bias, stride, padding, 0, groups, dilation)
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    def rounded_weight(self, scales: Tensor | None = None) -> Tensor:
        """The weights in steps of their scales, which are :func:`yolov7.ranges.weight_scales`."""
        scales = self._weight_scales() if scales is None else scales
        scales = scales[None, :, None, None] if self.transposed else scales[:, None, None, None]
        weight = self.weight.detach()
        # No magnitude has more than 127 steps, so nothing is clipped.
        return self.weight + ((weight / scales).round_().mul_(scales).sub_(weight))

    def rounded_bias(self, scales: Tensor | None = None) -> Tensor | None:
        """The bias in steps of the products of a value and a weight, of 32 bits."""
        if self.bias is None:
            return None
        bias = self.bias.detach()
        step = (self._weight_scales() if scales is None else scales) * self.values.scale()
        return self.bias + ((bias / step).round() * step - bias)

    def _weight_scales(self) -> Tensor:
        magnitudes = self.weight.detach().abs()
        magnitudes = magnitudes.transpose(0, 1) if self.transposed else magnitudes
        orders = [order.flatten(1) for order in (magnitudes, magnitudes.movedim(1, -1))]
        largest = together = orders[0].amax(1)
        for order in orders:
            if order.shape[1] > 1:
                together = torch.maximum(together, (order[:, 1:] + order[:, :-1]).amax(1))
        tiny = torch.finfo(torch.float32).tiny
        scales = largest / (largest / together.clamp(min=tiny) * PAIR).floor().clamp(HALF, PAIR)
        return torch.where(scales < tiny, 1.0, scales)

    def reparameterize(self) -> nn.Module:
        """The plain convolution with these weights."""
        kind: Any = nn.ConvTranspose2d if self.transposed else nn.Conv2d
        conv = kind(**self._geometry, bias=self.bias is not None, device="meta")
        conv.weight = nn.Parameter(self.weight.detach(), requires_grad=False)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach(), requires_grad=False)
        plain: nn.Module = conv
        return plain


@wrap_torch_function(lambda x, values: (x,))  # so that RoundedValues takes part
def rounded_value(x: Tensor, values: InputRange) -> Tensor:
    """`x` in steps of its range, in its own precision."""
    rounded: Tensor = values(x.float()).to(x.dtype)
    return rounded


class RoundedValues(TorchFunctionMode):
    """While it is active, convolutions that read the same value share its rounding. All others read the value itself,
    as in the files.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rounded: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func`, or look up a value that has been rounded."""
        if func is rounded_value:
            return self._once(*args)
        return func(*args, **(kwargs or {}))

    def _once(self, x: Tensor, values: InputRange) -> Tensor:
        """`x` rounded by the convolution that reads it first."""
        known = self._rounded.get(id(x))
        if known is not None:
            return known[1]
        rounded: Tensor = rounded_value(x, values)
        key, entries = id(x), self._rounded
        # Nothing is kept longer than the value itself, whose number may be that of another one later.
        entries[key] = weakref.ref(x, lambda _: entries.pop(key, None)), rounded
        return rounded
