"""The eight networks: exact counts, strides, anchors, biases, and scaling (reference sheet: architecture)."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from yolov7.catalogue import sections
from yolov7.errors import ModelError
from yolov7.model import create_model, list_variants
from yolov7.model.blocks import Conv, Elan, ImplicitAdd, ImplicitMultiply, RepConv, StridedConv, Sum, UpConcat
from yolov7.model.cost import conv_gflops, count_deploy_unfused, count_parameters
from yolov7.model.detector import Detector
from yolov7.model.heads.anchor import AnchorHead, Level
from yolov7.model.info import variant_info
from yolov7.model.published.yolov7 import published_keys
from yolov7.model.scaling import extended, scale
from yolov7.model.spec import Network, Stage
from yolov7.model.variants import find_variant, recipe_of, yolov7_e6, yolov7_x_light

# variant: training, deploy unfused, deploy (section 9); keys in the published layout (checkpoint-keys, section 2)
COUNTS = {
    "yolov7-tiny": (6_228_762, 6_227_101, 6_219_709, 344, 338),
    "yolov7-tiny-silu": (6_228_762, 6_227_101, 6_219_709, 344, 338),
    "yolov7": (37_622_682, 37_620_125, 36_905_341, 566, 560),
    "yolov7-x": (71_347_394, 71_344_389, 71_311_741, 644, 638),
    "yolov7-w6": (82_312_436, 70_426_236, 70_394_300, 668, 628),
    "yolov7-e6": (111_898_292, 97_246_652, 97_202_940, 896, 856),
    "yolov7-d6": (154_709_364, 133_810_044, 133_757_052, 1028, 988),
    "yolov7-e6e": (166_408_884, 151_757_244, 151_687_420, 1490, 1450),
}
# Rule A: deploy @640, @1280, training form @640, @1280
GFLOPS = {
    "yolov7-tiny": (13.701, 54.803, 13.701, 54.803),
    "yolov7-tiny-silu": (13.701, 54.803, 13.701, 54.803),
    "yolov7": (104.511, 418.044, 105.769, 423.077),
    "yolov7-x": (189.674, 758.695, 189.674, 758.695),
    "yolov7-w6": (89.929, 359.717, 105.028, 420.113),
    "yolov7-e6": (128.606, 514.426, 147.023, 588.092),
    "yolov7-d6": (175.435, 701.738, 201.516, 806.063),
    "yolov7-e6e": (210.546, 842.184, 228.963, 915.851),
}
RECIPES = {
    "yolov7-tiny": "tiny",
    "yolov7-tiny-silu": "tiny",
    "yolov7": "p5",
    "yolov7-x": "p5",
    "yolov7-w6": "p6",
    "yolov7-e6": "p6",
    "yolov7-d6": "p6",
    "yolov7-e6e": "p6",
}
BUFFERS = {
    "yolov7-tiny": 14_875,
    "yolov7": 49_856,
    "yolov7-x": 65_437,
    "yolov7-w6": 70_427,
    "yolov7-e6": 94_017,
    "yolov7-d6": 113_879,
    "yolov7-e6e": 146_340,
}


@cache
def forms(variant: str) -> tuple[Detector, Detector]:
    """Training and deploy form without weights, which nothing changes."""
    model = create_model(variant, device="meta")
    return model, model.reparameterize()


def test_the_family_is_complete_and_in_order():
    assert list_variants(family="yolov7") == list(COUNTS)
    assert list_variants()[: len(COUNTS)] == list(COUNTS)
    assert list(RECIPES) == list(COUNTS) and {name: recipe_of(name) for name in COUNTS} == RECIPES


@pytest.mark.parametrize("variant", COUNTS)
def test_counts_are_exact_in_every_form(variant):
    model, deploy = forms(variant)
    training_count, unfused, fused, keys_training, keys_deploy = COUNTS[variant]
    assert count_parameters(model) == training_count
    assert count_deploy_unfused(model, deploy) == unfused
    assert count_parameters(deploy) == fused
    assert len(published_keys(model.spec)) == keys_training
    assert len(published_keys(model.spec, form="deploy")) == keys_deploy
    # Every tensor of ours has its place in the published layout, and no two share one.
    assert set(published_keys(model.spec).values()) == set(model.state_dict())
    if variant in BUFFERS:
        # The published layout holds the anchors twice.
        assert sum(b.numel() for b in model.buffers()) + model.anchors.numel() == BUFFERS[variant]
    figures = [round(conv_gflops(form, side), 3) for form in (deploy, model) for side in (640, 1280)]
    assert figures == pytest.approx(GFLOPS[variant], abs=1.01e-3)


@pytest.mark.parametrize("variant", COUNTS)
def test_form_and_constants(variant):
    model, deploy = forms(variant)
    p6 = variant.rsplit("-", 1)[-1] in ("w6", "e6", "d6", "e6e")
    assert model.variant == variant and model.form == "training"
    assert model.strides == ((8, 16, 32, 64) if p6 else (8, 16, 32))
    assert model.stride == model.strides[-1]
    assert model.has_auxiliary is p6
    assert model.spec.image_size == (1280 if p6 else 640)
    assert model.anchors.shape == (len(model.strides), 3, 2)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all((norm.eps, norm.momentum) == (1e-3, 0.03) for norm in norms)
    leaky = [module for module in model.modules() if isinstance(module, nn.LeakyReLU)]
    assert bool(leaky) is (variant == "yolov7-tiny") and all(module.negative_slope == 0.1 for module in leaky)
    assert deploy.form == "deploy" and not deploy.has_auxiliary and not deploy.training
    assert not any(p.requires_grad for p in deploy.parameters())


def test_anchors_are_the_published_ones():
    assert create_model("yolov7-tiny", device="meta").anchors[1].tolist() == [[30, 61], [62, 45], [59, 119]]
    assert create_model("yolov7", device="meta").anchors[2].tolist() == [[142, 110], [192, 243], [459, 401]]
    assert create_model("yolov7-e6e", device="meta").anchors[3].tolist() == [[436, 615], [739, 380], [925, 792]]


def test_partial_auxiliary_head_reads_the_second_twin():
    assert [level.of for level in find_variant("yolov7-e6e").head.auxiliary] == ["T3b", "T4b", "T5b", "SPP"]
    assert [level.of for level in find_variant("yolov7-e6e").head.lead] == ["T3", "L4", "L5", "L6"]
    assert [level.of for level in find_variant("yolov7-e6").head.auxiliary] == ["T3", "T4", "T5", "SPP"]


@pytest.mark.parametrize(
    ("factors", "count"),
    [
        ({}, 47_073_178),
        ({"width": 1.25}, 73_391_490),
        ({"depth": 2.0}, 69_321_114),
        ({"depth": 1.5, "width": 1.25}, 71_347_394),
    ],
)
def test_compound_scaling_rows_of_the_paper(factors, count):
    assert count_parameters(create_model(scale(yolov7_x_light(), **factors), device="meta")) == count


def test_scaling_by_one_changes_nothing_but_the_name():
    base = yolov7_x_light()
    same = scale(base)
    assert (same.backbone, same.neck, same.head) == (base.backbone, base.neck, base.head)
    with pytest.raises(ModelError, match="positive factor"):
        scale(base, depth=0.0)


def test_extended_elan_doubles_every_elan():
    base = yolov7_e6()
    twin = extended(base)
    elans = sum(isinstance(stage.block, Elan) for stage in (*base.backbone, *base.neck))
    assert elans == 11
    assert sum(isinstance(stage.block, Elan) for stage in (*twin.backbone, *twin.neck)) == 22
    assert sum(isinstance(stage.block, Sum) for stage in (*twin.backbone, *twin.neck)) == 11


@pytest.mark.parametrize("classes", [1, 3])
def test_head_biases_and_implicit_vectors(classes):
    model = create_model("yolov7-tiny", classes, seed=5)
    for level, stride in enumerate(model.strides):
        bias = model.state_dict()[f"head.lead.{level}.predict.conv.bias"].view(3, 5 + classes)
        fan_in = 128 * 2**level
        bound = 1 / math.sqrt(fan_in)  # of the default initialisation underneath
        assert (bias[:, :4].abs() <= bound).all()
        assert ((bias[:, 4] - math.log(8 / (640 / stride) ** 2)).abs() <= bound).all()
        assert ((bias[:, 5:] - math.log(0.6 / (classes - 0.99))).abs() <= bound).all()
    adds = torch.cat([m.implicit.flatten() for m in model.modules() if isinstance(m, ImplicitAdd)])
    multiplies = torch.cat([m.implicit.flatten() for m in model.modules() if isinstance(m, ImplicitMultiply)])
    assert abs(adds.mean()) < 0.005 and 0.015 < adds.std() < 0.025
    assert abs(multiplies.mean() - 1) < 0.01 and 0.01 < multiplies.std() < 0.03


def test_auxiliary_biases_get_the_same_prior(small_p6):
    model = create_model(small_p6, 2)
    bias = model.state_dict()["head.auxiliary.0.predict.conv.bias"].view(3, 7)
    assert torch.allclose(bias[:, 4], torch.full((3,), math.log(8 / (640 / 4) ** 2)), atol=0.3)


@pytest.fixture
def small_p6():
    return Network(
        name="small-aux",
        backbone=(Stage("stem", StridedConv(16)), Stage("P2", StridedConv(16)), Stage("P3", StridedConv(24))),
        neck=(Stage("U2", UpConcat(8), of=("P3", "P2")),),
        head=AnchorHead(
            anchors=(((4, 4), (6, 6), (8, 8)), ((10, 10), (16, 16), (20, 20))),
            lead=(Level("H2", RepConv(16), of="U2"), Level("H3", Conv(16), of="P3")),
            auxiliary=(Level("A2", Conv(12), of="U2"), Level("A3", Conv(12), of="P3")),
        ),
    )


def test_raw_maps_and_decoded_predictions(small_p6):
    model = create_model(small_p6, 1).eval()
    images = torch.rand(2, 3, 16, 24)
    with torch.inference_mode():
        raw = model.raw(images)
        decoded = model(images)
        trained = model.train()(images)
    assert [tuple(item.shape) for item in raw] == 2 * [(2, 3, 4, 6, 6), (2, 3, 2, 3, 6)]
    assert decoded.shape == (2, 3 * (24 + 6), 6)
    assert isinstance(trained, list) and len(trained) == 4
    assert len(model.reparameterize().raw(images)) == 2


def test_seed_decides_the_weights_and_global_generators_stay():
    before = torch.get_rng_state()
    first, again, other = (create_model("yolov7-tiny", 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    pairs = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    name = "backbone.stem1.conv.weight"
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_images_of_channels_last_give_the_same():
    model = create_model("yolov7-tiny", 2).eval().reparameterize()
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        plain = model(images)
        last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-3)


def test_anchors_of_ones_own():
    mine = [[[5, 6], [7, 8]], [[10, 20], [30, 40]], [[50, 60], [70, 80]]]
    model = create_model("yolov7-tiny", 2, anchors=mine).eval()
    assert model.anchors.tolist() == mine
    assert model.raw(torch.zeros(1, 3, 32, 32))[0].shape == (1, 2, 4, 4, 7)
    assert create_model("yolov7-tiny", 2, anchors=mine[::-1]).anchors.tolist() == mine  # turned the right way round
    for wrong in (mine[:2], [[[5, 6]], [[7, 8]], [[-1, 2]]], [[[1, 2, 3]]] * 3, [[[1, 2]], [[1, 2], [3, 4]], [[5, 6]]]):
        with pytest.raises(ModelError, match="anchors"):
            create_model("yolov7-tiny", 2, anchors=wrong)


def test_unknown_variant_names_the_nearest():
    with pytest.raises(ModelError, match=r"unknown variant 'yolov7-tinny' \(did you mean 'yolov7-tiny'"):
        create_model("yolov7-tinny")


@pytest.mark.parametrize("classes", [0, -3])
def test_class_count_below_one(classes):
    with pytest.raises(ModelError, match="at least 1"):
        create_model("yolov7-tiny", classes)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 100, 64), "height 100 .* 32; use 96 or 128"),
        ((1, 3, 64, 20), "width 20 .* 32; use 32"),
        ((1, 4, 64, 64), r"\(B, 3, H, W\)"),
        ((3, 64, 64), r"\(B, 3, H, W\)"),
    ],
)
def test_images_that_do_not_fit(shape, message):
    with pytest.raises(ModelError, match=message):
        create_model("yolov7-tiny", 1).raw(torch.zeros(shape))
    with pytest.raises(ModelError, match="floats"):
        create_model("yolov7-tiny", 1).raw(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_a_network_of_ones_own_by_module_and_function(tmp_path, monkeypatch):
    (tmp_path / "my_networks_for_test.py").write_text(
        "from dataclasses import replace\n"
        "from yolov7.model.scaling import scale\n"
        "from yolov7.model.variants import yolov7_tiny\n"
        "def half():\n"
        "    return replace(scale(yolov7_tiny(), width=0.5), name='half')\n"
        "def wrong():\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = create_model("my_networks_for_test:half", 2).eval()
    assert model.variant == "half" and model.raw(torch.zeros(1, 3, 32, 32))[2].shape == (1, 3, 1, 1, 7)
    # In the pipeline the name is the one in params.yaml, whatever the function calls it.
    assert find_variant("mine", source="my_networks_for_test:half").name == "mine"
    for name, message in (
        ("my_networks_for_test:", "MODULE:FUNCTION is expected"),
        ("my_networks_for_test:wrong", "must return a Network"),
        ("my_networks_for_test:absent", "has no 'absent'"),
        ("no_such_module_here:x", "cannot be imported"),
    ):
        with pytest.raises(ModelError, match=message):
            create_model(name)


def test_networks_of_ones_own_may_import_from_the_earlier_addresses(tmp_path, monkeypatch):
    """The file that docs/variants.md of revision 85b8700 gave as an example."""
    (tmp_path / "earlier_networks_for_test.py").write_text(
        "from yolov7.model.block_specs import Conv, Elan, MpConv, RepConv, SppCspc, StridedConv, UpConcat\n"
        "from yolov7.model.head import AnchorHead, Level\n"
        "from yolov7.model.spec import Network, Stage\n"
        "def two_levels() -> Network:\n"
        "    return Network(\n"
        "        name='two-levels',\n"
        "        backbone=(\n"
        "            Stage('stem', StridedConv(32)),\n"
        "            Stage('D2', StridedConv(64)),\n"
        "            Stage('B2', Elan(64, hidden=32, depth=4)),\n"
        "            Stage('D3', MpConv(64)),\n"
        "            Stage('B3', Elan(128, hidden=64, depth=4, rep=(1, 3))),\n"
        "            Stage('D4', MpConv(128)),\n"
        "        ),\n"
        "        neck=(\n"
        "            Stage('SPP', SppCspc(128)),\n"
        "            Stage('U3', UpConcat(64), of=('SPP', 'B3')),\n"
        "        ),\n"
        "        head=AnchorHead(\n"
        "            anchors=(((12, 16), (19, 36), (40, 28)), ((36, 75), (76, 55), (72, 146))),\n"
        "            lead=(Level('H3', RepConv(128), of='U3'), Level('H4', Conv(256), of='SPP')),\n"
        "        ),\n"
        "    )\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = create_model("earlier_networks_for_test:two_levels", 2)
    assert isinstance(model.spec.head, AnchorHead) and model.strides == (8, 16)


def test_wiring_mistakes_are_named(small_p6):
    twice = replace(small_p6, neck=(*small_p6.neck, Stage("U2", Conv(8))))
    lost = replace(small_p6, neck=(Stage("U2", UpConcat(8), of=("P3", "P9")),))
    uneven = replace(small_p6, neck=(Stage("U2", UpConcat(8), of=("P3", "stem")),))
    headless = replace(small_p6, neck=())
    for network, message in (
        (twice, "name of its own"),
        (lost, "reads 'P9'"),
        (uneven, "strides 8 and 2"),
        (headless, "head reads 'U2'"),
    ):
        with pytest.raises(ModelError, match=message):
            create_model(network, 1, device="meta")


def test_info_rows():
    row = variant_info("yolov7-d6")
    assert (row.parameters_training, row.parameters_deploy) == (154_709_364, 133_757_052)
    assert row.image_size == 1280 and row.published is not None and row.published.fps == 44
    values = row.as_json()
    assert values["gflops_deploy"] == pytest.approx(701.738, abs=1e-3) and values["published"]["ap"] == 56.6
    (section,) = sections([row])
    heading, line = section.rows
    assert section.title == "YOLOv7" and "one V100, fp16, batch 1" in section.note
    assert len(heading) == len(line) and {"133,757,052", "44", "V100 fp16"} <= set(line)
    with pytest.raises(ModelError, match="multiple"):
        variant_info("yolov7-tiny", image_size=100)
