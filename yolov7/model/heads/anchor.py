"""YOLOv7's anchor head: the spec, the module, and the decoding of its maps.

Source: reference sheet: architecture, sections 1 (predictions, biases, anchors) and 2 (IDetect, IAuxDetect, decoding).

Dimension letters: B batch, L levels, A anchors per level, h w cells of a level, N = sum of A*h*w, C classes, F = 5 + C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from yolov7.config import AnchorLoss, LossParameters
from yolov7.errors import ModelError
from yolov7.model.blocks import ConvUnit, ImplicitConvUnit
from yolov7.model.spec import Block, Form, Head, Map, Network, Scaling
from yolov7.predictions import Scoring, objectness_scoring

Anchors = Sequence[Sequence[Sequence[float]]]
"""(L, A, 2) width and height in pixels, however they are given."""
AnchorTable = tuple[tuple[tuple[float, float], ...], ...]
"""(L, A, 2) width and height in pixels, small level to large, as a spec and a file hold them."""

BIAS_IMAGE_SIDE = 640  # the side the objectness prior is reckoned at, for every input size
BIAS_OBJECTS = 8  # objects expected on such an image
BIAS_CLASS = 0.6
DECODING = "centre = (2 sigmoid - 0.5 + cell) x stride; side = (2 sigmoid)^2 x anchor, pixels"
"""Formula of :func:`decode` in the contract of files with raw maps; runtimes recognise such a file by it."""


@dataclass(frozen=True)
class Level:
    """One level of the head: the convolution before the predictions, and the map it reads."""

    name: str
    conv: Block
    of: str


@dataclass(frozen=True, kw_only=True)
class AnchorHead(Head):
    """IDetect (with `auxiliary`: IAuxDetect): three anchors a cell, implicit vectors around the lead predictions."""

    parameters: ClassVar[type[LossParameters]] = AnchorLoss

    anchors: AnchorTable
    """(L, A, 2) width and height in pixels, small level to large."""
    lead: tuple[Level, ...]
    auxiliary: tuple[Level, ...] = ()
    """Levels that only training has; each may read another map than its lead level (partial auxiliary head)."""

    def reads(self, form: Form) -> tuple[str, ...]:
        """Names of the maps it takes: in deploy form those of the lead levels."""
        levels = (*self.lead, *self.auxiliary) if form == "training" else self.lead
        return tuple(dict.fromkeys(level.of for level in levels))

    def build(self, maps: Mapping[str, Map], act: str, num_classes: int) -> AnchorHeadModule:
        """The training form. Raises :class:`ModelError` for anchors that do not fit the levels."""
        anchors = _checked_anchors(self.anchors, levels=len(self.lead))
        if self.auxiliary and len(self.auxiliary) != len(self.lead):
            raise ModelError(f"{len(self.lead)} lead levels need as many auxiliary ones, got {len(self.auxiliary)}")

        def branch(level: Level, *, implicit: bool) -> Branch:
            source = maps[level.of]
            width = level.conv.output([source]).channels
            tower = level.conv.build([source.channels], act, merged=False)
            return Branch(tower, width, anchors.shape[1], num_classes, level.of, implicit=implicit)

        lead = [branch(level, implicit=True) for level in self.lead]
        auxiliary = [branch(level, implicit=False) for level in self.auxiliary]
        strides = tuple(level.conv.output([maps[level.of]]).stride for level in self.lead)
        return AnchorHeadModule(lead, auxiliary, anchors, strides, num_classes)

    def deployed(self) -> AnchorHead:
        """The head with its lead levels alone."""
        return replace(self, auxiliary=())

    def scaled(self, scaling: Scaling) -> AnchorHead:
        """Every level's convolution is a transition."""
        lead = tuple(replace(level, conv=level.conv.scaled(scaling)) for level in self.lead)
        auxiliary = tuple(replace(level, conv=level.conv.scaled(scaling)) for level in self.auxiliary)
        return replace(self, lead=lead, auxiliary=auxiliary)

    def current(self, module: nn.Module) -> AnchorHead:
        """The head with the anchors of its module, which published weights may have replaced."""
        assert isinstance(module, AnchorHeadModule)
        return self._with(module.anchors.detach().cpu().float())

    def _with(self, table: Tensor) -> AnchorHead:
        # Equal anchors stay as they are written, whole numbers for example: the bytes of a file depend on it.
        own = torch.tensor(self.anchors, dtype=torch.float32, device="cpu")
        return self if torch.equal(own, table) else replace(self, anchors=_nested(table))


def with_anchors(network: Network, anchors: Anchors) -> Network:
    """The network with other anchors (L, A, 2), in pixels. They are rounded to float32, and their levels turned round
    if the areas fall where the strides rise.

    Raises :class:`ModelError` for a head without anchors, and for anchors that do not fit its levels.
    """
    head = network.head
    if not isinstance(head, AnchorHead):
        raise ModelError(f"{network.name}: anchors are given, but its head has none")
    return replace(network, head=head._with(_checked_anchors(anchors, levels=len(head.lead))))


def anchors_of(network: Network) -> AnchorTable:
    """The network's anchors (L, A, 2) in pixels, rounded to float32; empty for a head without anchors."""
    if not isinstance(network.head, AnchorHead):
        return ()
    return _nested(torch.tensor(network.head.anchors, dtype=torch.float32, device="cpu"))


class Branch(nn.Module):
    """One level: (B, C_in, h, w) -> raw map (B, A, h, w, F)."""

    def __init__(self, tower: nn.Module, width: int, anchors: int, num_classes: int, reads: str, *, implicit: bool):
        super().__init__()
        self.reads = reads
        self.shape = (anchors, 5 + num_classes)
        self.tower = tower
        outputs = anchors * (5 + num_classes)
        self.predict: nn.Module = (
            ImplicitConvUnit(width, outputs, act="none", norm=False, before=("add",), after=("multiply",))
            if implicit
            else ConvUnit(width, outputs, act="none", norm=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = self.predict(self.tower(x))
        # (B, A*F, h, w) -> (B, A, F, h, w) -> (B, A, h, w, F)
        return y.unflatten(1, self.shape).permute(0, 1, 3, 4, 2)

    @torch.no_grad()
    def set_prior(self, stride: int) -> None:
        """Raise the biases of objectness and classes to the priors of a fresh network; box biases stay."""
        assert isinstance(self.predict, ConvUnit | ImplicitConvUnit) and self.predict.conv.bias is not None
        if self.predict.conv.bias.is_meta:
            return
        bias = self.predict.conv.bias.view(self.shape)  # (A, F)
        bias[:, 4] += math.log(BIAS_OBJECTS / (BIAS_IMAGE_SIDE / stride) ** 2)
        bias[:, 5:] += math.log(BIAS_CLASS / (self.shape[1] - 5 - 0.99))


class AnchorHeadModule(nn.Module):
    """The branches of all levels, and the anchors (L, A, 2) in pixels as a buffer."""

    def __init__(
        self,
        lead: Sequence[Branch],
        auxiliary: Sequence[Branch],
        anchors: Tensor,
        strides: tuple[int, ...],
        num_classes: int,
    ):
        super().__init__()
        self.strides = strides
        self.num_classes = num_classes
        self.lead = nn.ModuleList(lead)
        self.auxiliary = nn.ModuleList(auxiliary)
        self.anchors: Tensor
        self.register_buffer("anchors", anchors)
        for branches in (self.lead, self.auxiliary):
            for branch, stride in zip(branches, strides, strict=False):
                assert isinstance(branch, Branch)
                branch.set_prior(stride)

    @property
    def auxiliary_levels(self) -> int:
        """Number of auxiliary levels; 0 in deploy form."""
        return len(self.auxiliary)

    def leads(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Raw maps (B, A, h, w, F) of the lead levels, small stride to large."""
        return [branch(maps[branch.reads]) for branch in self.lead]  # type: ignore[index]

    def outputs(self) -> list[nn.Module]:
        """See :class:`yolov7.model.spec.HeadModule`."""
        return [branch.predict for branch in self.lead]  # type: ignore[misc]

    def raw(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Raw maps of the lead levels, then of the auxiliary levels if there are any."""
        return self.leads(maps) + [branch(maps[branch.reads]) for branch in self.auxiliary]  # type: ignore[index]

    def decode(self, raw: Sequence[Tensor]) -> Tensor:
        """See :func:`decode`."""
        return decode(raw, self.anchors, self.strides)

    @property
    def order(self) -> str:
        """Order of the decoded predictions, for contracts."""
        return "level (small stride first), anchor, row, column"

    def scoring(self) -> Scoring:
        """Objectness times class probability. With one class, its probability says nothing: objectness alone."""
        return objectness_scoring(self.num_classes)

    def predictions(self, height: int, width: int) -> int:
        """Number of predictions for an image of this size in pixels: one per level, anchor and cell."""
        return int(self.anchors.shape[1]) * sum((height // stride) * (width // stride) for stride in self.strides)

    def decoding_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of convolutions in the published decoding: none."""
        return 0

    def raw_contract(self) -> dict[str, Any]:
        """Description of the maps of `leads`, for a file that puts them out before the sigmoid."""
        return {
            "shape": ["batch", "anchors", "rows", "columns", 5 + self.num_classes],
            "order": "level (small stride first)",
            "values": "logits, before the sigmoid",
            "strides": list(self.strides),
            "anchors": _nested(self.anchors.detach().cpu().float()),
            "decoding": DECODING,
        }

    def reparameterize(self) -> AnchorHeadModule:
        """Drop the auxiliary levels; the branches that stay convert themselves."""
        self.auxiliary = nn.ModuleList()
        return self


def decode(raw: Sequence[Tensor], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """Predictions (B, N, F) from the raw maps (B, A, h, w, F) of the lead levels.

    F is x1, y1, x2, y2 in input pixels, objectness and class probabilities; the order is level, anchor, row, column.
    `anchors` (L, A, 2) in pixels. Half precision is decoded in float32, since it cannot tell neighbouring pixels apart
    on the right of a large image.
    """
    levels = []
    for maps, pairs, stride in zip(raw, anchors, strides, strict=True):
        h, w = maps.shape[2:4]
        dtype = maps.dtype if maps.dtype == torch.float64 else torch.float32
        x = (torch.arange(w, device=maps.device, dtype=dtype) - 0.5) * stride
        y = (torch.arange(h, device=maps.device, dtype=dtype) - 0.5) * stride
        corner = torch.stack((x.expand(h, w), y.unsqueeze(1).expand(h, w)), -1)  # (h, w, 2)
        s = maps.to(dtype).sigmoid()  # (B, A, h, w, F)
        centre = box_centre(s[..., :2], 2.0 * stride, corner)  # (B, A, h, w, 2)
        half = box_scale(s[..., 2:4]) * (2.0 * pairs.to(dtype))[:, None, None, :]  # half of the size
        level = torch.cat((centre - half, centre + half, s[..., 4:]), -1)  # (B, A, h, w, F)
        levels.append(level.flatten(1, 3))  # (B, A*h*w, F)
    return torch.cat(levels, 1)  # (B, N, F)


def box_centre(s: Tensor, reach: Tensor | float, corner: Tensor | float) -> Tensor:
    """Centres of boxes from sigmoids `s` (..., 2), in the unit of `reach` and `corner`.

    As published, centre = (2 s - 0.5 + cell) * stride (reference sheet: architecture, section 2). The constants are
    folded: `reach` is 2 strides, `corner` is (cell - 0.5) strides.
    """
    return s * reach + corner


def box_scale(s: Tensor) -> Tensor:
    """Sizes of boxes over 4 anchors from sigmoids `s` (..., 2): as published, size = (2 s)^2 * anchor."""
    return s * s


def _checked_anchors(anchors: Anchors, *, levels: int) -> Tensor:
    """(L, A, 2) float32; turned round if the areas fall where the strides rise (reference sheet, section 1)."""
    try:
        values = [[list(map(float, pair)) for pair in level] for level in anchors]
        table = torch.tensor(values, dtype=torch.float32, device="cpu")  # has values on the meta device too
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"anchors: {levels} levels of as many (width, height) pairs each are expected: {error}"
        ) from None
    if table.ndim != 3 or table.shape[0] != levels or table.shape[1] < 1 or table.shape[2] != 2:
        raise ModelError(f"anchors: shape ({levels}, anchors per level, 2) is expected, got {tuple(table.shape)}")
    if not bool(torch.isfinite(table).all()) or bool((table <= 0).any()):
        raise ModelError("anchors: every width and height must be a positive number of pixels")
    areas = table.prod(2).mean(1)
    return table.flip(0) if bool(areas[-1] < areas[0]) else table


def _nested(anchors: Tensor) -> AnchorTable:
    return tuple(tuple((float(w), float(h)) for w, h in level) for level in anchors.tolist())
