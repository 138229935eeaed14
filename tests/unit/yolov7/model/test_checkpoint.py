"""Checkpoints: what is written comes back, and everything else is refused in one line."""

import json
import sys
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from yolov7.errors import ModelError
from yolov7.export.onnx import export_onnx
from yolov7.model import ModelMetadata, create_model, load_checkpoint, save_checkpoint
from yolov7.model.block_specs import Conv, StridedConv
from yolov7.model.heads.anchor import AnchorHead, Level, anchors_of, with_anchors
from yolov7.model.scaling import scale
from yolov7.model.spec import ADDED, Head, Network, Stage
from yolov7.model.spec_json import network_from_json, network_to_json
from yolov7.model.variants import VARIANTS, find_variant, yolov7_tiny
from yolov7.predict import load_detector

ANCHORS = [[[5.5, 6.25], [7, 8], [9, 9]], [[10, 20], [30, 40], [33, 44]], [[50, 60], [70, 80], [90.1, 99.9]]]


@pytest.fixture(scope="module")
def model():
    small = replace(scale(yolov7_tiny(), width=0.25), name="quarter")
    return create_model(small, 2, anchors=ANCHORS, seed=4)


def metadata_of(model, **fields):
    return ModelMetadata.of(model, class_names=("cat", "dog"), category_ids=(7, 9), image_size=96, **fields)


@pytest.mark.parametrize("form", ["training", "deploy"])
def test_round_trip(tmp_path, model, form):
    chosen = model if form == "training" else model.reparameterize()
    metadata = metadata_of(chosen, extra={"run": "abc", "epoch": 3, "nested": {"ap": 0.5}})
    path = tmp_path / "deep" / "m.safetensors"
    save_checkpoint(path, chosen, metadata)
    loaded, told = load_checkpoint(path)
    assert told == metadata and told.anchors == tuple(tuple(map(tuple, level)) for level in loaded.anchors.tolist())
    assert (loaded.variant, loaded.form, loaded.num_classes, loaded.training) == ("quarter", form, 2, False)
    assert loaded.spec == model.spec
    before, after = chosen.state_dict(), loaded.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert any(p.requires_grad for p in loaded.parameters()) is (form == "training")
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(chosen.eval()(images), loaded(images))
    if form == "training":
        loaded.train()(torch.rand(2, 3, 64, 64))[0].sum().backward()
    assert [file.name for file in path.parent.iterdir()] == ["m.safetensors"]


def test_same_model_same_bytes_and_float32(tmp_path, model):
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, model, metadata_of(model))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    half = create_model(model.spec, 2, anchors=ANCHORS).half().to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "half", half, metadata_of(half))
    with safe_open(tmp_path / "half", framework="pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds == {torch.float32, torch.int64}
    load_checkpoint(tmp_path / "half")


def test_metadata_must_speak_of_the_model(tmp_path, model):
    right = metadata_of(model)
    for wrong in (
        replace(right, variant="yolov7"),
        replace(right, form="deploy"),
        replace(right, anchors=(((1.0, 2.0),),)),
    ):
        with pytest.raises(ModelError, match="metadata"):
            save_checkpoint(tmp_path / "x", model, wrong)
    assert not (tmp_path / "x").exists()
    for fields, message in (
        ({"class_names": ("only",)}, "class_names: 2 are expected, got 1"),
        ({"category_ids": (1, 2, 3)}, "category_ids"),
        ({"form": "fused"}, "form"),
    ):
        with pytest.raises(ModelError, match=message):
            replace(right, **fields)


def test_foreign_and_damaged_files(tmp_path, model):
    good = tmp_path / "good.safetensors"
    save_checkpoint(good, model, metadata_of(model))
    data = good.read_bytes()
    files = {
        "absent": None,
        "empty": b"",
        "text": b"hello",
        "short": data[: len(data) // 2],
        "header": data[:100],
        "junk": b"\xff" * 4096,
    }
    for name, content in files.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelError, match=str(path)):
            load_checkpoint(path)
    with pytest.raises(ModelError):
        load_checkpoint(tmp_path)
    plain = tmp_path / "plain.safetensors"
    save_file({"weight": torch.zeros(3)}, plain)
    with pytest.raises(ModelError, match="not a checkpoint of this project"):
        load_checkpoint(plain)


def rewritten(path, source, *, header=None, tensors=None):
    with safe_open(source, framework="pt") as file:
        text = file.metadata()["yolov7"]
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    values = json.loads(text)
    (header or (lambda _: None))(values)
    (tensors or (lambda _: None))(held)
    save_file(held, path, metadata={"yolov7": json.dumps(values)})
    return path


def test_headers_and_tensors_that_do_not_belong_together(tmp_path, model):
    good, bad = tmp_path / "good", tmp_path / "bad"
    save_checkpoint(good, model, metadata_of(model))
    name = "backbone.stem1.conv.weight"
    cases = [
        ({"header": lambda h: h.update(format=99)}, "another version"),
        ({"header": lambda h: h.pop("anchors")}, "header"),
        ({"header": lambda h: h.update(num_classes=3, class_names=["a"] * 3, category_ids=[1, 2, 3])}, "is expected"),
        ({"header": lambda h: h.update(form="deploy")}, "missing"),
        ({"header": lambda h: h.update(variant="yolov7")}, "holds a yolov7"),
        ({"header": lambda h: h["network"].update(kind="os.system")}, "block of kind 'os.system'"),
        ({"header": lambda h: h.update(network=[1])}, "describes no network"),
        ({"header": lambda h: h["network"].update(surprise=1)}, "Network: fields"),
        ({"header": lambda h: h["network"]["backbone"][0].update(of=["nowhere"])}, "nowhere"),
        ({"tensors": lambda t: t.pop(name)}, f"1 tensors are missing .first '{name}'"),
        ({"tensors": lambda t: t.update(extra=torch.zeros(1))}, "not of this network"),
        ({"tensors": lambda t: t.update({name: torch.zeros(1, 2)})}, name),
        ({"tensors": lambda t: t.update({name: t[name].half()})}, "float16"),
    ]
    for change, message in cases:
        with pytest.raises(ModelError, match=message):
            load_checkpoint(rewritten(bad, good, **change))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_network_survives_json(variant):
    network = find_variant(variant)
    assert network_from_json(json.loads(json.dumps(network_to_json(network)))) == network


@dataclass(frozen=True)
class OwnBlock(StridedConv):
    """A kind of block the library does not know."""


def own_network(block=OwnBlock(8)) -> Network:
    return Network(
        name="own",
        backbone=(Stage("stem", block), Stage("P2", Conv(8))),
        neck=(),
        head=AnchorHead(anchors=(((4, 4),),), lead=(Level("H", Conv(8), of="P2"),)),
    )


def saved(path, network) -> Path:
    model = create_model(network, 1).eval()
    save_checkpoint(path, model, ModelMetadata.of(model, class_names=("thing",)))
    return path


def test_a_network_with_block_kinds_of_ones_own(tmp_path, monkeypatch):
    module = SimpleNamespace(own=own_network, plain=lambda: own_network(Conv(8)))
    monkeypatch.setitem(sys.modules, "own_networks", module)
    network, path = own_network(), saved(tmp_path / "m.safetensors", own_network())
    for refused in (load_checkpoint, load_detector):
        with pytest.raises(ModelError, match=r"'OwnBlock' \(.*OwnBlock\).*`network`.*--network MODULE:FUNCTION"):
            refused(path)
    with pytest.raises(ModelError, match="own as given does not have: 'OwnBlock'"):
        load_checkpoint(path, network="own_networks:plain")
    for given in (network, "own_networks:own"):
        loaded, metadata = load_checkpoint(path, network=given)
        assert metadata.category_ids == (1,) and loaded.spec == network
    detector = load_detector(path, network="own_networks:own")
    export_onnx(loaded, tmp_path / "m.onnx", metadata=metadata)
    image = np.full((64, 64, 3), 90, np.uint8)
    (theirs,), (ours,) = load_detector(tmp_path / "m.onnx").predict([image]), detector.predict([image])
    assert torch.allclose(theirs.boxes, ours.boxes, atol=1e-2)
    with pytest.raises(ModelError, match="holds a own, not a other"):
        load_checkpoint(path, network=replace(network, name="other"))


def test_the_file_describes_the_network_and_the_given_one_only_has_the_kinds(tmp_path):
    path = saved(tmp_path / "m", own_network())
    loaded, _ = load_checkpoint(path, network=own_network(OwnBlock(16)))  # changed since
    assert loaded.spec == own_network()
    old = rewritten(tmp_path / "old", path, header=lambda h: h.pop("own_kinds"))  # of an earlier version
    with pytest.raises(ModelError, match=r"'OwnBlock'.*`network`"):
        load_checkpoint(old)
    assert load_checkpoint(old, network=own_network())[0].spec == own_network()


def test_a_kind_of_ones_own_is_not_taken_for_the_librarys_of_that_name(tmp_path):
    own = make_dataclass("MaxPool", [], bases=(OwnBlock,), frozen=True)
    path = saved(tmp_path / "m", own_network(own(8)))
    with pytest.raises(ModelError, match="'MaxPool'"):
        load_checkpoint(path)
    assert type(load_checkpoint(path, network=own_network(own(8)))[0].spec.backbone[0].block) is own
    conv = make_dataclass("Conv", [], bases=(OwnBlock,), frozen=True)
    with pytest.raises(ModelError, match="two kinds of block are called Conv"):
        network_to_json(own_network(conv(8)))


@dataclass(frozen=True)
class Grown(StridedConv):
    """A kind with a field that came later."""

    groups: int = field(default=1, metadata=ADDED)


def test_fields_that_came_later_stay_out_while_at_their_default():
    kinds = {"Grown": Grown}
    before = network_to_json(own_network(Grown(8)))
    assert "groups" not in before["backbone"][0]["block"]
    assert network_from_json(before, kinds=kinds) == own_network(Grown(8))
    after = network_to_json(own_network(Grown(8, groups=2)))
    assert after["backbone"][0]["block"]["groups"] == 2
    assert network_from_json(after, kinds=kinds) == own_network(Grown(8, groups=2))


def test_absent_fields_take_their_default_and_unknown_ones_are_refused():
    value = network_to_json(find_variant("yolov7-tiny"))
    del value["activation"], value["backbone"][0]["block"]["stride"]
    network = network_from_json(value)
    assert network.activation == "silu" and network.backbone[0].block.stride == 1
    value["backbone"][0]["block"]["dilation"] = 2
    with pytest.raises(ModelError, match=r"Conv: fields \['dilation'\] are unknown"):
        network_from_json(value)
    del value["backbone"][0]["block"]
    with pytest.raises(ModelError, match=r"Stage: fields \['block'\] are missing"):
        network_from_json(value)


def test_the_header_tells_the_anchors_in_use_once(tmp_path, model):
    with torch.no_grad():
        changed = create_model(model.spec, 2)
        changed.anchors.mul_(2)
    assert anchors_of(changed.spec) == tuple(tuple(map(tuple, level)) for level in changed.anchors.tolist())
    save_checkpoint(tmp_path / "m", changed, metadata_of(changed))
    with safe_open(tmp_path / "m", framework="pt") as file:
        header = json.loads(file.metadata()["yolov7"])
    assert header["network"]["head"]["anchors"] == header["anchors"] == changed.anchors.tolist()
    # Earlier files describe the network with its own anchors, and those in use beside it.
    published = [[[10, 13], [16, 30], [33, 23]]] * 3
    old = rewritten(tmp_path / "old", tmp_path / "m", header=lambda h: h["network"]["head"].update(anchors=published))
    assert load_checkpoint(old)[0].spec == changed.spec


def test_anchors_are_data_of_the_head():
    network = yolov7_tiny()
    assert with_anchors(network, network.head.anchors) is not network
    assert with_anchors(network, network.head.anchors) == network  # whole numbers stay as they are written
    assert anchors_of(with_anchors(network, ANCHORS))[0][0] == (5.5, 6.25)
    headless = replace(network, head=Head())
    assert anchors_of(headless) == ()
    with pytest.raises(ModelError, match="its head has none"):
        with_anchors(headless, ANCHORS)
    with pytest.raises(ModelError, match="Head does not define `build`"):
        headless.head.build({}, "silu", 1)
