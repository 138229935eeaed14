"""YOLOv6's head: efficient and decoupled, with outputs that only training has (reference sheets: yolov6, sections 2 and
5, and yolov6-training, sections 7.6 and 7.7).

`objectness` is a study of the YOLOv6 paper (section 2.3.3 and table 11), which lost AP there. The paper defines neither
branch nor loss. Ours, as FCOS and YOLOX have it: one more output on the features of the box branch.

Dimension letters: B batch, c channels, h w cells of a level, C classes, S anchor slots, K bins, O = 1 with
`objectness`, else 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.model.blocks import ConvUnit
from yolov7.model.heads.aligned import AlignedHead, AlignedHeadModule, Bins, decode
from yolov7.model.spec import ADDED, Map, Network
from yolov7.predictions import Scoring

BINS = 17
"""Bins of a distance where it is a distribution."""
CLASS_PRIOR = -math.log((1 - 0.01) / 0.01)  # bias of class and object logits: probability 0.01
BOX_PRIOR = 1.0  # bias of the box channels

Anchors = tuple[tuple[tuple[float, float], ...], ...]
"""Width and height in pixels, of each slot of each level."""

ANCHORS: Anchors = (
    ((10.0, 13.0), (19.0, 19.0), (33.0, 23.0)),
    ((30.0, 61.0), (59.0, 59.0), (59.0, 119.0)),
    ((116.0, 90.0), (185.0, 185.0), (373.0, 326.0)),
)
"""Those of the anchor-aided training of release 3.0."""


@dataclass(frozen=True, kw_only=True)
class EfficientHead(AlignedHead):
    """A stem, a class branch and a box branch for each level; distances are numbers (`bins` 0) or distributions.

    Raw maps: those of the lead levels, (B, R + O + C, h, w). In training form follow, with `anchor_aided`, a map
    (B, S * (4 + C), h, w) of each level, slot-major, in a slot the box channels x, y, w, h and then the class logits;
    then, with `distributions`, a map (B, 4 * 17, h, w) of each level. Deploy form has neither.
    """

    bins: int = 0
    widths: tuple[int, ...] | None = None
    """Width of each level's branches, to which its stem maps; None: that of the level's map."""
    act: str | None = "silu"
    """Activation of the head's conv units; None: the network's."""
    anchor_aided: bool = False
    """Train with anchor-based predictions beside the anchor-free ones."""
    anchors: Anchors = ANCHORS
    """Of the anchor-based predictions, for each level."""
    distributions: bool = False
    """Train with distributions of the distances beside the direct ones."""
    objectness: bool = field(default=False, metadata=ADDED)
    """Predict an object logit, between box channels and class logits: a score is objectness x class probability."""

    def build(self, maps: Mapping[str, Map], act: str, num_classes: int) -> AlignedHeadModule:
        """The training form. Raises :class:`ModelError` for options that contradict each other or the levels."""
        self.check()
        return super().build(maps, act, num_classes)

    def branches(self, names: Sequence[str], maps: Mapping[str, Map], act: str, num_classes: int) -> list[nn.Module]:
        """A branch for each of the maps."""
        return [
            EfficientBranch(
                maps[name].channels,
                width,
                self.box_channels,
                num_classes,
                name,
                self.act or act,
                objectness=self.objectness,
            )
            for name, width in zip(names, self._widths(maps), strict=True)
        ]

    def assembled(
        self, lead: list[nn.Module], auxiliary: list[nn.Module], strides: tuple[int, ...], num_classes: int
    ) -> AlignedHeadModule:
        """The head's module, of these branches and the outputs that only training has."""
        if self.anchor_aided or self.distributions:
            slots = map(len, self.anchors) if self.anchor_aided else [0] * len(lead)
            auxiliary = [
                AuxiliaryOutputs(branch.width, num_classes, count, self.distributions)  # type: ignore[arg-type]
                for branch, count in zip(lead, slots, strict=True)
            ]
        return EfficientHeadModule(lead, auxiliary, self.bins, strides, num_classes, objectness=self.objectness)

    def deployed(self) -> EfficientHead:
        """The head without the predictions that only training has."""
        return replace(self, anchor_aided=False, distributions=False)

    @property
    def distribution_maps(self) -> tuple[int, int]:
        """See :class:`AlignedHead`: with `distributions` they are the last group."""
        return (1 + self.anchor_aided, BINS) if self.distributions else (0, self.bins)

    def check(self) -> None:
        """Raise :class:`ModelError` for options that contradict each other or the number of levels."""
        levels = len(self.lead)
        if self.auxiliary:
            raise ModelError("EfficientHead: levels of other maps have no place in it; `auxiliary` must be empty")
        if self.widths is not None and len(self.widths) != levels:
            raise ModelError(f"widths: {levels} are expected, one for each level, got {len(self.widths)}")
        if self.anchor_aided and len(self.anchors) != levels:
            raise ModelError(f"anchor_aided: anchors of {levels} levels are needed, got those of {len(self.anchors)}")
        if self.distributions and self.bins:
            raise ModelError("distributions: the distances are distributions already; set bins to 0")
        others = [name for name in ("anchor_aided", "distributions") if getattr(self, name)]
        if self.objectness and others:
            raise ModelError(f"objectness: not together with {' and '.join(others)}; set one of them to false")

    def _widths(self, maps: Mapping[str, Map]) -> tuple[int, ...]:
        return tuple(maps[name].channels for name in self.lead) if self.widths is None else self.widths


class EfficientHeadModule(AlignedHeadModule):
    """The branches of all levels, their outputs for training, and two copies of the numbers that bins stand for."""

    def __init__(
        self,
        lead: Sequence[nn.Module],
        auxiliary: Sequence[nn.Module],
        bins: int,
        strides: tuple[int, ...],
        num_classes: int,
        *,
        objectness: bool = False,
    ):
        super().__init__(lead, auxiliary, bins, strides, num_classes)
        self.objectness = objectness
        # The published networks hold the numbers twice, in every size, whether distances are distributions or not.
        self.lead_bins = Bins(bins or BINS)
        self.auxiliary_bins = None
        self.numbers = nn.Parameter(torch.arange(float(bins or BINS)), requires_grad=False)

    @property
    def auxiliary_levels(self) -> int:
        """Number of maps that only training has."""
        return sum(outputs.maps for outputs in self.auxiliary)  # type: ignore[misc]

    def raw(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Raw maps of the lead levels, then those that only training has; see :class:`EfficientHead`."""
        if not self.auxiliary:
            return self.leads(maps)
        leads, others = [], []
        for branch, outputs in zip(self.lead, self.auxiliary, strict=True):
            box, classes = branch.features(maps[branch.reads])  # type: ignore[operator, index]
            leads.append(branch.predict(box, classes))  # type: ignore[operator]
            others.append(outputs(box, classes))
        return leads + [level for kind in zip(*others, strict=True) for level in kind]

    def decode(self, raw: Sequence[Tensor]) -> Tensor:
        """See :func:`yolov7.model.heads.aligned.decode`."""
        assert self.lead_bins is not None
        return decode(raw, self.strides, self.lead_bins.values if self.bins else None)

    def scoring(self) -> Scoring:
        """Objectness times class probability where there is one; a single class is trained too."""
        return "objectness x class probability" if self.objectness else super().scoring()

    def raw_contract(self) -> dict[str, Any]:
        """See :class:`AlignedHeadModule`."""
        contract = super().raw_contract()
        if self.objectness:
            batch, channels, *cells = contract["shape"]
            values = contract["values"].replace("then class logits", "the object logit, then class logits")
            contract |= {"shape": [batch, channels + 1, *cells], "values": values}
        return contract


class EfficientBranch(nn.Module):
    """One level: (B, c, h, w) -> (B, R + O + C, h, w)."""

    def __init__(
        self,
        channels: int,
        width: int,
        box_channels: int,
        num_classes: int,
        reads: str,
        act: str,
        *,
        objectness: bool = False,
    ):
        super().__init__()
        self.reads = reads
        self.width = width
        self.stem = ConvUnit(channels, width, act=act)
        self.box = ConvUnit(width, width, 3, act=act)
        self.classes = ConvUnit(width, width, 3, act=act)
        self.box_output = _output(width, box_channels)
        self.class_output = _output(width, num_classes)
        self.object_output = _output(width, 1) if objectness else None

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.predict(*self.features(x))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of the box branch and of the class branch before their outputs."""
        x = self.stem(x)
        return self.box(x), self.classes(x)

    def predict(self, box: Tensor, classes: Tensor) -> Tensor:
        """The raw map of these features."""
        if self.object_output is None:
            return torch.cat((self.box_output(box), self.class_output(classes)), 1)
        return torch.cat((self.box_output(box), self.object_output(box), self.class_output(classes)), 1)

    def outputs(self) -> list[nn.Module]:
        """See :class:`yolov7.model.heads.aligned.Branch`."""
        outputs = (self.box_output, self.class_output, self.object_output)
        return [output for output in outputs if output is not None]

    def set_prior(self, stride: int) -> None:
        """Set the outputs of a fresh network, which say nothing yet."""
        _set_prior(self.box_output, BOX_PRIOR)
        _set_prior(self.class_output, CLASS_PRIOR)
        if self.object_output is not None:
            _set_prior(self.object_output, CLASS_PRIOR)


class AuxiliaryOutputs(nn.Module):
    """One level's outputs that only training has, on the features of its branch: a list of maps."""

    def __init__(self, width: int, num_classes: int, slots: int, distributions: bool):
        super().__init__()
        self.slots = slots
        self.anchor_box = _output(width, 4 * slots) if slots else None
        self.anchor_classes = _output(width, num_classes * slots) if slots else None
        self.distributions = _output(width, 4 * BINS) if distributions else None

    @property
    def maps(self) -> int:
        """Number of its maps."""
        return (self.anchor_box is not None) + (self.distributions is not None)

    def forward(self, box: Tensor, classes: Tensor) -> list[Tensor]:
        """Of these features: (B, S * (4 + C), h, w), (B, 4 * K, h, w), as far as there are."""
        maps = []
        if self.anchor_box is not None and self.anchor_classes is not None:
            boxes = self.anchor_box(box).unflatten(1, (self.slots, -1))  # (B, S, 4, h, w)
            logits = self.anchor_classes(classes).unflatten(1, (self.slots, -1))  # (B, S, C, h, w)
            maps.append(torch.cat((boxes, logits), 2).flatten(1, 2))
        if self.distributions is not None:
            maps.append(self.distributions(box))
        return maps

    def set_prior(self, stride: int) -> None:
        """Set the outputs of a fresh network, which say nothing yet."""
        for output, value in (
            (self.anchor_box, BOX_PRIOR),
            (self.anchor_classes, CLASS_PRIOR),
            (self.distributions, BOX_PRIOR),
        ):
            if output is not None:
                _set_prior(output, value)


def _output(channels: int, out: int) -> ConvUnit:
    """A plain 1x1."""
    return ConvUnit(channels, out, act="none", norm=False)


@torch.no_grad()
def _set_prior(output: ConvUnit, value: float) -> None:
    assert output.conv.bias is not None
    if not output.conv.bias.is_meta:
        output.conv.weight.zero_()
        output.conv.bias.fill_(value)


def with_options(
    network: Network,
    *,
    bins: int | None = None,
    anchor_aided: bool | None = None,
    distributions: bool | None = None,
    objectness: bool | None = None,
) -> Network:
    """The network with these options of its head; None keeps its own.

    Raises :class:`ModelError` for a network with another head, and for options that contradict each other.
    """
    given = {"bins": bins, "anchor_aided": anchor_aided, "distributions": distributions, "objectness": objectness}
    changed = {name: value for name, value in given.items() if value is not None}
    if not changed:
        return network
    head = network.head
    if not isinstance(head, EfficientHead):
        names = ", ".join(changed)
        raise ModelError(f"{network.name}: {names}: options of YOLOv6's head, but its head is {type(head).__name__}")
    head = replace(head, **changed)  # type: ignore[arg-type]
    head.check()
    return replace(network, head=head)


def with_scaled_anchors(network: Network, factor: float) -> Network:
    """The network with the anchors of its anchor-aided branch times `factor`; itself without such a branch."""
    head = network.head
    if factor == 1.0 or not isinstance(head, EfficientHead) or not head.anchor_aided:
        return network
    scaled = tuple(tuple((w * factor, h * factor) for w, h in level) for level in head.anchors)
    return replace(network, head=replace(head, anchors=scaled))
