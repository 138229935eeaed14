"""Stable address of the block specs for users' own networks: `from yolov7.model.block_specs import Elan`.

The blocks live in `yolov7.model.blocks`. Files such as `my_networks.py` (`train.network: MODULE:FUNCTION`) import from
here, so this address stays.
"""

from yolov7.model.blocks import (
    AvgConv,
    AvgDown,
    Concat,
    Conv,
    DownC,
    Elan,
    Gelan,
    LearntScale,
    LinearAdd,
    MaxPool,
    MpConv,
    RepConv,
    RepVgg,
    SliceSum,
    SpaceToDepth,
    SppCspc,
    SppElan,
    StridedConv,
    Sum,
    TinySpp,
    TransposedConv,
    UpConcat,
    Upsample,
)

__all__ = [
    "AvgConv",
    "AvgDown",
    "Concat",
    "Conv",
    "DownC",
    "Elan",
    "Gelan",
    "LearntScale",
    "LinearAdd",
    "MaxPool",
    "MpConv",
    "RepConv",
    "RepVgg",
    "SliceSum",
    "SpaceToDepth",
    "SppCspc",
    "SppElan",
    "StridedConv",
    "Sum",
    "TinySpp",
    "TransposedConv",
    "UpConcat",
    "Upsample",
]
