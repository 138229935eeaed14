"""Plain assignment: every candidate cell is a positive (reference sheet: training, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from yolov7.assign.candidates import FINE, find_candidates
from yolov7.assign.geometry import Geometry
from yolov7.assign.matches import Matches, Targets


@dataclass(frozen=True)
class PlainAssigner:
    """Each candidate learns the target that made it. `regions`: the bias g of each head's candidates."""

    geometry: Geometry
    threshold: float = 4.0
    regions: tuple[float, ...] = (FINE,)

    def __call__(self, raw: Sequence[Tensor], targets: Targets) -> Matches:
        """Matches of each region, map after map; the values of the predictions do not matter."""
        return find_candidates(raw, targets, self.geometry, threshold=self.threshold, regions=self.regions)
