"""Checkpoints: what is written comes back, and everything else is refused in one line."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from yolov7.errors import ModelError
from yolov7.model import ModelMetadata, create_model, load_checkpoint, save_checkpoint
from yolov7.model.block_specs import Conv, StridedConv
from yolov7.model.heads.anchor import AnchorHead, Level
from yolov7.model.scaling import scale
from yolov7.model.spec import Network, Stage
from yolov7.model.spec_json import network_from_json, network_to_json
from yolov7.model.variants import VARIANTS, find_variant, yolov7_tiny

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
    """A block kind the library does not know."""


def test_a_network_with_block_kinds_of_ones_own(tmp_path):
    network = Network(
        name="own",
        backbone=(Stage("stem", OwnBlock(8)),),
        neck=(),
        head=AnchorHead(anchors=(((4, 4),),), lead=(Level("H", Conv(8), of="stem"),)),
    )
    model = create_model(network, 1)
    save_checkpoint(tmp_path / "m", model, ModelMetadata.of(model, class_names=("thing",)))
    with pytest.raises(ModelError, match=r"'OwnBlock'.*`network`"):
        load_checkpoint(tmp_path / "m")
    loaded, metadata = load_checkpoint(tmp_path / "m", network=network)
    assert metadata.category_ids == (1,) and loaded.spec == network
