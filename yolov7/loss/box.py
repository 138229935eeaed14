"""Agreement of predicted boxes with their targets (reference sheet: training, section 8).

Legend: L levels, A anchors per level, P matches, T targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolov7.assign import Geometry, Matches, decode_boxes
from yolov7.boxes import ciou


def matched_ciou(raw: Tensor, matches: Matches, boxes: Tensor, geometry: Geometry, spread: tuple[float, ...]) -> Tensor:
    """CIoU (P,) of raw boxes (P, 4) with the boxes (T, 4), xyxy pixels, of the targets they are matched to.

    It is taken in grid units relative to the cell. `spread` is the reach of the decoder in each map.
    """
    maps, _, anchor, row, column, target = matches.cells.unbind()
    level = maps % len(geometry.strides) if len(spread) > len(geometry.strides) else maps
    strides = raw.new_tensor(geometry.strides)[level, None]  # (P, 1)
    reach = spread[0] if len(set(spread)) == 1 else raw.new_tensor(spread)[maps, None]
    centre, size = decode_boxes(raw, geometry.anchors.to(raw)[level, anchor] / strides, reach)
    half = size / 2
    wanted = boxes[target] / strides - torch.stack((column, row, column, row), 1)
    return ciou(torch.cat((centre - half, centre + half), 1), wanted)
