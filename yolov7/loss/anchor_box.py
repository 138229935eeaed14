"""Agreement of predicted boxes with their targets (reference sheet: training, section 8).

Legend: L levels, A anchors per level, P matches, T targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolov7.assign import Geometry, Matches, decode_boxes
from yolov7.boxes import ciou


def matched_ciou(
    rows: Tensor, matches: Matches, boxes: Tensor, geometry: Geometry, strides: Tensor, spread: tuple[float, ...]
) -> Tensor:
    """CIoU (P,) of raw boxes (P, 4) with the boxes (T, 4), xyxy pixels, of the targets they are matched to.

    It is taken in grid units relative to the cell. `strides` (L, 1); `spread` is the decoder's reach in each map.
    """
    maps, _, anchor, row, column, target = matches.lines
    level = maps % len(strides) if len(spread) > len(strides) else maps
    stride = strides.to(rows)[level]  # (P, 1)
    reach = spread[0] if len(set(spread)) == 1 else rows.new_tensor(spread)[maps, None]
    centre, size = decode_boxes(rows, geometry.anchors.to(rows)[level, anchor] / stride, reach)
    corner = torch.stack((column, row, column, row), 1)
    wanted = boxes[target] / stride - corner
    return ciou(torch.cat((centre.sub(size, alpha=0.5), centre.add(size, alpha=0.5)), 1), wanted)
