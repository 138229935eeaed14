"""YOLOv6: exact counts, the studies' networks, the head and its outputs for training, and the deploy form."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.small_efficient import small_efficient
from tests.unit.yolov7.model.test_blocks import randomised
from yolov7.errors import ModelError
from yolov7.model import create_model, list_variants
from yolov7.model.blocks import Conv, CspStack, LearntScale, RepStack, mode_of
from yolov7.model.cost import conv_gflops, count_parameters
from yolov7.model.heads.efficient import ANCHORS, with_options
from yolov7.model.modes import modes_of, with_mode
from yolov7.model.spec import Map, Scaling
from yolov7.model.spec_json import network_from_json, network_to_json
from yolov7.model.variants import find_variant
from yolov7.model.variants import yolov6_studies as studies
from yolov7.model.variants.yolov6 import P6, efficient

# Parameters in training and deploy form, convolution GFLOPs deployed at the input's side (reference sheet: yolov6, 3)
COUNTS = {
    "yolov6-n": (4_737_566, 4_317_246, 11.041),
    "yolov6-t": (10_629_022, 9_695_566, 24.730),
    "yolov6-s": (18_869_022, 17_220_446, 43.866),
    "yolov6-m": (37_170_358, 34_286_486, 81.469),
    "yolov6-l": (58_589_195, 58_541_067, 142.757),
    "yolov6-l-relu": (63_539_723, 58_541_067, 142.757),
    "yolov6v3-n": (5_058_270, 4_646_974, 11.316),
    "yolov6v3-s": (20_147_358, 18_537_310, 44.967),
    "yolov6v3-m": (37_740_982, 34_855_958, 85.087),
    "yolov6v3-l": (59_638_731, 59_607_563, 149.467),
    "yolov6v3-n6": (11_239_346, 10_373_970, 49.331),
    "yolov6v3-s6": (44_797_426, 41_394_482, 196.102),
    "yolov6v3-m6": (85_490_770, 79_640_114, 375.278),
    "yolov6v3-l6": (140_413_550, 140_359_342, 665.834),
}
# Backbone, neck, head in training form (same section)
PARTS = {
    "yolov6-n": (3_089_952, 1_218_592, 429_022),
    "yolov6-s": (12_334_144, 4_859_968, 1_674_910),
    "yolov6-m": (25_716_780, 7_672_428, 3_781_150),
    "yolov6-l": (38_484_117, 13_429_400, 6_675_678),
}
ANCHOR_AIDED = {
    "yolov6v3-n": 5_115_474,
    "yolov6v3-s": 20_261_010,
    "yolov6v3-m": 37_911_082,
    "yolov6v3-l": 59_865_279,
}
# With distributions of one value, as the sheet counts the outputs for distillation
DISTILLED = {"yolov6v3-n": 5_059_178, "yolov6v3-s": 20_149_162}
# Deployed parameters and GFLOPs of the paper's studies (reference sheet: yolov6-training, section 14)
STUDIES = {
    "t of 1.0": (studies.yolov6_t_v1, 14_970_526, 36.316),
    "t csp": (studies.yolov6_t_csp, 10_662_838, 24.467),
    "2 n csp": (studies.yolov6_n_csp, 2_319_251, 5.530),
    "2 n csp direct": (lambda: with_options(studies.yolov6_n_csp(), bins=0), 2_304_723, None),
    "2 s csp": (studies.yolov6_s_csp, 11_522_108, 27.391),
    "2 m rep": (studies.yolov6_m_rep, 67_084_990, None),
    "2 m rep dfl": (lambda: with_options(studies.yolov6_m_rep(), bins=17), 67_128_190, 175.055),
    "2 m csp 1/2": (studies.yolov6_m_csp_half, 27_732_226, 67.707),
    "2 l csp 2/3, nearest": (studies.yolov6_l_two_thirds, 54_680_009, None),
    "3 l wide neck": (studies.yolov6_l_wide_neck, 58_555_707, 141.865),
    "3 l wide head": (
        lambda: efficient(studies.TWO["l"], "wide", base=replace(studies.WIDE_NECK, head=None)),
        66_622_843,
        156.705,
    ),
    "base n": (studies.yolov6_n_base, 4_317_246, None),
    "base s": (studies.yolov6_s_base, 11_493_244, None),
    "base m": (studies.yolov6_m_base, 27_732_226, None),
    "base l": (studies.yolov6_l_base, 58_541_067, None),
}
# Trained form of table 4's plain networks, and of RepOptimizer's second training (sections 14 and 10)
TRAINED = {
    "4 n conv": (lambda: studies.with_convolution("n", "conv", "relu"), 4_324_990),
    "4 m conv": (lambda: studies.with_convolution("m", "conv", "relu"), 34_316_758),
    "1.0 t": (studies.yolov6_t_v1, 16_363_166),
    "target n": (lambda: with_mode(find_variant("yolov6-n"), "conv"), 4_321_742),
    "target t": (lambda: with_mode(find_variant("yolov6-t"), "conv"), 9_702_310),
    "target s": (lambda: with_mode(find_variant("yolov6-s"), "conv"), 17_229_438),
}


def test_the_family_is_complete():
    assert list_variants(family="yolov6") == list(COUNTS)


@pytest.mark.parametrize("variant", COUNTS)
def test_counts_are_exact_in_every_form(variant):
    training, deployed, gflops = COUNTS[variant]
    model = create_model(variant, device="meta")
    deploy = model.reparameterize()
    assert (count_parameters(model), count_parameters(deploy)) == (training, deployed)
    assert round(conv_gflops(deploy, model.spec.image_size), 3) == gflops
    if variant in PARTS:
        assert tuple(map(count_parameters, (model.backbone, model.neck, model.head))) == PARTS[variant]
    six = variant.endswith("6")
    assert model.strides == ((8, 16, 32, 64) if six else (8, 16, 32)) and model.spec.image_size == (
        1280 if six else 640
    )
    assert not model.has_auxiliary and model.head.scoring() == "class probability"
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all((norm.eps, norm.momentum) == (1e-3, 0.03) for norm in norms)


@pytest.mark.parametrize("variant", ANCHOR_AIDED)
def test_counts_with_the_outputs_that_only_training_has(variant):
    network = find_variant(variant)
    aided = create_model(with_options(network, anchor_aided=True), device="meta")
    assert count_parameters(aided) == ANCHOR_AIDED[variant] and aided.has_auxiliary
    assert count_parameters(aided.reparameterize()) == COUNTS[variant][1]
    assert aided.decoding_macs(64, 64) == create_model(network, device="meta").decoding_macs(64, 64)  # has no bins
    if variant in DISTILLED:
        more = count_parameters(create_model(with_options(network, distributions=True), device="meta"))
        assert more - COUNTS[variant][0] == 17 * (DISTILLED[variant] - COUNTS[variant][0])


@pytest.mark.parametrize("study", STUDIES)
def test_networks_of_the_papers_studies(study):
    network, parameters, gflops = STUDIES[study]
    deploy = create_model(network(), device="meta").reparameterize()
    assert count_parameters(deploy) == parameters
    assert gflops is None or round(conv_gflops(deploy, 640), 3) == gflops


@pytest.mark.parametrize("study", TRAINED)
def test_trained_form_of_plain_networks(study):
    network, parameters = TRAINED[study]
    assert count_parameters(create_model(network(), device="meta")) == parameters


def test_any_3x3_block_and_activation_of_table_4():
    counts = set()
    for mode in ("rep", "conv"):
        for act, kind in (("relu", nn.ReLU), ("silu", nn.SiLU), ("leaky-relu", nn.LeakyReLU)):
            network = studies.with_convolution("n", mode, act)
            model = create_model(network, device="meta")
            assert modes_of(network) == {mode} and isinstance(model.backbone.stem.act, kind)
            counts.add(count_parameters(model.reparameterize()))
    assert counts == {COUNTS["yolov6-n"][1]}
    assert studies.with_distributions("n").head.bins == 17


# Blocks


def test_a_stack_has_its_blocks_and_refuses_none():
    assert len(RepStack(6, count=3).build((4,), "relu", merged=False)) == 3
    assert len(CspStack(6, hidden=4, units=2).build((4,), "relu", merged=False).units) == 2
    for block in (RepStack(6, count=0), CspStack(6, hidden=4, units=0)):
        with pytest.raises(ModelError, match="at least 1, got 0"):
            block.build((4,), "relu", merged=False)
    with pytest.raises(ModelError, match="mode: 'fast' is not one of rep, conv"):
        RepStack(6, count=1, mode="fast").build((4,), "relu", merged=False)


def test_stacks_scale_with_the_network():
    scaling = Scaling(depth=2.0, inside=2.0, transition=3.0)
    assert RepStack(8, count=3).scaled(scaling) == RepStack(24, count=6)
    assert CspStack(8, hidden=8, units=2).scaled(scaling) == CspStack(24, hidden=16, units=4)


def test_the_mode_of_a_block():
    assert [mode_of(block) for block in (Conv(4), Conv(4, 1), LearntScale(), RepStack(4, 1, "conv"))] == [
        "conv",
        None,
        None,
        "conv",
    ]
    network = find_variant("yolov6-m")
    plain = with_mode(network, "conv")
    assert modes_of(network) == {"rep"} and modes_of(plain) == {"conv"} and with_mode(plain, "rep") == network
    assert plain.head == network.head and plain.backbone[-1] == network.backbone[-1]


def test_bifusion_refuses_maps_of_other_levels():
    block = find_variant("yolov6v3-n").neck[1].block
    with pytest.raises(ModelError, match="got 2 maps"):
        block.output([Map(4, 32), Map(4, 16)])
    with pytest.raises(ModelError, match="strides 32, 16 and 16: each must be twice the next"):
        block.output([Map(4, 32), Map(4, 16), Map(4, 16)])


def test_what_the_published_optimisers_never_step_takes_no_gradient():
    model = create_model("yolov6-m", 2, device="meta")
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert sum(name.endswith("alpha") for name in frozen) == 24
    assert {name for name in frozen if not name.endswith("alpha")} == {"head.lead_bins.values", "head.numbers"}


# The head


@pytest.mark.parametrize(
    "options", [{}, {"anchor_aided": True}, {"distributions": True}, {"bins": 17}, {"objectness": True}]
)
def test_a_fresh_head_says_nothing_yet(options):
    model = create_model(small_efficient("3.0", **options), 2).eval()
    with torch.inference_mode():
        raw = model.raw(torch.rand(1, 3, 64, 64))
    channels = 4 * max(options.get("bins", 0), 1)
    for level in raw[:3]:
        assert (level[:, :channels] == 1).all() and torch.allclose(level[:, channels:], torch.tensor(-4.59512))
    for level in raw[3:]:
        assert all((level[0, channel] == level[0, channel, 0, 0]).all() for channel in range(level.shape[1]))


def test_the_maps_that_only_training_has():
    options = {"anchor_aided": True, "distributions": True}
    network, plain = small_efficient("3.0", **options), small_efficient("3.0")
    model, images = randomised(create_model(network, 2, seed=3), 3), torch.rand(1, 3, 64, 96).double()
    sides = [(8, 12), (4, 6), (2, 3)]
    with torch.inference_mode():
        raw = model.raw(images)
        assert [tuple(item.shape) for item in raw] == [
            (1, channels, *side) for channels in (4 + 2, 3 * (4 + 2), 4 * 17) for side in sides
        ]
        assert all(
            torch.equal(one, other) for one, other in zip(model.head.leads(model.features(images)), raw, strict=False)
        )
        deploy = model.reparameterize()
        assert deploy.raw(images)[0].shape[1] == 6 and len(deploy.raw(images)) == 3
        outputs = model.head.auxiliary[1]
        box, classes = model.head.lead[1].features(model.features(images)[model.head.lead[1].reads])
        slot = raw[4].unflatten(1, (3, 6))[:, 2]  # slot-major: 4 box channels, then the classes, of each slot
        assert torch.equal(slot[:, :4], outputs.anchor_box(box)[:, 8:12])
        assert torch.equal(slot[:, 4:], outputs.anchor_classes(classes)[:, 4:6])
    assert model.has_auxiliary and not deploy.has_auxiliary
    assert not any("auxiliary" in name for name in deploy.state_dict())
    # The weights they share do not depend on them.
    one, other = (create_model(item, 2, seed=1).state_dict() for item in (network, plain))
    assert all(torch.equal(one[name], value) for name, value in other.items())


def test_objectness_is_one_output_on_the_features_of_the_box_branch():
    for bins, channels in ((0, 4), (17, 68)):
        network, plain = (small_efficient("3.0", bins=bins, objectness=on) for on in (True, False))
        model = randomised(create_model(network, 2, seed=3), 3)
        widths = [branch.width for branch in model.head.lead]
        more = count_parameters(model) - count_parameters(create_model(plain, 2))
        assert more == sum(width + 1 for width in widths)
        branch, maps = model.head.lead[1], model.features(torch.rand(2, 3, 64, 96).double())
        with torch.inference_mode():
            raw = model.head.leads(maps)
            assert [item.shape[1] for item in raw] == [channels + 1 + 2] * 3 and not model.has_auxiliary
            box, classes = branch.features(maps[branch.reads])
            assert torch.equal(raw[1][:, :channels], branch.box_output(box))
            assert torch.equal(raw[1][:, channels : channels + 1], branch.object_output(box))
            assert torch.equal(raw[1][:, channels + 1 :], branch.class_output(classes))
            rows = model.head.decode(raw)
        assert rows.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 5 + 2)
        assert torch.equal(rows[:, 96:120, 4:], raw[1][:, channels:].flatten(2).transpose(1, 2).sigmoid())
        assert network_from_json(json.loads(json.dumps(network_to_json(network)))) == network
        assert "objectness" not in json.dumps(network_to_json(plain))
        contract, usual = (create_model(item, 2).head.raw_contract() for item in (network, plain))
        assert contract["shape"] == ["batch", channels + 3, "rows", "columns"]
        assert contract["values"].endswith("; the bins of each), the object logit, then class logits")
        assert usual["values"].endswith("; the bins of each), then class logits") and usual["shape"][1] == channels + 2


@pytest.mark.parametrize("classes", [1, 2])
def test_the_score_with_objectness_is_the_product_for_one_class_too(classes):
    model = create_model(small_efficient(objectness=True), classes)
    assert model.head.scoring() == "objectness x class probability"


def test_options_that_contradict_each_other_or_the_network():
    network = find_variant("yolov6v3-n")
    assert with_options(network) is network and with_options(network, bins=17).head.bins == 17
    assert with_options(network, anchor_aided=True).head.anchors == ANCHORS
    with pytest.raises(ModelError, match="distributions: the distances are distributions already; set bins to 0"):
        with_options(find_variant("yolov6v3-m"), distributions=True)
    with pytest.raises(ModelError, match="objectness: not together with anchor_aided; set one of them to false"):
        with_options(network, objectness=True, anchor_aided=True)
    with pytest.raises(ModelError, match="objectness: not together with distributions; set one of them to false"):
        with_options(network, objectness=True, distributions=True)
    with pytest.raises(ModelError, match="anchors of 4 levels are needed, got those of 3"):
        with_options(find_variant("yolov6v3-n6"), anchor_aided=True)
    with pytest.raises(ModelError, match="yolov7-tiny: bins: options of YOLOv6's head, but its head is AnchorHead"):
        with_options(find_variant("yolov7-tiny"), bins=17)
    head = network.head
    for wrong, message in (
        (replace(head, widths=(8,)), "widths: 3 are expected, one for each level, got 1"),
        (replace(head, auxiliary=("T3", "L4", "L5")), "`auxiliary` must be empty"),
        (replace(head, bins=1), "bins: 0, or at least 2, got 1"),
    ):
        with pytest.raises(ModelError, match=message):
            create_model(replace(network, head=wrong), device="meta")


def test_decoding_by_hand():
    for bins, channels in ((0, 4), (17, 68)):
        model = create_model(small_efficient(bins=bins), 2).eval()
        raw = [torch.zeros(1, channels + 2, h, w) for h, w in ((2, 3), (1, 1), (1, 1))]
        sides = (2, 3, 4, 5)  # left, top, right, bottom in strides
        for number, side in enumerate(sides):
            raw[0][0, 17 * number + side if bins else number, 1, 2] = 100.0 if bins else float(side)
        raw[0][0, channels:, 1, 2] = torch.tensor([0.0, 2.0])
        row = model.head.decode(raw)[0, 1 * 3 + 2]
        x, y = 2.5 * 8, 1.5 * 8
        assert row.tolist() == pytest.approx([x - 16, y - 24, x + 32, y + 40, 0.5, 0.880797], abs=1e-4)


@pytest.mark.parametrize("variant", ["yolov6v3-n", "yolov6-l"])
def test_a_network_with_options_survives_json(variant):
    network = with_options(find_variant(variant), anchor_aided=True)
    assert network_from_json(json.loads(json.dumps(network_to_json(network)))) == network


# Deploy form

KINDS = {
    "rep": {},
    "rep csp": {"expansion": 2 / 3, "bins": 17},
    "conv csp": {"expansion": 1 / 2, "mode": "conv", "act": "silu", "conv_bias": True, "bins": 17},
    "conv leaky": {"mode": "conv", "act": "leaky-relu"},
    "3.0 rep": {"release": "3.0", "anchor_aided": True, "distributions": True},
    "3.0 conv csp": {"release": "3.0", "expansion": 1 / 2, "mode": "conv", "act": "silu", "csp_spp": False},
    "3.0 p6": {"release": "3.0", "base": P6},
    "objectness": {"objectness": True, "bins": 17},
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 4))
def test_reparameterized_equals_trained_whatever_the_statistics(kind, seed, classes):
    model = randomised(create_model(small_efficient(**KINDS[kind]), classes, seed=seed), seed)
    images = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(seed)).double()
    deploy = model.reparameterize()
    assert not any(".bn." in name or "auxiliary" in name for name in deploy.state_dict())
    with torch.inference_mode():
        for found, wanted in zip(deploy.raw(images), model.raw(images), strict=False):
            assert (found - wanted).abs().max() <= 1e-9 * max(1.0, float(wanted.abs().max()))


def test_every_parameter_that_is_trained_gets_a_gradient():
    for kind in ("rep csp", "3.0 rep", "objectness"):
        model = create_model(small_efficient(**KINDS[kind]), 2).train()
        for name, parameter in model.named_parameters():
            if "output" in name or "auxiliary" in name:
                nn.init.normal_(parameter)  # the weights of a fresh output are zero, so nothing passes it
        sum(item.square().mean() for item in model.raw(torch.rand(2, 3, 64, 64))).backward()
        assert all((p.grad is not None) is p.requires_grad for p in model.parameters())
