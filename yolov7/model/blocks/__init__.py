"""The block language: each block as data (a frozen dataclass) and as a module, side by side, one file a concept.

A spec such as `Elan` names a block in a network's description and builds its module, `ElanModule`. Every `forward` maps
(B, C, H, W) to (B, C', H', W'). A module with another form for inference offers `reparameterize()`, which returns it
(see `yolov7.model.reparameterize`).
"""

from yolov7.model.blocks.conv import Conv, ConvUnit, FusedConv
from yolov7.model.blocks.down import (
    DownC,
    DownCModule,
    MaxPool,
    MpConv,
    MpConvModule,
    SpaceToDepth,
    SpaceToDepthModule,
    StridedConv,
    StridedConvModule,
)
from yolov7.model.blocks.elan import Elan, ElanModule
from yolov7.model.blocks.layers import Implicit, ImplicitAdd, ImplicitMultiply, activation, batch_norm
from yolov7.model.blocks.merge import Concat, ConcatModule, Sum, SumModule, UpConcat, UpConcatModule
from yolov7.model.blocks.rep import RepConv, RepConvModule
from yolov7.model.blocks.spp import PoolPyramid, SppCspc, SppCspcModule, TinySpp, TinySppModule

__all__ = [
    "Concat",
    "ConcatModule",
    "Conv",
    "ConvUnit",
    "DownC",
    "DownCModule",
    "Elan",
    "ElanModule",
    "FusedConv",
    "Implicit",
    "ImplicitAdd",
    "ImplicitMultiply",
    "MaxPool",
    "MpConv",
    "MpConvModule",
    "PoolPyramid",
    "RepConv",
    "RepConvModule",
    "SpaceToDepth",
    "SpaceToDepthModule",
    "SppCspc",
    "SppCspcModule",
    "StridedConv",
    "StridedConvModule",
    "Sum",
    "SumModule",
    "TinySpp",
    "TinySppModule",
    "UpConcat",
    "UpConcatModule",
    "activation",
    "batch_norm",
]
