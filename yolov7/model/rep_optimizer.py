"""RepOptimizer: a plain network that trains as if it had the branches of RepVGG (YOLOv6 paper, section 2.5.1).

A first training, the hyper-search, has LinearAdd blocks in place of those of RepVGG. The scales that its branches
end with become constants of the second, the target: they give the initial kernels of a network of plain 3x3
convolutions, and masks for their gradients (reference sheet: yolov6-training, section 10).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.files import sha256_file
from yolov7.model import reparameterize as fold
from yolov7.model.blocks import ConvUnit, CspStack, FusedConv, LinearAddModule, Mode, RepStack, RepVgg, block_of
from yolov7.model.blocks.linear_add import summed_kernel
from yolov7.model.checkpoint import load_checkpoint
from yolov7.model.detector import Detector, create_model
from yolov7.model.spec import Block, Network, Stage


@dataclass(frozen=True)
class BlockScales:
    """The scales of one block, each (O,) float32; `identity` is None for a block that changes the shape."""

    dense: Tensor
    pointwise: Tensor
    identity: Tensor | None

    @property
    def shape(self) -> tuple[int, bool]:
        """Number of outputs, and whether the block has an identity."""
        return len(self.dense), self.identity is not None

    def kernel(self, dense: Tensor, pointwise: Tensor) -> Tensor:
        """The initial kernel (O, I, 3, 3) from fresh kernels (O, I, 3, 3) and (O, I, 1, 1)."""
        return summed_kernel(dense, pointwise, self.dense, self.pointwise, self.identity)

    def mask(self, kernel: Tensor) -> Tensor:
        """Factors of the gradient of `kernel` (O, I, 3, 3): g3^2 on all taps, g1^2 added at the centre.

        An identity adds 1 on the diagonal of the centre tap, not gi^2, as released.
        """
        mask = torch.zeros_like(kernel) + self.dense.to(kernel)[:, None, None, None] ** 2
        mask[:, :, 1, 1] += self.pointwise.to(kernel)[:, None] ** 2
        return mask if self.identity is None else mask + fold.identity_kernel(kernel)


Scales = Mapping[str, BlockScales]
"""By the name of the block's module in the network."""


def hyper_search(network: Network) -> Network:
    """The network of the first training. Raises :class:`ModelError` for one without RepVGG blocks."""
    return _with_mode(network, "linear-add")


def target(network: Network) -> Network:
    """The network of the second training. Raises :class:`ModelError` for one without RepVGG blocks."""
    return _with_mode(network, "conv")


REP_OPTIMIZER: Mapping[str, Callable[[Network], Network]] = MappingProxyType(
    {"hyper-search": hyper_search, "target": target, "chain": hyper_search}
)
"""What `train.rep_optimizer` makes of a network; a chain begins with the hyper-search."""


def _with_mode(network: Network, mode: Mode) -> Network:
    def built(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(replace(stage, block=_block_with_mode(stage.block, mode)) for stage in stages)

    changed = replace(network, backbone=built(network.backbone), neck=built(network.neck))
    if changed == network:
        raise ModelError(f"{network.name}: RepOptimizer replaces RepVGG blocks, and this network has none")
    return changed


def _block_with_mode(block: Block, mode: Mode) -> Block:
    if isinstance(block, RepStack | CspStack) and block.mode == "rep":
        return replace(block, mode=mode)
    if isinstance(block, RepVgg) and block.groups == 1:
        return replace(block_of(mode, block.out, block.stride), act=block.act)
    return block


def scales_of(model: nn.Module) -> dict[str, BlockScales]:
    """The scales of a network's LinearAdd blocks, in the order of the network; empty for any other network."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LinearAddModule):
            identity = module.identity_scale
            found[name] = BlockScales(
                module.dense_scale.weight.detach(),
                module.pointwise_scale.weight.detach(),
                None if identity is None else identity.weight.detach(),
            )
    return found


def read_scales(path: str | Path, *, sha256: str = "", network: str = "") -> dict[str, BlockScales]:
    """The scales in the checkpoint of a hyper-search. `network` is MODULE:FUNCTION of a user's own, as for checkpoints.

    Raises :class:`ModelError` if the file is missing, has another sha256 than the one given, or is of no hyper-search.
    """
    file = Path(path)
    if sha256 and file.is_file() and sha256_file(file) != sha256:
        raise ModelError(f"{file}: not the scales that are meant: its sha256 is {sha256_file(file)}, not {sha256}")
    model, metadata = load_checkpoint(file, network=network)
    scales = scales_of(model)
    if not scales:
        raise ModelError(
            f"{file}: holds a {metadata.variant} without scales; a checkpoint of a training with "
            "`rep_optimizer: hyper-search` is expected"
        )
    return scales


def check_scales(scales: Scales, searching: Network, *, of: str) -> None:
    """Raise :class:`ModelError` unless the scales are those of the network `searching`; `of` names their file."""
    wanted = {name: block.shape for name, block in scales_of(create_model(searching, 1, device="meta")).items()}
    found = {name: block.shape for name, block in scales.items()}
    if found == wanted:
        return
    if len(found) != len(wanted):
        how = f"there are scales of {len(found)} blocks, and this network has {len(wanted)}"
    else:
        name = next(name for name in wanted if found.get(name) != wanted[name])
        how = f"block {name} is {_described(wanted[name])}, and its scales are {_described(found.get(name))}"
    raise ModelError(f"{of}: not the scales of a {searching.name}: {how}")


def _described(shape: tuple[int, bool] | None) -> str:
    if shape is None:
        return "missing"
    return f"{shape[0]} wide {'with' if shape[1] else 'without'} identity"


def kernels_of(model: Detector, scales: Scales) -> dict[str, Tensor]:
    """The kernels of a target network that the scales belong to, by the name of the block.

    Raises :class:`ModelError` if the scales are of another network, or the network has no plain 3x3 in their places.
    """
    modules = dict(model.named_modules())
    kernels = {}
    for name, block in scales.items():
        unit = modules.get(name)
        kernel = unit.conv.weight if isinstance(unit, ConvUnit | FusedConv) else None
        if kernel is None or (kernel.shape[0], *kernel.shape[2:]) != (len(block.dense), 3, 3):
            raise ModelError(
                f"{model.variant}: {name} is not a 3x3 convolution of {len(block.dense)}, as in the scales"
            )
        kernels[name] = kernel
    return kernels


@torch.no_grad()
def draw_kernels(model: Detector, searching: Network, scales: Scales, *, seed: int) -> None:
    """Set the initial kernels of a target network: those of a fresh hyper-search network with these scales."""
    fresh = dict(create_model(searching, model.num_classes, seed=seed).named_modules())
    for name, kernel in kernels_of(model, scales).items():
        module = fresh[name]
        assert isinstance(module, LinearAddModule)
        kernel.copy_(scales[name].kernel(module.conv.weight, module.pointwise.weight))
