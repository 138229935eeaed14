"""A small YOLOv6 of any release, stage and mode, of the stages that the published sizes have."""

from __future__ import annotations

from typing import Any

from yolov7.model import Detector, create_model
from yolov7.model.heads.efficient import with_options
from yolov7.model.spec import Network
from yolov7.model.variants.yolov6 import P5, Base, Size, bifusion, efficient


def small_efficient(
    release: str = "2.0", *, base: Base = P5, anchor_aided: bool = False, distributions: bool = False, **size: Any
) -> Network:
    """Widths of a sixteenth of the base's, two blocks or a unit in a stage; `size` are further fields of `Size`."""
    made = Size(**{"depth": 0.17, "width": 1 / 16, "csp_spp": release == "3.0"} | size)
    network = efficient(made, "small-efficient", base=base, top_down=bifusion if release == "3.0" else None)
    return with_options(network, anchor_aided=anchor_aided, distributions=distributions)


def small_efficient_detector(num_classes: int = 3, seed: int = 0, release: str = "2.0", **size: Any) -> Detector:
    """Training form with fresh weights."""
    return create_model(small_efficient(release, **size), num_classes, seed=seed)
