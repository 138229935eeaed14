"""YOLOv9 and GELAN: exact counts, the paper's studies, PGI, re-parameterisation and published files."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from yolov7.errors import ModelError
from yolov7.model import create_model, list_variants
from yolov7.model.cost import conv_gflops, count_deploy_unfused, count_parameters
from yolov7.model.detector import Detector
from yolov7.model.pgi import PARTS, part_of, with_pgi
from yolov7.model.published import yolov9 as published
from yolov7.model.variants import find_variant
from yolov7.model.variants.gelan_studies import (
    gelan_c_linked,
    gelan_c_linked_deep,
    gelan_e_single,
    with_blocks,
    yolov7_af,
)

# training (dual), GELAN unfused, GELAN fused, Rule-A GFLOPs at 640 of training and fused, keys of the published layout
# (reference sheets: yolov9, section 5; yolov9-training, section 9)
SIZES = {
    "t": (3_717_680, 2_442_640, 2_407_632, 16.276, 9.818, 1772, 1339),
    "s": (9_804_512, 7_226_208, 7_105_888, 39.501, 26.379, 1772, 1339),
    "m": (32_878_432, 20_124_000, 19_978_672, 132.084, 76.310, 1412, 907),
    "c": (51_182_080, 25_498_752, 25_288_768, 238.655, 102.137, 1460, 937),
    "e": (69_529_664, 58_114_432, 57_345_920, 243.963, 188.946, 2172, 1811),
}
# Tables 2, 3 and 6 and the appendix: million parameters and GFLOPs of the fused network (yolov9-training, section 11)
STUDIES = {
    "s conv": (lambda: with_blocks(find_variant("gelan-s"), block="conv", inner=1), 6.2086, 23.525),
    "s res": (lambda: with_blocks(find_variant("gelan-s"), block="res", inner=1), 5.4210, 21.000),
    "s dark": (lambda: with_blocks(find_variant("gelan-s"), block="dark", inner=1), 5.6604, 21.769),
    "s 2 1": (lambda: with_blocks(find_variant("gelan-s"), depth=2, inner=1), 5.8683, 22.427),
    "s 2 2": (lambda: with_blocks(find_variant("gelan-s"), depth=2, inner=2), 6.4871, 24.403),
    "s 3 1": (lambda: with_blocks(find_variant("gelan-s"), depth=3, inner=1), 7.0716, 26.270),
    "s 2 3": (lambda: find_variant("gelan-s"), 7.1059, 26.379),
    "m 2 1": (lambda: find_variant("gelan-m"), 19.9787, 76.310),
    "m 2 2": (lambda: with_blocks(find_variant("gelan-m"), inner=2), 22.1890, 85.144),
    "m 3 1": (lambda: with_blocks(find_variant("gelan-m"), depth=3), 24.2766, 93.487),
    "m 2 3": (lambda: with_blocks(find_variant("gelan-m"), inner=3), 24.3993, 93.977),
    "c 1 1": (lambda: with_blocks(find_variant("gelan-c"), depth=1), 18.8619, 77.443),
    "c 2 1": (lambda: find_variant("gelan-c"), 25.2888, 102.137),
    "c 2 2": (lambda: with_blocks(find_variant("gelan-c"), inner=2), 28.5729, 114.406),
    "c 3 1": (lambda: with_blocks(find_variant("gelan-c"), depth=3), 31.7156, 126.831),
    "c 2 3": (lambda: with_blocks(find_variant("gelan-c"), inner=3), 31.8570, 126.674),
    "yolov7 af": (yolov7_af, 43.565, 130.506),
    "e single": (gelan_e_single, 41.160, 126.359),
    "c linked": (gelan_c_linked, 34.7116, 147.108),
    "c linked deep": (gelan_c_linked_deep, 44.0106, 183.913),
}


def test_the_family_is_complete():
    assert list_variants(family="yolov9") == [f"{kind}-{size}" for size in SIZES for kind in ("gelan", "yolov9")]


@pytest.mark.parametrize("size", SIZES)
def test_counts_are_exact_in_every_form(size):
    training, unfused, fused, gflops_training, gflops_deploy, keys_training, keys_deploy = SIZES[size]
    model = create_model(f"yolov9-{size}", device="meta")
    alone = create_model(f"gelan-{size}", device="meta")
    deploy = alone.reparameterize()
    assert count_parameters(model) == training
    assert count_parameters(alone) == unfused == count_deploy_unfused(model) == count_deploy_unfused(alone)
    assert count_parameters(deploy) == fused == count_parameters(model.reparameterize())
    assert round(conv_gflops(model, 640), 3) == gflops_training and round(conv_gflops(deploy, 640), 3) == gflops_deploy
    for network, form, count in ((model, published.DUAL, keys_training), (alone, published.SINGLE, keys_deploy)):
        keys = published.LAYOUT.keys(network.spec, form)
        assert len(keys.copied) == count
        assert sorted(keys.copied.values()) == sorted(network.state_dict())


def test_the_published_figures_of_t_are_those_of_a_narrower_head():
    network = find_variant("gelan-t")
    narrow = create_model(replace(network, head=replace(network.head, class_width=80)), device="meta").reparameterize()
    assert count_parameters(narrow) == 2_001_840 and round(conv_gflops(narrow, 640), 3) == 7.713


@pytest.mark.parametrize("study", STUDIES)
def test_networks_of_the_papers_studies(study):
    network, millions, gflops = STUDIES[study]
    deploy = create_model(network(), device="meta").reparameterize()
    places = len(str(millions).split(".")[1])
    assert round(count_parameters(deploy) / 1e6, places) == millions
    assert round(conv_gflops(deploy, 640), 3) == gflops


# Million training parameters of the readings of table 4 (yolov9-training, section 11); None: no figure there.
@pytest.mark.parametrize(
    ("size", "part", "millions"),
    [
        *(("s", "pfh", 8.73), ("m", "pfh", 24.73), ("c", "pfh", 41.67), ("c", "fpn", 35.74), ("e", "pfh", 80.19)),
        *(("e", "pan", 86.82), ("t", "icn", None), ("t", "pan", None), ("e", "icn", None)),
    ],
)
def test_any_part_of_pgi_on_any_size(size, part, millions):
    base = find_variant(f"gelan-{size}")
    model = create_model(with_pgi(base, part), device="meta")
    assert model.has_auxiliary and model.spec.head.lead == base.head.lead
    assert millions is None or round(count_parameters(model) / 1e6, 2) == millions
    assert count_parameters(model.reparameterize()) == SIZES[size][2]
    assert with_pgi(model.spec, "none") == base


def test_parts_of_pgi_by_name():
    assert list(PARTS) == ["none", "pfh", "fpn", "pan", "icn"]
    with pytest.raises(ModelError, match=r"unknown part of PGI 'icm' \(did you mean 'icn'"):
        with_pgi(find_variant("gelan-t"), "icm")
    with pytest.raises(ModelError, match="PGI needs the head of YOLOv9"):
        with_pgi(find_variant("yolov7-tiny"), "fpn")
    with pytest.raises(ModelError, match="copies stage 'SPP', which it lacks"):
        with_pgi(replace(find_variant("gelan-t"), neck=()), "fpn")
    assert find_variant("gelan-c", pgi="pan") == with_pgi(find_variant("gelan-c"), "pan")


def test_a_network_is_told_by_the_part_that_trains_it():
    released = {"t": "fpn", "s": "fpn", "m": "icn", "c": "icn", "e": "fpn"}
    for size, part in released.items():
        assert part_of(find_variant(f"yolov9-{size}")) == part
        assert [part_of(find_variant(f"gelan-{size}", pgi=part)) for part in PARTS] == list(PARTS)
    assert part_of(find_variant("yolov7-tiny")) is None


def test_auxiliary_levels_on_another_grid_are_refused():
    network = find_variant("yolov9-t")
    wrong = replace(network, head=replace(network.head, auxiliary=("AT4", "AT3", "ASPP")))
    with pytest.raises(ModelError, match=r"auxiliary levels have strides \(16, 8, 32\), the lead levels \(8, 16, 32\)"):
        create_model(wrong, device="meta")


def randomized(model: Detector, seed: int) -> Detector:
    """Weights and statistics drawn so that signals neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", ["yolov9-t", "gelan-m", "yolov9-c"])
@pytest.mark.parametrize("seed", [0, 1])
def test_reparameterized_equals_trained(name, seed):
    model = randomized(create_model(name, 3, seed=seed), seed)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))
    deploy = model.reparameterize()
    assert not any("auxiliary" in key or ".bn." in key for key in deploy.state_dict())
    with torch.inference_mode():
        for found, wanted in zip(deploy.raw(images), model.raw(images), strict=False):
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
        assert torch.allclose(deploy(images), model(images), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", ["t", "m"])
def test_yolov9_deployed_is_gelan_with_the_mapped_weights(size):
    model = randomized(create_model(f"yolov9-{size}", 2, seed=3), 3)
    alone = create_model(f"gelan-{size}", 2).eval()
    own = alone.state_dict()
    alone.load_state_dict({name: value for name, value in model.state_dict().items() if name in own})
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(alone(images), model(images))
        assert torch.equal(alone.reparameterize()(images), model.reparameterize()(images))


def test_every_parameter_but_the_bins_gets_a_gradient():
    model = create_model("yolov9-t", 2).train()
    sum(item.square().mean() for item in model.raw(torch.rand(2, 3, 64, 64))).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == ["head.lead_bins.values", "head.auxiliary_bins.values"]


def test_the_priors_of_a_fresh_head():
    head = create_model("yolov9-t", 80).head
    for branch, prior in zip(head.lead, (-11.5366, -10.1503, -8.7641), strict=True):
        assert branch.box[-1].conv.bias.eq(1).all()
        assert branch.classes[-1].conv.bias.tolist() == pytest.approx([prior] * 80, abs=1e-4)


def test_decoding_by_hand():
    model = create_model("gelan-t", 2).eval()
    raw = [torch.zeros(1, 66, 2, 3), torch.zeros(1, 66, 1, 1), torch.zeros(1, 66, 1, 1)]
    raw[0][0, [2, 16 + 3, 32 + 4, 48 + 5], 1, 2] = 100.0  # left 2, top 3, right 4, bottom 5 strides
    raw[0][0, 64:, 1, 2] = torch.tensor([0.0, 2.0])
    row = model.head.decode(raw)[0, 1 * 3 + 2]
    x, y = 2.5 * 8, 1.5 * 8
    assert row.tolist() == pytest.approx([x - 16, y - 24, x + 32, y + 40, 0.5, 0.880797], abs=1e-4)
    assert model.head.predictions(64, 96) == 8 * 12 + 4 * 6 + 2 * 3


def published_file(model: Detector, folder, form: str):
    """A file as published, with the weights of `model`."""
    state = model.state_dict()
    keys = published.LAYOUT.keys(model.spec, form).copied
    path = folder / "published.pt"
    torch.save({"model": {name: state[ours].clone() for name, ours in keys.items()}}, path)
    return path


def test_a_training_file_loads_into_both(tmp_path):
    source = randomized(create_model("yolov9-t", 3, seed=5), 5)
    path = published_file(source, tmp_path, published.DUAL)
    for name in ("yolov9-t", "gelan-t"):
        model = create_model(name, 3).eval()
        report = model.load_official(path)
        images = torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            assert torch.equal(model(images), source(images))
        assert report.complete and bool(report.left) is (name == "gelan-t") and not report.untouched
    assert all("auxiliary part" in reason for _, reason in report.left)


@pytest.mark.parametrize(("size", "part"), [("t", "pfh"), ("t", "pan"), ("t", "icn"), ("c", "fpn")])
def test_a_training_file_is_a_start_for_another_branch(size, part, tmp_path):
    source = randomized(create_model(f"yolov9-{size}", 3, seed=5), 5)
    path = published_file(source, tmp_path, published.DUAL)
    model = create_model(find_variant(f"gelan-{size}", pgi=part), 3).eval()
    report = model.load_official(path)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), source(images))
    assert all("auxiliary part" in reason for _, reason in report.left)
    assert bool(report.left) is (part != "pan")  # which has all of fpn
    assert all("auxiliary" in name for name in report.untouched)


@pytest.mark.parametrize("size", ["t", "c"])
def test_a_deploy_file_loads_into_both_and_the_auxiliary_part_stays_fresh(size, tmp_path):
    source = randomized(create_model(f"gelan-{size}", 3, seed=5), 5)
    path = published_file(source, tmp_path, published.SINGLE)
    model = create_model(f"yolov9-{size}", 3, seed=1).eval()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = model.load_official(path)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), source(images))
    assert report.complete and not report.left and report.untouched
    state = model.state_dict()
    assert all("auxiliary" in name and torch.equal(state[name], fresh[name]) for name in report.untouched)


def test_the_width_of_the_class_branch_comes_from_the_file(tmp_path):
    network = find_variant("gelan-t")
    narrow = replace(network, head=replace(network.head, class_width=80))
    source = randomized(create_model(narrow, 80, seed=5), 5)
    path = published_file(source, tmp_path, published.SINGLE)
    model = create_model("gelan-t", 80).eval()
    report = model.load_official(path)
    assert model.spec.head.class_width == 80 and report.complete and not report.left
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), source(images))


def test_another_class_count_keeps_the_class_branches(tmp_path):
    path = published_file(randomized(create_model("gelan-t", 80, seed=5), 5), tmp_path, published.SINGLE)
    model = create_model("gelan-t", 3)
    report = model.load_official(path)
    assert {name.split(".")[2] for name, _ in report.left} == {"cv3"} and not report.complete
    assert report.num_classes == 80


def test_a_file_of_another_size_or_family_is_named(tmp_path):
    path = published_file(create_model("gelan-s", 3), tmp_path, published.SINGLE)
    with pytest.raises(ModelError, match=r"not a gelan-t; the file looks like gelan-s or yolov9-s"):
        create_model("gelan-t", 3).load_official(path)
    with pytest.raises(ModelError, match="looks like gelan-s or yolov9-s"):
        create_model("yolov9-c", 3).load_official(path)
    with pytest.raises(ModelError, match="looks like gelan-s or yolov9-s"):
        create_model("yolov7-tiny", 3).load_official(path)


def test_damaged_bins_are_refused_and_the_model_stays(tmp_path):
    source = create_model("gelan-t", 3)
    with torch.no_grad():
        source.head.lead_bins.values[0, 3] = 7.0
    path = published_file(source, tmp_path, published.SINGLE)
    model = create_model("gelan-t", 3, seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"dfl.conv.weight: 0, 1, ..., 15 are expected"):
        model.load_official(path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_folded_file_is_refused(tmp_path):
    source = create_model("gelan-t", 3)
    keys, state = published.LAYOUT.keys(source.spec, published.SINGLE).copied, source.state_dict()
    tensors = {name: state[ours] for name, ours in keys.items() if ".bn." not in name}
    path = tmp_path / "folded.pt"
    torch.save({"model": tensors}, path)
    with pytest.raises(ModelError, match="batch norms are folded already"):
        create_model("gelan-t", 3).load_official(path)
