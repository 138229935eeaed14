"""A small GELAN with an auxiliary branch, of the stages that the released sizes have."""

from __future__ import annotations

from yolov7.model import Detector, create_model
from yolov7.model.blocks import AvgConv, Gelan, SppElan
from yolov7.model.pgi import with_pgi
from yolov7.model.spec import Network
from yolov7.model.variants.yolov9 import Size, gelan


def _plain(width: int) -> Gelan:
    return Gelan(width, width, width // 2, block="plain", depth=1)


SIZE = Size(
    stem=(8, 16),
    second=_plain(16),
    down=AvgConv,
    downs=(16, 24, 32),
    backbone=(Gelan(16, 16, 8, depth=1), _plain(24), _plain(32)),
    spp=SppElan(32, 16),
    top_down=(_plain(24), _plain(16)),
    up_downs=(12, 16),
    bottom_up=(_plain(24), _plain(32)),
)


def small_gelan(part: str = "fpn") -> Network:
    """Strides 8, 16 and 32, trained with this part of PGI."""
    return with_pgi(gelan(SIZE, "small-gelan"), part)


def small_gelan_detector(num_classes: int = 3, seed: int = 0, part: str = "fpn") -> Detector:
    """Training form with fresh weights."""
    return create_model(small_gelan(part), num_classes, seed=seed)
