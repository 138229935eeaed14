"""Stable address of the block specs for users' own networks: `from yolov7.model.block_specs import Elan`.

The blocks live in `yolov7.model.blocks`. Files such as `my_networks.py` (`train.network: MODULE:FUNCTION`) import from
here, so this address stays.
"""

from yolov7.model.blocks import (
    Concat,
    Conv,
    DownC,
    Elan,
    LearntScale,
    MaxPool,
    MpConv,
    RepConv,
    RepVgg,
    SliceSum,
    SpaceToDepth,
    SppCspc,
    StridedConv,
    Sum,
    TinySpp,
    TransposedConv,
    UpConcat,
    Upsample,
)

__all__ = [
    "Concat",
    "Conv",
    "DownC",
    "Elan",
    "LearntScale",
    "MaxPool",
    "MpConv",
    "RepConv",
    "RepVgg",
    "SliceSum",
    "SpaceToDepth",
    "SppCspc",
    "StridedConv",
    "Sum",
    "TinySpp",
    "TransposedConv",
    "UpConcat",
    "Upsample",
]
