"""Golden vectors of the published definitions, through the importer of published checkpoints."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from yolov7.model import create_model
from yolov7.model.info import variant_info
from yolov7.model.published.yolov7 import published_keys
from yolov7.model.variants import find_record, find_variant

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
GOLDEN = SHARED / "golden"
VARIANTS = [
    "yolov7-tiny",
    "yolov7-tiny-silu",
    "yolov7",
    "yolov7-x",
    "yolov7-w6",
    "yolov7-e6",
    "yolov7-d6",
    "yolov7-e6e",
]

needs_shared = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference data (../shared) is not here")


def file_name(variant):
    return {"yolov7-x": "yolov7x"}.get(variant, variant)


def filled(keys, gain):
    """The filling rule of golden/README.md."""
    tensors = {}
    for key, shape, _ in keys:
        rng = np.random.default_rng(zlib.crc32(key.encode("utf-8")))
        if key.endswith("num_batches_tracked"):
            tensors[key] = torch.zeros(shape, dtype=torch.int64)
            continue
        if key.endswith((".anchors", ".anchor_grid")):
            continue
        if key.endswith("running_mean"):
            values = 0.1 * rng.standard_normal(shape)
        elif key.endswith("running_var"):
            values = rng.uniform(0.5, 1.5, shape)
        elif key.endswith("implicit") and ".ia." in key:
            values = 0.1 * rng.standard_normal(shape)
        elif key.endswith("implicit"):
            values = 1 + 0.1 * rng.standard_normal(shape)
        elif len(shape) == 4:
            values = rng.standard_normal(shape) * gain / np.sqrt(shape[1] * shape[2] * shape[3])
        elif key.endswith(".weight"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = 0.1 * rng.standard_normal(shape)
        tensors[key] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return tensors


def unit_modules(network):
    """Layer number -> our module, for every layer that is a single conv unit or RepConv (for layer-wise comparison)."""
    found = {}
    for published, ours in published_keys(network).items():
        number, inner = published.split(".", 2)[1:]
        if inner in ("conv.weight", "rbr_dense.0.weight"):
            suffix = ".conv.weight" if inner == "conv.weight" else ".dense.conv.weight"
            found[int(number)] = ours.removesuffix(suffix)
    return found


@needs_shared
@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_vectors(variant, tmp_path):
    vectors = GOLDEN / f"{file_name(variant)}.npz"
    if not vectors.is_file():
        pytest.skip(f"no golden vectors of {variant} in ../shared/golden")
    meta = json.loads((GOLDEN / f"{file_name(variant)}.keys.json").read_text())
    golden = np.load(vectors)
    path = tmp_path / "published.pt"
    torch.save({"model": filled(meta["keys"], meta["gain"])}, path)
    model = create_model(variant).eval()
    report = model.load_official(path)
    path.unlink()
    assert not report.left and not report.untouched

    seen = {}

    def remember(number):
        def hook(_module, _inputs, output):
            exact = output.double()
            seen[number] = (exact.mean(), exact.std(), exact.abs().max())

        return hook

    for number, name in unit_modules(model.spec).items():
        model.get_submodule(name).register_forward_hook(remember(number))
    images = torch.from_numpy(golden["input"])
    with torch.inference_mode():
        raw = model.raw(images)
        decoded = model(images)
        deployed = model.reparameterize().raw(images)

    # Layer by layer, so that a mismatch points at its layer.
    for row, number in enumerate(golden["layer_index"].tolist()):
        if number in seen:
            expected = [golden[f"layer_{name}"][row] for name in ("mean", "std", "absmax")]
            assert np.allclose([float(value) for value in seen[number]], expected, rtol=1e-4, atol=1e-5), number
    assert len(seen) >= len(unit_modules(model.spec))

    names = [f"lead{level}" for level in range(len(model.strides))]
    names += [f"aux{level}" for level in range(len(model.strides))] if model.has_auxiliary else []
    assert len(raw) == len(names)
    for name, map_ in zip(names, raw, strict=True):
        assert np.abs(map_.numpy() - golden[name]).max() <= 1e-4, name  # float32, golden/README.md
    boxes = golden["decoded"][..., :4]
    corners = np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
    assert np.abs(decoded[..., :4].numpy() - corners).max() <= 1e-3
    assert np.abs(decoded[..., 4:].numpy() - golden["decoded"][..., 4:]).max() <= 1e-4
    for before, after in zip(raw, deployed, strict=False):
        # 2e-6 to 6e-6 in the reference (reference sheet: reparameterization, section 3)
        assert (before - after).abs().max() <= 2e-5


@needs_shared
@pytest.mark.parametrize("variant", VARIANTS)
def test_published_layout_key_by_key(variant):
    listing = GOLDEN / f"{file_name(variant)}.keys.json"
    if not listing.is_file():
        pytest.skip(f"no key list of {variant} in ../shared/golden")
    keys = json.loads(listing.read_text())["keys"]
    mapping = published_keys(find_variant(variant))
    assert [key for key, _, _ in keys] == list(mapping)
    state = create_model(variant, device="meta").state_dict()
    for key, shape, _ in keys:
        if "anchor" not in key:
            assert list(state[mapping[key]].shape) == shape, key


@needs_shared
def test_manifest_of_the_real_tiny_file(tmp_path):
    manifest = json.loads((SHARED / "reference" / "yolov7-tiny_checkpoint_manifest.json").read_text())
    listed = manifest["tensors"]
    assert [item["key"] for item in listed] == list(published_keys(find_variant("yolov7-tiny"), form="deploy"))
    anchors = torch.tensor(manifest["yaml"]["anchors"], dtype=torch.float32).view(3, 3, 2)
    tensors = {}
    for item in listed:
        rng = np.random.default_rng(zlib.crc32(item["key"].encode()))
        if item["key"].endswith(".anchor_grid"):
            values = anchors.view(item["shape"])
        elif item["key"].endswith(".anchors"):
            values = anchors / torch.tensor([8.0, 16.0, 32.0])[:, None, None]
        elif item["dtype"] == "LongStorage":
            values = torch.zeros(item["shape"], dtype=torch.int64)
        else:
            values = torch.from_numpy(rng.uniform(0.1, 1.0, item["shape"]))
        tensors[item["key"]] = values.half() if item["dtype"] == "HalfStorage" else values
    path = tmp_path / "yolov7-tiny.pt"
    torch.save({"model": tensors, "optimizer": None, "epoch": -1}, path)
    model = create_model("yolov7-tiny")
    report = model.load_official(path)
    assert (report.form, len(report.taken), report.left) == ("deploy", 338, ())
    state = model.state_dict()
    for key, name in published_keys(model.spec, form="deploy").items():
        if "anchor" not in key:
            assert torch.equal(state[name].double(), tensors[key].double()), key
    assert torch.equal(model.anchors, anchors)


@needs_shared
@pytest.mark.parametrize("variant", VARIANTS)
def test_facts(variant):
    facts = json.loads((SHARED / "reference" / "facts.json").read_text())["variants"][file_name(variant)]
    row = variant_info(variant, image_size=1280)
    for side, factor in (("1280", 1), ("640", 4)):
        assert row.gflops_deploy / factor == pytest.approx(facts["gflops_deploy_conv_only"][side], abs=1e-4)
        assert row.gflops_training / factor == pytest.approx(facts["gflops_train_conv_only"][side], abs=1e-4)
    assert row.parameters_training == facts["params_train"]
    assert row.parameters_deploy == facts["params_deploy"]
    assert row.parameters_deploy_unfused == facts["params_deploy_unfused"]
    assert list(row.strides) == facts["strides"]
    network = find_variant(variant)
    assert network.image_size == facts["input_size"]
    assert [[list(pair) for pair in level] for level in network.head.anchors] == facts["anchors_px"]
    published, paper = find_record(variant).published, facts["paper"]
    assert published.fps == paper["fps_v100_batch1"]
    source = paper["ap_test"] if published.split == "test-dev" else paper["ap_val"][str(published.image_size)]
    assert (published.ap, published.ap50, published.ap75) == (source["AP"], source["AP50"], source["AP75"])
