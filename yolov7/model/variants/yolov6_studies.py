"""Networks of the YOLOv6 paper's studies, tables 2, 3, 4 and 10, T of release 1.0, and the base networks of release 2.0
(reference sheet: yolov6-training, sections 1 and 14). They are named `MODULE:FUNCTION`, as networks of the user's own.

Their parameter counts and GFLOPs are those of the sheet. Without a known recipe, so not here: L of CSPStackRep 2/3 in
table 2 (54.7M; see :func:`yolov6_l_two_thirds`), and the steps before the last of table 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from yolov7.model.blocks import Mode
from yolov7.model.heads.efficient import BINS, with_options
from yolov7.model.spec import Network
from yolov7.model.variants.yolov6 import P5, TWO, Size, efficient

BASE: Mapping[str, Size] = MappingProxyType(
    {
        "n": replace(TWO["n"], mode="conv", conv_bias=True),
        "s": Size(depth=0.70, width=0.50, expansion=1 / 2, mode="conv", conv_bias=True),
        "m": Size(depth=0.80, width=0.75, expansion=1 / 2, bins=BINS, mode="conv", conv_bias=True),
        "l": Size(depth=1.0, width=1.0, expansion=1 / 2, bins=BINS, mode="conv", conv_bias=True),
    }
)
"""Sizes of release 2.0's base networks: plain convolutions with ReLU."""

WIDE_NECK = replace(P5, neck=(384, 192, 192, 384, 384, 768), neck_repeats=5, head=(128, 256, 512))
"""Table 3: a neck of 192, 384 and 768 channels and less depth; the head keeps its widths."""


def yolov6_n_base() -> Network:
    """N with plain convolutions; table 4, N of convolutions with ReLU."""
    return efficient(BASE["n"], "yolov6-n-base")


def yolov6_s_base() -> Network:
    """S of CSPStackRep 1/2 with plain convolutions."""
    return efficient(BASE["s"], "yolov6-s-base")


def yolov6_m_base() -> Network:
    """M of CSPStackRep 1/2 with plain convolutions."""
    return efficient(BASE["m"], "yolov6-m-base")


def yolov6_l_base() -> Network:
    """L of CSPStackRep 1/2 with plain convolutions and ReLU."""
    return efficient(BASE["l"], "yolov6-l-base")


def yolov6_t_v1() -> Network:
    """T of release 1.0, the 15.0M of the paper's tables, with the head of 2.0."""
    return efficient(Size(depth=0.25, width=0.50), "yolov6-t-v1")


def yolov6_t_csp() -> Network:
    """T as a published file scales it from CSPStackRep 1/2 stages."""
    return efficient(Size(depth=0.60, width=0.50, expansion=1 / 2), "yolov6-t-csp")


def yolov6_n_csp() -> Network:
    """Table 2: N of CSPStackRep 1/2, distances as distributions."""
    return efficient(Size(depth=0.50, width=0.25, expansion=1 / 2, bins=BINS), "yolov6-n-csp")


def yolov6_s_csp() -> Network:
    """Table 2: S of CSPStackRep 1/2, distances as distributions."""
    return efficient(replace(BASE["s"], mode="rep", conv_bias=False, bins=BINS), "yolov6-s-csp")


def yolov6_m_rep() -> Network:
    """Table 2: M of RepBlock, whose published count is that of direct distances."""
    return efficient(Size(depth=0.67, width=0.75), "yolov6-m-rep")


def yolov6_m_csp_half() -> Network:
    """Table 2: M of CSPStackRep 1/2."""
    return efficient(replace(BASE["m"], mode="rep", conv_bias=False), "yolov6-m-csp-half")


def yolov6_l_two_thirds() -> Network:
    """The network nearest to table 2's L of CSPStackRep 2/3: 54,680,009 parameters; its recipe is not published."""
    return efficient(Size(depth=0.75, width=0.88, expansion=2 / 3, bins=BINS), "yolov6-l-two-thirds")


def yolov6_l_wide_neck() -> Network:
    """Table 3: L with a wide and shallow neck. Its parameters are the published ones, its GFLOPs 1.1 % below."""
    return efficient(TWO["l"], "yolov6-l-wide-neck", base=WIDE_NECK)


def with_convolution(size: str, mode: Mode, act: str) -> Network:
    """Table 4: a size of release 2.0 with another 3x3 block (`rep`, `conv`) and activation (`relu`, `silu`,
    `leaky-relu`). RepVGG blocks with SiLU or LeakyReLU are in no release, and their counts are not published.
    """
    changed = replace(TWO[size], mode=mode, act=act, conv_bias=mode == "conv")
    return efficient(changed, f"yolov6-{size}-{mode}-{act}")


def with_distributions(size: str) -> Network:
    """Table 10: a size of release 2.0 whose distances are distributions."""
    return with_options(efficient(TWO[size], f"yolov6-{size}-dfl"), bins=BINS)
