"""RepOptimizer's two networks, the scales that one hands to the other, and what is refused."""

from __future__ import annotations

import pytest
import torch
from small_detector import metadata_of, small_network
from small_rep import BLOCKS, small_rep_network

from yolov7.errors import ModelError
from yolov7.files import sha256_file
from yolov7.model import create_model, save_checkpoint
from yolov7.model.block_specs import Conv, LinearAdd, RepVgg
from yolov7.model.blocks import LinearAddModule
from yolov7.model.cost import count_parameters
from yolov7.model.rep_optimizer import (
    check_scales,
    draw_kernels,
    hyper_search,
    kernels_of,
    read_scales,
    scales_of,
    target,
)
from yolov7.model.spec_json import network_from_json, network_to_json
from yolov7.model.variants import find_variant, list_variants

NETWORK = small_rep_network()


def searched(network=NETWORK, seed=0):
    """A hyper-search network with scales as if it had been trained."""
    model = create_model(hyper_search(network), 3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_scale." in name:
                parameter.copy_(torch.empty_like(parameter).uniform_(0.5, 1.5, generator=generator))
    return model


def saved(path, model):
    save_checkpoint(path, model, metadata_of(model))
    return path


def test_every_repvgg_block_and_nothing_else_is_replaced():
    for made, kind in ((hyper_search(NETWORK), LinearAdd), (target(NETWORK), Conv)):
        assert made.name == NETWORK.name and network_from_json(network_to_json(made)) == made
        for before, after in zip((*NETWORK.backbone, *NETWORK.neck), (*made.backbone, *made.neck), strict=True):
            if isinstance(before.block, RepVgg):
                assert isinstance(after.block, kind) and after.block.out == before.block.out
                assert after.block.stride == before.block.stride and after.block.act == before.block.act
            else:
                assert after == before
    with pytest.raises(ModelError, match="small: RepOptimizer replaces RepVGG blocks, and this network has none"):
        hyper_search(small_network())


@pytest.mark.parametrize("variant", list_variants(family="yolov6"))
def test_all_sizes_but_l_with_silu_have_blocks_to_replace(variant):
    network = find_variant(variant)
    if variant in ("yolov6-l", "yolov6v3-l", "yolov6v3-l6"):
        with pytest.raises(
            ModelError, match=f"{variant}: RepOptimizer replaces RepVGG blocks, and this network has none"
        ):
            hyper_search(network)
    else:
        assert hyper_search(network) != network != target(network)


def test_the_scales_come_in_the_order_of_the_network():
    scales = scales_of(searched())
    assert list(scales) == BLOCKS
    assert [block.shape for block in scales.values()] == [(8, False), (12, False), (12, True), (16, False), (16, True)]
    assert not scales_of(create_model(target(NETWORK), 3))


def test_initial_kernels_are_those_of_a_fresh_hyper_search_with_these_scales():
    scales = scales_of(searched())
    model, plain = (create_model(target(NETWORK), 3, seed=7) for _ in range(2))
    draw_kernels(model, hyper_search(NETWORK), scales, seed=7)
    fresh = create_model(hyper_search(NETWORK), 3, seed=7)
    with torch.no_grad():
        for name, block in scales.items():
            module = fresh.get_submodule(name)
            assert isinstance(module, LinearAddModule)
            module.dense_scale.weight.copy_(block.dense)
            module.pointwise_scale.weight.copy_(block.pointwise)
            if block.identity is not None:
                module.identity_scale.weight.copy_(block.identity)
    # Fresh norms do almost nothing: both compute the same, block by block.
    generator = torch.Generator().manual_seed(0)
    for name, block in scales.items():
        ours, wanted = model.get_submodule(name).eval(), fresh.get_submodule(name).eval()
        x = torch.randn(2, ours.conv.in_channels, 8, 8, generator=generator)
        with torch.inference_mode():
            assert torch.allclose(ours(x), wanted(x), atol=1e-5)
        assert torch.equal(
            block.mask(ours.conv.weight)[:, :, 0, 0], (block.dense**2)[:, None].expand_as(ours.conv.weight[:, :, 0, 0])
        )
    changed = {f"{name}.conv.weight" for name in BLOCKS}
    assert {k for k, v in model.state_dict().items() if not torch.equal(v, plain.state_dict()[k])} == changed


def test_scales_survive_their_file(tmp_path):
    model = searched()
    path = saved(tmp_path / "scales.safetensors", model)
    read = read_scales(path, sha256=sha256_file(path))
    check_scales(read, hyper_search(NETWORK), of=str(path))
    for name, block in scales_of(model).items():
        assert torch.equal(read[name].dense, block.dense) and torch.equal(read[name].pointwise, block.pointwise)
    with pytest.raises(ModelError, match="not the scales that are meant: its sha256 is"):
        read_scales(path, sha256="0" * 64)


def test_files_that_are_not_the_scales_of_the_network(tmp_path):
    with pytest.raises(ModelError, match=r"none\.safetensors: no such file"):
        read_scales(tmp_path / "none.safetensors", sha256="0" * 64)
    plain = saved(tmp_path / "plain.safetensors", create_model(target(NETWORK), 3))
    with pytest.raises(ModelError, match=r"plain\.safetensors: holds a small-rep without scales; a checkpoint of a tr"):
        read_scales(plain)
    wide = read_scales(saved(tmp_path / "wide.safetensors", searched(small_rep_network(16))))
    words = (
        r"file: not the scales of a small-rep: block backbone\.stem is 8 wide without identity, and its scales are 16"
    )
    with pytest.raises(ModelError, match=words):
        check_scales(wide, hyper_search(NETWORK), of="file")
    few = dict(list(wide.items())[:-1])
    with pytest.raises(ModelError, match="there are scales of 4 blocks, and this network has 5"):
        check_scales(few, hyper_search(NETWORK), of="file")
    other = {name.replace("same", "another"): block for name, block in scales_of(searched()).items()}
    with pytest.raises(ModelError, match=r"block backbone\.same is 12 wide with identity, and its scales are missing"):
        check_scales(other, hyper_search(NETWORK), of="file")
    for model in (create_model(target(small_rep_network(16)), 3), create_model(NETWORK, 3)):
        with pytest.raises(
            ModelError, match=r"small-rep: backbone\.stem is not a 3x3 convolution of 8, as in the scales"
        ):
            kernels_of(model, scales_of(searched()))


@pytest.mark.parametrize(
    ("variant", "searching", "target_parameters"),
    [
        ("yolov6-n", 4_734_910, 4_321_742),
        ("yolov6-t", 10_625_038, 9_702_310),
        ("yolov6-s", 18_863_710, 17_229_438),
    ],
)
def test_parameters_of_both_networks(variant, searching, target_parameters):
    """Reference sheet: yolov6-training, section 10."""
    network = find_variant(variant)
    first, second, deployed = (
        create_model(one, device="meta") for one in (hyper_search(network), target(network), network)
    )
    assert count_parameters(first) == searching and count_parameters(second) == target_parameters
    assert count_parameters(second.reparameterize()) == count_parameters(deployed.reparameterize())
    scales = scales_of(first)
    assert (len(scales), sum(2 + (block.identity is not None) for block in scales.values())) == (35, 98)
    assert list(kernels_of(second, scales)) == list(scales)


def test_blocks_inside_cross_stage_partial_stages_are_replaced_too():
    network = find_variant("yolov6-m")
    scales = scales_of(create_model(hyper_search(network), device="meta"))
    assert len(scales) == 5 + 2 * (2 + 3 + 5 + 2 + 4 * 3)
    assert len(kernels_of(create_model(target(network), device="meta"), scales)) == len(scales)
    for name in ("yolov6-l", "yolov9-t"):  # plain convolutions; no such block
        with pytest.raises(ModelError, match=f"{name}: RepOptimizer replaces RepVGG blocks"):
            hyper_search(find_variant(name))
