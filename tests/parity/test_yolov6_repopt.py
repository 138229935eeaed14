"""RepOptimizer: scales, initial kernels, masks and three steps of the published definition."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from yolov7.config import Optimizer
from yolov7.model.blocks import ConvUnit, LinearAddModule
from yolov7.model.rep_optimizer import scales_of
from yolov7.train.gradient_masks import masks_of
from yolov7.train.optimizer import apply_settings, create_optimizer, parameter_groups
from yolov7.train.schedule import StepSettings

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "v6" / "repopt.npz"
pytestmark = pytest.mark.skipif(not GOLDEN.is_file(), reason="the golden vectors of YOLOv6 (../shared) are not here")

TOLERANCE = 2.5e-7  # float32; an independent float64 implementation differs by 2.2e-7 (golden/v6/README.md)
OURS = {
    "scale_conv": "dense_scale",
    "conv_1x1": "pointwise",
    "scale_1x1": "pointwise_scale",
    "scale_identity": "identity_scale",
}


@pytest.fixture(scope="module")
def golden():
    return {name: torch.from_numpy(array) for name, array in np.load(GOLDEN).items()}


def part(golden, prefix):
    """The tensors under a prefix, by our names."""
    found = {}
    for name, tensor in golden.items():
        if name.startswith(f"{prefix}__"):
            words = name.removeprefix(f"{prefix}__").split(".")
            found[".".join(OURS.get(word, word) for word in words)] = tensor
    return found


def network(a, b):
    return nn.ModuleDict({"a": a, "b": b, "head": nn.Conv2d(6, 3, 1)})


def searching(golden):
    model = network(LinearAddModule(4, 6, 2, act="relu"), LinearAddModule(6, 6, act="relu"))
    missing, unexpected = model.load_state_dict(part(golden, "hs"), strict=False)
    assert not unexpected and all("running" in name or "num_batches" in name for name in missing)
    return model


def target(golden, prefix):
    model = network(ConvUnit(4, 6, 3, 2, act="relu"), ConvUnit(6, 6, 3, act="relu"))
    model.load_state_dict(part(golden, prefix), strict=False)
    return model


def close(ours, wanted):
    assert ours.shape == wanted.shape
    assert (ours - wanted).abs().max() <= TOLERANCE


def test_the_network_of_the_hyper_search(golden):
    model = searching(golden).train()
    out = model["head"](model["b"](model["a"](golden["x"])))
    # A batch norm over 32 values divides by their deviation: rounding grows in two layers.
    assert (out - golden["hs_out_train"]).abs().max() <= 2e-6
    assert [2 + (block.identity is not None) for block in scales_of(model).values()] == golden["n_scales"].tolist()


def test_initial_kernels(golden):
    scales = scales_of(searching(golden))
    for number, name in enumerate(scales):
        fresh, wanted = golden[f"before__{name}.conv.weight"], golden[f"reinit__{name}.conv.weight"]
        close(scales[name].kernel(fresh, golden[f"kernel1x1_{number}"]), wanted)


def test_masks(golden):
    scales = scales_of(searching(golden))
    for name, block in scales.items():
        close(block.mask(golden[f"reinit__{name}.conv.weight"]), golden[f"mask_{name}"])


@pytest.mark.parametrize("channels_last", [False, True])
def test_three_steps(golden, channels_last):
    model = target(golden, "reinit")
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    scales = scales_of(searching(golden))
    masks = masks_of({name: model[name].conv.weight for name in scales}, scales)
    groups = parameter_groups(model)
    decay = golden["group_decay"].tolist()
    optimizer = create_optimizer(model, Optimizer(), weight_decay=decay[1])
    assert [len(group) for group in (groups.no_decay, groups.decay, groups.bias)] == golden["group_sizes"].tolist()
    assert [group["weight_decay"] for group in optimizer.param_groups] == decay
    settings = StepSettings(learning_rate=0.01, bias_learning_rate=0.01, momentum=0.937, accumulate=1)
    for step in range(3):
        gradients = part(golden, f"grad{step}")
        for name, parameter in model.named_parameters():
            parameter.grad = torch.empty_like(parameter).copy_(gradients[name])
        apply_settings(optimizer, settings)
        masks.apply()
        optimizer.step()
        for name, wanted in part(golden, f"step{step}").items():
            close(model.get_parameter(name).detach(), wanted)
