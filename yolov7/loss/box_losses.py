"""Overlaps for the box loss of an aligned head, by name: pairs of boxes (P, 4) xyxy in strides -> (P,), at most 1.

Formulas as released (reference sheet: yolov6-training, section 7.2): e is added to heights and to what is divided by,
never to widths. Unlike the release, which computes them in float64, they are finite in float32 wherever the target has
an area: boxes that coincide, do not meet, have no size, or are turned inside out.

Legend: w, h sides, J the IoU; _p predicted, _t target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from yolov7 import boxes
from yolov7.config import AlignedLoss

SMALLEST = 1e-30  # well inside float32

Overlap = Callable[[Tensor, Tensor], Tensor]


class _Pairs:
    """What the formulas have in common."""

    def __init__(self, predicted: Tensor, target: Tensor, epsilon: float):
        self.epsilon = epsilon
        self.low, self.high = torch.stack((predicted, target)).split(2, dim=2)  # (2, P, 2) each: predicted, target
        self.width, height = (self.high - self.low).unbind(2)  # (2, P) each
        self.height = height + epsilon
        (low_p, low_t), (high_p, high_t) = self.low.unbind(), self.high.unbind()
        overlap_x, overlap_y = (torch.minimum(high_p, high_t) - torch.maximum(low_p, low_t)).clamp(min=0).unbind(1)
        self.intersection = overlap_x * overlap_y
        union = (self.width * self.height).sum(0) - self.intersection + epsilon
        # A box turned inside out has an area below 0, which may leave nothing of the sum.
        self.union = torch.where(union == 0, epsilon, union)
        self.iou = self.intersection / self.union

    def enclosing(self) -> Tensor:
        """(P, 2) sides of the smallest box around both."""
        (low_p, low_t), (high_p, high_t) = self.low.unbind(), self.high.unbind()
        return torch.maximum(high_p, high_t) - torch.minimum(low_p, low_t)

    def offset(self) -> Tensor:
        """(P, 2) from the predicted centre to that of the target."""
        centre_p, centre_t = (self.low + self.high).unbind()  # twice the centres
        return (centre_t - centre_p) / 2

    def remoteness(self) -> Tensor:
        """(P,) squared distance of the centres over the squared diagonal of the enclosing box."""
        return self.offset().square().sum(1) / (self.enclosing().square().sum(1) + self.epsilon)


def iou(predicted: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """Intersection over union."""
    return _Pairs(predicted, target, epsilon).iou


def giou(predicted: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """Generalised IoU: less the share of the enclosing box that neither covers."""
    pairs = _Pairs(predicted, target, epsilon)
    width, height = pairs.enclosing().unbind(1)
    area = width * height + epsilon
    return pairs.iou - (area - pairs.union) / area


def diou(predicted: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """Distance IoU: less the remoteness of the centres."""
    pairs = _Pairs(predicted, target, epsilon)
    return pairs.iou - pairs.remoteness()


def ciou(predicted: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """Complete IoU: less the difference of the shapes as well, weighted without gradient."""
    pairs = _Pairs(predicted, target, epsilon)
    angle_p, angle_t = torch.atan(pairs.width / pairs.height).unbind()
    shape = (4 / math.pi**2) * (angle_t - angle_p).square()
    with torch.no_grad():
        # 1 - J first: in float32 1 + e is 1, and v - J + 1 + e is 0 where the boxes coincide.
        weight = shape / (shape + (1 - pairs.iou).clamp(min=0) + epsilon)
    return pairs.iou - (pairs.remoteness() + weight * shape)


def siou(predicted: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """SIoU: less half the costs of distance, by the direction of the target, and of shape."""
    pairs = _Pairs(predicted, target, epsilon)
    offset = pairs.offset() + epsilon
    # cos(2 asin(a) - pi/2) of the sheet, a the smaller of the sine and cosine of the direction, is 2 sin cos.
    x, y = offset.abs().unbind(1)
    angle = 2 * x * y / offset.square().sum(1).clamp(min=SMALLEST)
    share = (offset / pairs.enclosing()).square()  # (P, 2)
    distance = 2 - torch.exp((angle - 2)[:, None] * share).sum(1)
    predicted_sides, target_sides = torch.stack((pairs.width, pairs.height), 1).unbind()  # (2, P) each
    change = (predicted_sides - target_sides).abs() / torch.maximum(predicted_sides, target_sides)
    shape = (1 - torch.exp(-change)).pow(4).sum(0)
    return pairs.iou - (distance + shape) / 2


BOX_LOSSES: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "ciou": ciou,
    "giou": giou,
    "diou": diou,
    "siou": siou,
    "iou": iou,
}
"""By `box_loss`."""


def box_overlap(options: AlignedLoss) -> Overlap:
    """The overlap of a group of parameters."""
    if options.box_loss == "ciou" and options.box_epsilon == boxes.EPS:
        return boxes.ciou  # as YOLOv7 and YOLOv9 were released: the epsilon counts twice in the angles
    formula, epsilon = BOX_LOSSES[options.box_loss], options.box_epsilon
    return lambda predicted, target: formula(predicted, target, epsilon)
