"""From raw box predictions to boxes relative to their cell: the code that assignment and loss share.

With s = sigmoid(raw): centre = spread * s - (spread - 1) / 2 cells from the upper left corner of the cell, and
size = (2 s)^2 * anchor (reference sheet: training, section 8). The published spread is 2: a centre reaches from -0.5 to
1.5. A spread of 3 reaches from -1 to 2, the whole region of the coarse targets of an auxiliary head; it is the decoder
without the paper's upper-bound constraint (reference sheet: architecture, section 7).
"""

from __future__ import annotations

from torch import Tensor

from yolov7.model.heads.anchor import box_centre, box_scale

CONSTRAINED = 2.0
UNCONSTRAINED = 3.0


def decode_boxes(raw: Tensor, anchors: Tensor, spread: Tensor | float) -> tuple[Tensor, Tensor]:
    """Centre (N, 2) in cells from the corner of the cell, and size (N, 2) in the unit of the anchors (N, 2).

    `raw` (N, 4): x, y, width, height before the sigmoid. `spread` may differ by row, (N, 1).
    """
    place, side = raw.sigmoid().split(2, dim=1)
    return box_centre(place, spread, (1 - spread) / 2), box_scale(side) * (4 * anchors)
