"""The block language: each block as data and as a module, side by side, one file a concept.

A spec such as `Elan` is a frozen dataclass that names a block in a network's description and builds its module,
`ElanModule`. Every `forward` maps (B, C, H, W) to (B, C', H', W'). A module with another form for inference offers
`reparameterize()`, which returns that form (see `yolov7.model.reparameterize`).
"""

from yolov7.model.blocks.base import ConvBlock
from yolov7.model.blocks.conv import Conv
from yolov7.model.blocks.down import (
    AvgConv,
    AvgDown,
    Down,
    DownC,
    MaxPool,
    MpConv,
    SpaceToDepth,
    SpaceToDepthModule,
    StridedConv,
)
from yolov7.model.blocks.elan import Elan, ElanModule
from yolov7.model.blocks.fusion import BiFusion, BiFusionModule
from yolov7.model.blocks.gelan import Gelan, GelanModule
from yolov7.model.blocks.implicit import Implicit, ImplicitAdd, ImplicitConvUnit, ImplicitMultiply
from yolov7.model.blocks.layers import activation, batch_norm
from yolov7.model.blocks.linear_add import LinearAdd, LinearAddModule
from yolov7.model.blocks.merge import Concat, LearntScale, LearntScaleModule, SliceSum, Sum
from yolov7.model.blocks.rep import RepConv, RepConvModule, RepVgg
from yolov7.model.blocks.spp import PoolPyramid, SppCsp, SppCspc, SppElan, TinySpp
from yolov7.model.blocks.stacks import CspStack, CspStackModule, Mode, PairUnit, RepStack, block_of, mode_of
from yolov7.model.blocks.unit import ConvUnit, FusedConv
from yolov7.model.blocks.up import TransposedConv, UpConcat, Upsample
from yolov7.model.spec import Block

KINDS: tuple[type[Block], ...] = (
    AvgConv,
    AvgDown,
    BiFusion,
    Concat,
    Conv,
    CspStack,
    DownC,
    Elan,
    Gelan,
    LearntScale,
    LinearAdd,
    MaxPool,
    MpConv,
    RepConv,
    RepStack,
    RepVgg,
    SliceSum,
    SpaceToDepth,
    SppCsp,
    SppCspc,
    SppElan,
    StridedConv,
    Sum,
    TinySpp,
    TransposedConv,
    UpConcat,
    Upsample,
)
"""All blocks of the language. A checkpoint names a block by its class, so these names stay."""

__all__ = [
    "KINDS",
    "AvgConv",
    "AvgDown",
    "BiFusion",
    "BiFusionModule",
    "Concat",
    "Conv",
    "ConvBlock",
    "ConvUnit",
    "CspStack",
    "CspStackModule",
    "Down",
    "DownC",
    "Elan",
    "ElanModule",
    "FusedConv",
    "Gelan",
    "GelanModule",
    "Implicit",
    "ImplicitAdd",
    "ImplicitConvUnit",
    "ImplicitMultiply",
    "LearntScale",
    "LearntScaleModule",
    "LinearAdd",
    "LinearAddModule",
    "MaxPool",
    "Mode",
    "MpConv",
    "PairUnit",
    "PoolPyramid",
    "RepConv",
    "RepConvModule",
    "RepStack",
    "RepVgg",
    "SliceSum",
    "SpaceToDepth",
    "SpaceToDepthModule",
    "SppCsp",
    "SppCspc",
    "SppElan",
    "StridedConv",
    "Sum",
    "TinySpp",
    "TransposedConv",
    "UpConcat",
    "Upsample",
    "activation",
    "batch_norm",
    "block_of",
    "mode_of",
]
