"""Cost of a network: weights and GFLOPs, counted on the network itself."""

from __future__ import annotations

import torch
from torch import nn

from yolov7.errors import ModelError
from yolov7.model.blocks import ImplicitAdd, ImplicitMultiply
from yolov7.model.detector import Detector


def count_parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_deploy_unfused(model: Detector, deploy: Detector | None = None) -> int:
    """Number of weights of a training form without implicit vectors and without parts that only training has.

    Batch norms and the branches of RepConv count: published deploy checkpoints hold them so. `deploy` is the deploy
    form of `model`, if there is one already.
    """
    deploy = model.reparameterize() if deploy is None else deploy
    return sum(
        parameter.numel()
        for path, module in model.named_modules()
        if not isinstance(module, ImplicitAdd | ImplicitMultiply) and _is_deployed(path, model, deploy)
        for parameter in module.parameters(recurse=False)
    )


def _is_deployed(path: str, training: nn.Module, deploy: nn.Module) -> bool:
    """True if the deploy form has the module at `path`, as such or folded into another one."""
    for name in filter(None, path.split(".")):
        before, after = training.get_submodule(name), dict(deploy.named_children()).get(name)
        if after is None:
            # If the parent kept its type, it has dropped this child; if it was replaced, the child is folded in.
            return type(deploy) is not type(training)
        training, deploy = before, after
    return True


def conv_gflops(model: Detector, image_size: int) -> float:
    """2 x multiply-accumulates of all convolutions for one square image, in 10^9; no bias, no norm (rule A of the
    reference sheet: architecture, section 9). Auxiliary levels count where the model has them.

    Raises :class:`ModelError` if the network does not take images of this side.
    """
    if image_size < 1 or image_size % model.stride:
        raise ModelError(
            f"image size {image_size} is not a multiple of {model.variant}'s largest stride {model.stride}"
        )
    macs = 0

    def count(conv: nn.Conv2d | nn.ConvTranspose2d, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs
        # One set of weights is applied at each value of the output, or of the input if it spreads them.
        macs += (inputs[0] if conv.transposed else output).numel() * conv.weight[0].numel()

    weight = next(model.parameters())
    training = [module for module in model.modules() if module.training]
    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]
    model.eval()  # so that norms do not learn from an image of zeros
    try:
        with torch.no_grad():
            # A convolution's work grows with the area, so the smallest image tells the work for any.
            model.raw(weight.new_zeros(1, 3, model.stride, model.stride))
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    macs += model.decoding_macs(model.stride, model.stride)
    return 2 * macs * (image_size // model.stride) ** 2 / 1e9
