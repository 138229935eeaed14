"""Overlaps of boxes. Inside the library a box is xyxy in float32 pixels; other formats are for files.

Legend: N, M boxes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Epsilon of the published CIoU (reference sheet: training, section 8).
EPS = 1e-7


def area(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> (...) area in squared units of the boxes; 0 for a box turned inside out."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every pair of (N, 4) and (M, 4) xyxy boxes -> (N, M); 0 where the union is empty."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = (high - low).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def paired_iou(a: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """IoU of (N, 4) xyxy boxes, pair by pair -> (N,); `epsilon` is added to the union."""
    low, high = torch.stack((a, b)).split(2, dim=2)  # (2, N, 2) each
    areas = (high - low).clamp(min=0).prod(2).sum(0)
    intersection = (high.amin(0) - low.amax(0)).clamp(min=0).prod(1)
    return intersection / (areas - intersection + epsilon)


def ciou(predicted: Tensor, target: Tensor) -> Tensor:
    """Complete IoU of (N, 4) xyxy boxes, pair by pair -> (N,) in [-1.5, 1]; differentiable in both.

    The epsilons are those of the published formula (reference sheet: training, section 8): one on each height, none on
    the widths. The trade-off weight of the shape term is a constant: no gradient passes through it.
    """
    low, high = torch.stack((predicted, target)).split(2, dim=2)  # (2, N, 2) each: predicted, target
    width, height = (high - low).unbind(2)  # (2, N) each
    height = height + EPS
    (low_p, low_t), (high_p, high_t) = low.unbind(), high.unbind()
    overlap_x, overlap_y = (torch.minimum(high_p, high_t) - torch.maximum(low_p, low_t)).clamp(0).unbind(1)
    intersection = overlap_x * overlap_y
    iou = intersection / ((width * height).sum(0) - intersection + EPS)
    diagonal = (torch.maximum(high_p, high_t) - torch.minimum(low_p, low_t)).square().sum(1) + EPS
    centre_p, centre_t = (low + high).unbind()  # twice the centres
    distance = (centre_t - centre_p).square().sum(1) / 4
    angle_p, angle_t = torch.atan(width / (height + EPS)).unbind()
    shape = (4 / math.pi**2) * (angle_t - angle_p).square()
    with torch.no_grad():
        weight = shape / (shape - iou + (1 + EPS))
    return iou - distance / diagonal - weight * shape
