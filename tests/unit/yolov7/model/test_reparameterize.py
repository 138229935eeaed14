"""The deploy form computes what the training form computes, for random statistics and any placement of vectors."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from yolov7.errors import ModelError
from yolov7.model import create_model
from yolov7.model.block_specs import Concat, Conv, Elan, MaxPool, RepConv, StridedConv, Sum
from yolov7.model.blocks import (
    ConvUnit,
    FusedConv,
    ImplicitAdd,
    ImplicitConvUnit,
    ImplicitMultiply,
    RepConvModule,
    SpaceToDepthModule,
)
from yolov7.model.heads.anchor import AnchorHead, Level
from yolov7.model.reparameterize import convert
from yolov7.model.spec import Network, Stage


def randomise(module, seed):
    """Statistics and vectors far from their initial values, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like, low, high):
        return torch.empty_like(like).uniform_(low, high, generator=generator)

    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.running_mean.copy_(uniform(child.running_mean, -1, 1))
                child.running_var.copy_(uniform(child.running_var, 0.2, 3))
                child.weight.copy_(uniform(child.weight, -1.5, 1.5))
                child.bias.copy_(uniform(child.bias, -1, 1))
            elif isinstance(child, ImplicitAdd | ImplicitMultiply):
                child.implicit.copy_(uniform(child.implicit, -1.5, 1.5))
    return module.eval()


def assert_same(trained, images):
    """float32 as rounding allows; 1e-9 relative where everything is done in float64 (reference sheet, section 3)."""
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        module = copy.deepcopy(trained).to(dtype).eval()
        x = images.to(dtype)
        with torch.inference_mode():
            before = module(x)
            after = convert(copy.deepcopy(module))(x)
        assert after.dtype == dtype
        assert (before - after).abs().max() <= tolerance * max(1.0, float(before.abs().max()))


VECTORS = st.lists(st.sampled_from(["add", "multiply"]), max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    norm=st.booleans(),
    before=VECTORS,
    after=VECTORS,
)
def test_conv_unit_with_vectors_anywhere(seed, groups, kernel, stride, norm, before, after):
    unit = ImplicitConvUnit(8, 12, kernel, stride, groups=groups, norm=norm, before=before, after=after)
    randomise(unit, seed)
    images = torch.randn(2, 8, 7, 6, generator=torch.Generator().manual_seed(seed))
    assert_same(unit, images)
    fused = unit.reparameterize()
    assert [name for name, _ in fused.named_parameters()] == ["conv.weight", "conv.bias"]
    assert not list(fused.buffers())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    groups=st.sampled_from([1, 2, 4]),
    widths=st.sampled_from([(8, 8), (8, 16)]),
    stride=st.sampled_from([1, 2]),
    identity=st.booleans(),
)
def test_rep_conv_in_every_shape(seed, groups, widths, stride, identity):
    block = RepConvModule(*widths, stride, groups=groups, identity=identity)
    assert (block.identity is not None) == (identity and widths == (8, 8) and stride == 1)
    randomise(block, seed)
    assert_same(block, torch.randn(2, 8, 6, 7, generator=torch.Generator().manual_seed(seed)))
    assert isinstance(block.reparameterize(), FusedConv)


def test_rep_conv_against_a_derivation_by_hand():
    # One channel: the branches can be summed on paper.
    block = RepConvModule(1, 1)
    with torch.no_grad():
        block.dense.conv.weight.fill_(1.0)
        block.pointwise.conv.weight.fill_(2.0)
        for norm, scale, shift in (
            (block.dense.bn, 0.5, 1.0),
            (block.pointwise.bn, 2.0, 3.0),
            (block.identity, 4.0, 5.0),
        ):
            norm.weight.fill_(scale)
            norm.bias.fill_(shift)
            norm.running_var.fill_(1.0 - norm.eps)
    fused = block.reparameterize().conv
    expected = torch.full((3, 3), 0.5)
    expected[1, 1] += 2.0 * 2.0 + 4.0
    assert torch.allclose(fused.weight[0, 0], expected) and fused.bias.item() == pytest.approx(9.0)


def test_synchronised_batch_norm_folds_too():
    unit = randomise(ConvUnit(4, 4, 3), 3)
    images = torch.randn(1, 4, 5, 5)
    with torch.inference_mode():
        expected = unit(images)
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(unit)
        assert isinstance(synced.bn, nn.SyncBatchNorm)
        assert torch.allclose(synced.reparameterize()(images), expected, atol=1e-5)


class WithoutFloat64(torch.Tensor):
    """A tensor on a device without the type, such as MPS."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError("the device has no float64")
        return result


def test_devices_without_float64_are_not_asked_for_it():
    unit = randomise(
        nn.Sequential(RepConvModule(8, 8), ImplicitConvUnit(8, 6, before=("add",), after=("multiply",))), 0
    )
    expected = convert(copy.deepcopy(unit))
    for module in unit.modules():
        for tensors, wrap in ((module._parameters, nn.Parameter), (module._buffers, lambda tensor: tensor)):
            floating = {name: t for name, t in tensors.items() if t is not None and t.is_floating_point()}
            tensors |= {name: wrap(t.detach().as_subclass(WithoutFloat64)) for name, t in floating.items()}
    with pytest.raises(TypeError):
        unit[0].dense.conv.weight.double()
    found = convert(unit).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())


def test_norm_without_statistics_cannot_be_folded():
    unit = ConvUnit(4, 4)
    unit.bn = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(ModelError, match="running statistics"):
        unit.reparameterize()


@pytest.mark.parametrize(("variant", "classes", "side"), [("yolov7-tiny", 1, 64), ("yolov7", 3, 64)])
def test_whole_networks(variant, classes, side):
    # A training forward first: statistics of real activations, as a trained network has them.
    model = create_model(variant, classes, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.rand(2, 3, side, side, generator=generator))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deploy = model.reparameterize()
    images = torch.rand(1, 3, side, side + 32, generator=generator)
    with torch.inference_mode():
        before, after = model.eval().raw(images), deploy.raw(images)
    for a, b in zip(before, after, strict=True):
        assert (a - b).abs().max() <= 1e-4 * max(1.0, float(a.abs().max()))
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())  # a new network
    assert_no_leftovers(deploy)
    again = deploy.reparameterize()
    with torch.inference_mode():
        assert torch.equal(again(images), deploy(images))


def assert_no_leftovers(deploy):
    convs = [module for module in deploy.modules() if isinstance(module, nn.Conv2d)]
    assert len(deploy.state_dict()) == 2 * len(convs) + 1  # kernels, biases, and the anchors
    assert not any(isinstance(m, nn.BatchNorm2d | ImplicitAdd | ImplicitMultiply) for m in deploy.modules())


@pytest.mark.parametrize("variant", ["yolov7-w6", "yolov7-e6e"])
def test_auxiliary_head_leaves_nothing_behind(variant):
    deploy = create_model(variant, 7, device="meta").reparameterize()
    assert_no_leftovers(deploy)
    assert not any("auxiliary" in name for name in deploy.state_dict())


def planned_network():
    """RepConv inside an ELAN, before a residual sum, before a concatenation, and free; implicit vectors in the body."""
    return Network(
        name="planned",
        backbone=(
            Stage("stem", StridedConv(16)),
            Stage("down", StridedConv(16)),
            Stage("elan", Elan(16, hidden=8, depth=4, rep=(1, 2, 3, 4))),
            Stage("all", Elan(16, hidden=8, depth=2, taps="all", rep=(1, 2))),
            Stage("summed", RepConv(16)),
            Stage("residual", Sum(), of=("summed", "all")),
            Stage("free", RepConv(16)),
            Stage("joined", RepConv(16, groups=4)),
            Stage("cat", Concat(), of=("joined", "free")),
            Stage("vectors", Conv(24, 3, before=("add", "multiply"), after=("multiply", "add"))),
        ),
        neck=(Stage("pool", MaxPool()), Stage("route", RepConv(24))),
        head=AnchorHead(
            anchors=(((4, 4), (8, 8)), ((16, 16), (24, 24))),
            lead=(Level("H2", RepConv(24), of="vectors"), Level("H3", Conv(16), of="route")),
        ),
    )


def test_planned_rep_conv_has_an_identity_only_where_nothing_is_merged():
    model = create_model(planned_network(), 2)
    chain = [block.identity is not None for block in model.backbone.elan.chain]
    assert chain == [True, False, True, False]  # the second and the fourth are concatenated
    assert [block.identity is not None for block in model.backbone.all.chain] == [False, False]
    identities = {
        name: getattr(part, name).identity is not None
        for part, name in (
            (model.backbone, "summed"),
            (model.backbone, "free"),
            (model.backbone, "joined"),
            (model.neck, "route"),
        )
    }
    # `free` goes into `joined` by a convolution, but into `cat` directly; nothing merges `route`.
    assert identities == {"summed": False, "free": False, "joined": False, "route": True}
    assert model.head.lead[0].tower.identity is not None


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_planned_network_reparameterises_with_random_statistics(seed):
    model = randomise(create_model(planned_network(), 2, seed=seed).double(), seed)
    images = torch.rand(1, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    deploy = model.reparameterize()
    with torch.inference_mode():
        before, after = model.raw(images), deploy.raw(images)
    for a, b in zip(before, after, strict=True):
        assert (a - b).abs().max() <= 1e-9 * max(1.0, float(a.abs().max()))
    assert_no_leftovers(deploy)


def test_rep_positions_outside_the_chain_are_refused():
    with pytest.raises(ModelError, match="no convolution 5 among 4"):
        Elan(16, 8, 4, rep=(5,)).build([16], "silu", merged=False)


def test_space_to_depth_order():
    image = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    out = SpaceToDepthModule()(image)
    for group, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        assert torch.equal(out[0, 2 * group : 2 * group + 2], image[0, :, row::2, column::2])


def test_gradients_reach_every_parameter():
    model = create_model(planned_network(), 2)
    sum(item.square().mean() for item in model.raw(torch.rand(2, 3, 16, 16))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_deployed_network_can_be_exported_by_torch_itself():
    network = create_model("yolov7-tiny", 3).eval().reparameterize()
    images = torch.rand(1, 3, 64, 64)
    program = torch.export.export(network, (images,))
    for exported, own in zip(program.module()(images), network(images), strict=True):
        assert torch.allclose(exported, own, atol=1e-5)
