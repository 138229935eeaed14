"""The block language: maps as announced, the same after re-parameterisation, every weight and convolution counted."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from yolov7.config import Optimizer
from yolov7.errors import ModelError
from yolov7.model import block_specs, create_model
from yolov7.model.blocks import (
    KINDS,
    AvgConv,
    AvgDown,
    BiFusion,
    Concat,
    Conv,
    ConvUnit,
    CspStack,
    DownC,
    Elan,
    FusedConv,
    Gelan,
    ImplicitConvUnit,
    LearntScale,
    LearntScaleModule,
    LinearAdd,
    MaxPool,
    MpConv,
    RepConv,
    RepConvModule,
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
from yolov7.model.cost import conv_gflops, count_deploy_unfused, count_parameters
from yolov7.model.heads.anchor import AnchorHead, Level
from yolov7.model.reparameterize import convert
from yolov7.model.spec import Map, Network, Scaling, Stage
from yolov7.model.spec_json import network_from_json, network_to_json
from yolov7.train.optimizer import create_optimizer, parameter_groups

SEEDS = st.integers(0, 10**6)
ACTIVATIONS = st.sampled_from([None, "silu", "relu", "leaky-relu", "none"])
WIDTHS = st.sampled_from([2, 4, 6])

# Every block, with the maps it reads.
ONE = (Map(4, 8),)
EXAMPLES = {
    Concat(): (Map(4, 8), Map(2, 8), Map(4, 8)),
    Conv(6, 3, 2, bias=True): ONE,
    AvgConv(6): (Map(4, 8), Map(2, 16)),
    AvgDown(6): (Map(4, 8), Map(2, 16)),
    BiFusion(6): (Map(4, 32), Map(2, 16), Map(8, 8)),
    CspStack(6, hidden=4, units=2): ONE,
    DownC(6): (Map(4, 8), Map(2, 16)),
    Gelan(6, hidden=4, width=4, inner=2): ONE,
    SppElan(4, hidden=2): ONE,
    Elan(6, hidden=2, depth=4, rep=(1, 2)): ONE,
    LearntScale(): ONE,
    LinearAdd(4): ONE,
    MaxPool(): ONE,
    MpConv(3): (Map(4, 8), Map(2, 16)),
    RepConv(4): ONE,
    RepStack(6, count=3): ONE,
    RepVgg(4): ONE,
    SliceSum(((0, 4), (2, 4))): (Map(4, 32), Map(8, 16), Map(4, 8)),
    SpaceToDepth(): ONE,
    SppCsp(6, hidden=2): ONE,
    SppCspc(4): ONE,
    StridedConv(6): (Map(4, 8), Map(2, 16)),
    Sum(): (Map(4, 8), Map(4, 8)),
    TinySpp(6, hidden=2): ONE,
    TransposedConv(3): ONE,
    UpConcat(3): (Map(4, 16), Map(6, 8)),
    Upsample(): ONE,
}


def randomised(module, seed):
    """Statistics and weights far from their initial values, as training leaves them; in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                low = 0.2 if name.endswith("running_var") else -1.0
                tensor.copy_(torch.empty_like(tensor).uniform_(low, 2.0, generator=generator))
    return module.double().eval()


def images_of(maps, seed, side=2):
    """A map for each of `maps`, whose sides are `side` cells of the largest stride."""
    generator = torch.Generator().manual_seed(seed)
    pixels = side * max(item.stride for item in maps) * 2
    shapes = [(2, item.channels, pixels // item.stride, pixels // item.stride) for item in maps]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def built(block, maps, *, merged=False):
    return block.build([item.channels for item in maps], "silu", merged=merged)


def assert_announced(block, maps, seed):
    """The module puts out the announced map, and its deploy form computes the same."""
    module, inputs = randomised(built(block, maps), seed), images_of(maps, seed)
    announced = block.output(maps)
    with torch.inference_mode():
        trained = module(*inputs)
        deployed = convert(copy.deepcopy(module))(*inputs)
    rows = inputs[0].shape[2] * maps[0].stride // announced.stride
    assert trained.shape == (2, announced.channels, rows, rows)
    assert (trained - deployed).abs().max() <= 1e-9 * max(1.0, float(trained.abs().max()))


def test_every_kind_has_an_example():
    assert {type(block) for block in EXAMPLES} == set(KINDS)
    assert {getattr(block_specs, kind.__name__) for kind in KINDS} == set(KINDS)


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: type(block).__name__)
@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_every_block_announces_its_map_and_deploys_to_the_same(block, seed):
    assert_announced(block, EXAMPLES[block], seed)


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: type(block).__name__)
def test_the_cost_of_every_block_is_counted(block):
    """Torch's own counter agrees with the weights and outputs of its convolutions, which `conv_gflops` counts."""
    maps, work = EXAMPLES[block], []

    def note(conv, inputs, output):
        cells = inputs[0] if isinstance(conv, nn.ConvTranspose2d) else output
        work.append(2 * cells.numel() * conv.weight[0].numel())

    module = built(block, maps).double().eval()
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.register_forward_hook(note)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*images_of(maps, 0))
    assert counter.get_total_flops() == sum(work)


@settings(max_examples=30, deadline=None)
@given(
    seed=SEEDS,
    out=WIDTHS,
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    norm=st.booleans(),
    bias=st.sampled_from([None, True, False]),
    act=ACTIVATIONS,
)
def test_a_convolution_with_bias_and_norm_in_any_combination(seed, out, kernel, stride, norm, bias, act):
    block = Conv(out, kernel, stride, norm=norm, bias=bias, act=act)
    assert_announced(block, ONE, seed)
    module = built(block, ONE)
    assert (module.conv.bias is not None) is (bias if bias is not None else not norm)
    assert isinstance(module.bn, nn.BatchNorm2d) is norm
    kernels = 4 * out * kernel**2
    assert count_parameters(module) == kernels + out * ((module.conv.bias is not None) + 2 * norm)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, out=WIDTHS, stride=st.sampled_from([1, 2]), groups=st.sampled_from([1, 2]), act=ACTIVATIONS)
def test_repvgg_has_its_identity_wherever_shapes_allow(seed, out, stride, groups, act):
    block = RepVgg(out, stride, groups, act=act)
    assert_announced(block, ONE, seed)
    for merged in (False, True):
        assert (built(block, ONE, merged=merged).identity is not None) is (out == 4 and stride == 1)
    assert built(RepConv(4), ONE, merged=True).identity is None
    assert isinstance(convert(built(block, ONE)), FusedConv)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, out=WIDTHS, factor=st.sampled_from([1, 2, 4]))
def test_up_sampling_by_any_factor(seed, out, factor):
    assert_announced(TransposedConv(out, factor), ONE, seed)
    assert_announced(Upsample(factor), ONE, seed)
    assert TransposedConv(out, factor).output(ONE) == Map(out, 8 // factor)
    assert count_parameters(built(TransposedConv(out, factor), ONE)) == 4 * out * factor**2 + out


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, starts=st.lists(st.integers(0, 5), max_size=3), width=st.integers(1, 3))
def test_slices_of_coarse_maps_are_added_to_the_last_map(seed, starts, width):
    maps = [*(Map(8, 8 * 2**i) for i in range(len(starts))), Map(width, 8)]
    block = SliceSum(tuple((start, width) for start in starts))
    *coarse, last = images_of(maps, seed)
    expected = torch.zeros_like(last)
    for start, source in zip(starts, coarse, strict=True):
        factor = last.shape[2] // source.shape[2]
        expected += source[:, start : start + width].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    assert torch.equal(built(block, maps)(*coarse, last), expected + last)


@pytest.mark.parametrize(
    ("block", "maps", "message"),
    [
        (SliceSum(((0, 4),)), (Map(4, 8),), "takes 2 maps, got 1"),
        (SliceSum(((6, 4),)), (Map(8, 16), Map(4, 8)), "channels 6 to 9 of 8 to a map of 4"),
        (SliceSum(((0, 3),)), (Map(8, 16), Map(4, 8)), "to a map of 4"),
        (SliceSum(((0, 4),)), (Map(8, 4), Map(4, 8)), "cannot up-sample stride 4 to 8"),
        (Upsample(3), ONE, "cannot up-sample stride 8 by 3"),
        (TransposedConv(4, 0), ONE, "cannot up-sample stride 8 by 0"),
        (Upsample(), (Map(3, 1),), "cannot up-sample stride 1 by 2"),
        (StridedConv(4), (Map(4, 8), Map(4, 8)), "cannot concatenate maps of strides 16, 8"),
    ],
)
def test_maps_that_do_not_fit(block, maps, message):
    with pytest.raises(ModelError, match=message):
        block.output(maps)


@settings(max_examples=20, deadline=None)
@given(act=ACTIVATIONS)
def test_a_block_may_have_an_activation_of_its_own(act):
    kinds = {None: nn.SiLU, "silu": nn.SiLU, "relu": nn.ReLU, "leaky-relu": nn.LeakyReLU, "none": nn.Identity}
    for block in (Conv(4, act=act), StridedConv(4, act=act), SppCspc(4, act=act), Elan(4, 2, 2, act=act)):
        module = built(block, ONE)
        units = [part for part in module.modules() if isinstance(part, ConvUnit)]
        assert units and {type(unit.act) for unit in units} == {kinds[act]}
    with pytest.raises(ModelError, match="unknown activation 'swish'"):
        built(Conv(4, act="swish"), ONE)


def test_only_units_with_implicit_vectors_have_places_for_them():
    assert set(dict(built(Conv(4), ONE).named_children())) == {"conv", "bn", "act"}
    assert isinstance(built(Conv(4, before=("add",)), ONE), ImplicitConvUnit)
    assert isinstance(built(Conv(4, after=("multiply",)), ONE), ImplicitConvUnit)


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: type(block).__name__)
def test_compound_scaling_keeps_the_kind_and_the_activation(block):
    scaled = block.scaled(Scaling(depth=1.0, inside=1.0, transition=2.0))
    assert type(scaled) is type(block) and getattr(scaled, "act", None) == getattr(block, "act", None)
    for name in getattr(block, "transitions", ()):
        assert getattr(scaled, name) == max(8, round(2 * getattr(block, name) / 8) * 8)


# Networks -------------------------------------------------------------------------------------------------------------

ANCHORS = (((4, 4), (6, 6)), ((10, 10), (16, 16)))


def network():
    """Two linked backbones, a biased 1x1 of several slices, a transposed convolution, a scaled shortcut."""
    return Network(
        name="language",
        activation="relu",
        backbone=(
            Stage("stem", StridedConv(8)),
            Stage("P2", StridedConv(8)),
            Stage("R2", RepVgg(8)),
            Stage("S2", LearntScale(), of=("P2",)),
            Stage("B2", Sum(), of=("R2", "S2")),
            Stage("P3", StridedConv(12)),
            Stage("tap", Conv(8 + 16, 1, norm=False, act="none"), of=("P3",)),
            Stage("again", StridedConv(8), of=("image",)),
            Stage("fused", SliceSum(((0, 8),)), of=("tap", "again")),
            Stage("Q2", StridedConv(16, act="silu")),
            Stage("G2", SliceSum(((8, 16),)), of=("tap", "Q2")),
        ),
        neck=(
            Stage("up", TransposedConv(8), of=("P3",)),
            Stage("near", Upsample(), of=("P3",)),
            Stage("U2", Concat(), of=("up", "near", "B2", "G2")),
        ),
        head=AnchorHead(
            anchors=ANCHORS, lead=(Level("H2", Conv(8), of="U2"), Level("H3", Conv(8, act="silu"), of="P3"))
        ),
    )


def test_a_network_of_the_new_blocks_deploys_to_the_same():
    model = create_model(network(), 2).eval()
    randomised(model, 3)
    images = torch.rand(1, 3, 32, 48, dtype=torch.float64)
    with torch.inference_mode():
        trained, deployed = model.raw(images), model.reparameterize().raw(images)
    assert [tuple(item.shape) for item in trained] == [(1, 2, 8, 12, 7), (1, 2, 4, 6, 7)]
    for before, after in zip(trained, deployed, strict=True):
        assert (before - after).abs().max() <= 1e-9 * float(before.abs().max())


def test_the_image_has_a_second_reader():
    """The second backbone changes the result, and leaves the first as it is."""
    model = create_model(network(), 2).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        first, deep = model.raw(images)
        model.get_submodule("backbone.again.down.conv").weight.mul_(2.0)
        changed, same = model.raw(images)
    assert not torch.equal(first, changed) and torch.equal(deep, same)


def test_every_convolution_and_weight_of_a_network_is_counted():
    spec = network()
    model = create_model(spec, 2, device="meta")
    maps = spec.maps()
    # input channels, output channels, kernel, stride of the cells it is applied to
    convs = [
        (3, 8, 3, 2),
        (8, 8, 3, 4),
        (8, 8, 3, 4),
        (8, 8, 1, 4),
        (8, 12, 3, 8),
        (12, 24, 1, 8),
        (3, 8, 3, 2),
        (8, 16, 3, 4),
        (12, 8, 2, 8),  # transposed: once for every cell it reads
        (maps["U2"].channels, 8, 3, 4),
        (8, 14, 1, 4),
        (12, 8, 3, 8),
        (8, 14, 1, 8),
    ]
    work = sum(2 * inputs * outputs * kernel**2 * (64 // stride) ** 2 for inputs, outputs, kernel, stride in convs)
    assert conv_gflops(model, 64) == pytest.approx(work / 1e9, rel=1e-12)
    assert conv_gflops(create_model(spec, 2), 64) == conv_gflops(model, 64)
    scales = [part for part in model.modules() if isinstance(part, LearntScaleModule)]
    assert len(scales) == 1 and count_parameters(model.backbone.get_submodule("S2")) == 1
    kernels = sum(inputs * outputs * kernel**2 for inputs, outputs, kernel, _ in convs)
    norms = 2 * (8 + 8 + 3 * 8 + 12 + 8 + 16 + 8 + 8)  # of stem, P2, R2 with identity, P3, again, Q2, H2, H3
    biases, vectors, scale = 24 + 8 + 2 * 14, 2 * (8 + 14), 1
    assert count_parameters(model) == kernels + norms + biases + vectors + scale


def test_the_unfused_deploy_form_has_no_vectors_and_nothing_that_only_training_has():
    plain = network()
    head = replace(plain.head, auxiliary=(Level("A2", Conv(4), of="U2"), Level("A3", Conv(4), of="X3")))
    assisted = replace(plain, head=head, auxiliary=(Stage("X3", StridedConv(8), of=("B2",)),))
    model, without = (create_model(spec, 2, device="meta") for spec in (assisted, plain))
    vectors = 2 * (8 + 14)
    assert count_deploy_unfused(model) == count_deploy_unfused(without) == count_parameters(without) - vectors
    assert count_parameters(model) > count_parameters(without)
    assert conv_gflops(model.reparameterize(), 64) < conv_gflops(without, 64) < conv_gflops(model, 64)


def test_a_learnt_scale_starts_at_one_and_is_not_decayed():
    model = create_model(network(), 2)
    name = "backbone.S2.scale"
    assert model.get_parameter(name).tolist() == [1.0]
    groups = parameter_groups(model)
    assert name in groups.no_decay and name not in (*groups.decay, *groups.bias)
    assert "backbone.tap.conv.bias" in groups.bias and "neck.up.bias" in groups.bias
    assert "neck.up.weight" in groups.decay
    optimizer = create_optimizer(model, Optimizer(), weight_decay=0.1)
    assert any(model.get_parameter(name) is item for item in optimizer.param_groups[0]["params"])
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    sum(item.sum() for item in model.raw(torch.rand(1, 3, 32, 32))).backward()
    assert model.get_parameter(name).grad is not None


def test_added_fields_stay_out_of_the_json_at_their_default():
    value = json.loads(json.dumps(network_to_json(network())))
    stages = {stage["name"]: stage["block"] for stage in value["backbone"]}
    assert set(stages["stem"]) == {"kind", "out"}
    assert stages["tap"] == {
        "kind": "Conv",
        "out": 24,
        "kernel": 1,
        "stride": 1,
        "groups": 1,
        "before": [],
        "after": [],
        "norm": False,
        "act": "none",
    }
    assert network_from_json(value) == network()
    del stages["stem"]["out"]
    with pytest.raises(ModelError, match="StridedConv: fields"):
        network_from_json(value)


def test_a_plain_convolution_is_what_it_says():
    """CBLinear: one biased 1x1, nothing else, sliced by its readers."""
    module = randomised(built(Conv(6, 1, norm=False, act="none"), ONE), 1)
    x = images_of(ONE, 1)[0]
    assert torch.equal(module(x), F.conv2d(x, module.conv.weight, module.conv.bias))
    assert isinstance(built(RepVgg(4), ONE), RepConvModule)


@pytest.mark.parametrize("block", [RepVgg(16, 2), LinearAdd(16, 2)])
@pytest.mark.parametrize("channels", [3, 8, 24])
def test_a_strided_block_of_any_width_can_be_trained(block, channels):
    """oneDNN's gradient of a strided 1x1 ends the process on such widths."""
    module = block.build([channels], "relu", merged=False).to(memory_format=torch.channels_last)
    for side in (96, 320):
        images = torch.rand(2, channels, side, side).contiguous(memory_format=torch.channels_last)
        module(images).sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in module.parameters())
    assert module(torch.rand(2, channels, 7, 5)).shape == (2, 16, 4, 3)
