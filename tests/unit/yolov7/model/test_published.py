"""Published checkpoints: recognised, taken or refused, and never executed."""

import builtins
import io
import os
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from yolov7.errors import ModelError
from yolov7.model import create_model, load_checkpoint
from yolov7.model.block_specs import Elan
from yolov7.model.published.convert import identify, import_official
from yolov7.model.published.load import coco_category_ids, read_published
from yolov7.model.published.reader import read_checkpoint
from yolov7.model.published.yolov7 import published_keys
from yolov7.model.scaling import scale
from yolov7.model.variants import find_variant, yolov7_w6

TINY = "yolov7-tiny"


def published_state(variant=TINY, *, classes=80, form="training", seed=1, anchor_scale=1.0, dtype=torch.float16):
    """A file's tensors by their published names, as half precision, with the values of a seeded network of ours."""
    model = create_model(variant, classes, seed=seed)
    state, tensors = model.state_dict(), OrderedDict()
    strides = torch.tensor(model.strides, dtype=torch.float32)[:, None, None]
    for name, ours in published_keys(model.spec, form=form).items():
        if name.endswith("anchor_grid"):
            value = (state[ours] * anchor_scale)[:, None, :, None, None, :]
        elif name.endswith("anchors"):
            value = state[ours] * anchor_scale / strides
        else:
            value = state[ours]
        tensors[name] = value.to(dtype) if value.is_floating_point() else value.clone()
    return tensors


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def training_file(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("pt") / "training.pt", {"model": published_state(), "ema": None, "epoch": -1})


def test_training_form(training_file):
    model = create_model(TINY, seed=2)
    report = model.load_official(training_file)
    assert (report.form, report.entry, report.num_classes, report.variant) == ("training", "model", 80, TINY)
    assert len(report.taken) == 344 and not report.left and not report.untouched
    source = create_model(TINY, seed=1).state_dict()
    for name, tensor in model.state_dict().items():
        expected = source[name].half().float() if name != "head.anchors" else source[name]
        assert torch.equal(tensor, expected), name  # the anchors stay exact


def test_deploy_form_gets_identity_vectors(tmp_path):
    model = create_model(TINY, seed=2)
    report = model.load_official(saved(tmp_path / "d.pt", {"model": published_state(form="deploy")}))
    assert report.form == "deploy" and len(report.taken) == 338 and not report.left
    assert not report.untouched
    for level in range(3):
        predict = model.head.lead[level].predict
        assert torch.equal(predict.before[0].implicit, torch.zeros_like(predict.before[0].implicit))
        assert torch.equal(predict.after[0].implicit, torch.ones_like(predict.after[0].implicit))


def test_another_class_count_takes_what_fits_and_lists_the_rest(training_file):
    model, untouched = create_model(TINY, 3, seed=2), create_model(TINY, 3, seed=2).state_dict()
    report = model.load_official(training_file)
    left = dict(report.left)
    expected = {f"model.77.{part}" for part in ("anchors", "anchor_grid")}
    for level in range(3):
        expected |= {f"model.77.m.{level}.weight", f"model.77.m.{level}.bias", f"model.77.im.{level}.implicit"}
    assert set(left) == expected and len(report.taken) == 344 - 11  # 333, as users' logs say
    assert "does not fit" in left["model.77.m.0.weight"]
    state = model.state_dict()
    assert torch.equal(state["head.lead.0.predict.conv.weight"], untouched["head.lead.0.predict.conv.weight"])
    assert "head.lead.0.predict.conv.weight" in report.untouched
    assert "333 tensors taken" in str(report) and "model.77.m.0.weight" in str(report)


def test_deploy_file_with_another_class_count(tmp_path):
    path = saved(tmp_path / "d.pt", {"model": published_state(form="deploy")})
    model = create_model(TINY, 3, seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = model.load_official(path)
    assert len(report.taken) == 330  # "330 of 344" in users' logs
    # The fresh outputs keep the vectors they were drawn with.
    name = "head.lead.0.predict.before.0.implicit"
    assert torch.equal(model.state_dict()[name], before[name])


def test_auxiliary_form_and_one_class(tmp_path):
    # A scaled W6 has W6's layout and is small enough to write.
    small = replace(scale(yolov7_w6(), width=0.125), name="small-w6")
    auxiliary = saved(tmp_path / "a.pt", published_state(small, classes=1, dtype=torch.float32))
    model = create_model(small, 1, seed=9)
    report = model.load_official(auxiliary)
    assert report.form == "training with auxiliary head" and report.entry == "the file itself"
    assert len(report.taken) == 668 and not report.untouched and report.num_classes == 1
    source = create_model(small, 1, seed=1).state_dict()
    assert all(torch.equal(source[name], tensor) for name, tensor in model.state_dict().items())

    plain = saved(tmp_path / "p.pt", published_state(small, classes=1, form="deploy"))
    report = model.load_official(plain)
    assert report.form == "deploy" and len(report.taken) == 628
    assert any(name.startswith("head.auxiliary.") for name in report.untouched)


def test_anchors_of_the_file_come_with_its_boxes(tmp_path):
    path = saved(tmp_path / "own.pt", {"model": published_state(anchor_scale=2.0)})
    model = create_model(TINY)
    model.load_official(path)
    assert torch.equal(model.anchors, 2 * create_model(TINY).anchors)
    other = create_model(TINY, 4)
    report = other.load_official(path)
    assert torch.equal(other.anchors, create_model(TINY).anchors)
    assert "anchors stay with the box predictions" in dict(report.left)["model.77.anchors"]
    without_pixels = {k: v for k, v in published_state(anchor_scale=2.0).items() if not k.endswith("anchor_grid")}
    model = create_model(TINY)
    model.load_official(saved(tmp_path / "grid.pt", without_pixels))
    assert torch.allclose(model.anchors, 2 * create_model(TINY).anchors, atol=0.1)


@pytest.mark.parametrize("wrap", ["bare", "model", "ema", "module.", "inner"])
def test_containers(tmp_path, wrap):
    state = published_state(form="deploy", classes=2)
    other = published_state(form="deploy", classes=2, seed=7)
    content = {
        "bare": state,
        "model": {"model": state, "ema": None, "optimizer": None},
        "ema": {"model": other, "ema": state, "updates": 12, "best_fitness": np.float64(0.5)},
        "module.": {f"module.{name}": tensor for name, tensor in state.items()},
        "inner": {name.removeprefix("model."): tensor for name, tensor in state.items()},
    }[wrap]
    model = create_model(TINY, 2)
    model.load_official(saved(tmp_path / "x.pt", content))
    name = "backbone.stem1.conv.weight"
    assert torch.equal(model.state_dict()[name], state["model.0.conv.weight"].float())


def pickled_module(path, monkeypatch, *, names):
    """A whole pickled module of classes that do not exist here, as the published files hold it."""
    foreign = types.ModuleType("models.yolo")
    parent = types.ModuleType("models")
    made = {}
    for name in ("Model", "Conv", "Detect"):
        made[name] = type(name, (nn.Module,), {"__module__": "models.yolo"})
        setattr(foreign, name, made[name])
    monkeypatch.setitem(sys.modules, "models", parent)
    monkeypatch.setitem(sys.modules, "models.yolo", foreign)
    root = made["Model"]()
    root.names, root.nc, root.yaml = names, 2, {"nc": 2}
    root.model = nn.Sequential()
    for name, tensor in published_state(form="deploy", classes=2).items():
        _, number, *inner, last = name.split(".")
        while len(root.model) <= int(number):
            root.model.append(made["Conv"]())
        here = root.model[int(number)]
        for part in inner:
            if not hasattr(here, part):
                here.add_module(part, made["Conv"]())
            here = getattr(here, part)
        if last in ("weight", "bias"):
            here.register_parameter(last, nn.Parameter(tensor))
        else:
            here.register_buffer(last, tensor)
    root.model[77].register_buffer("grid", torch.zeros(3), persistent=False)
    torch.save({"model": root, "optimizer": None, "epoch": -1}, path)
    monkeypatch.delitem(sys.modules, "models.yolo")
    monkeypatch.delitem(sys.modules, "models")
    return path


def test_a_pickled_module_without_its_classes(tmp_path, monkeypatch):
    path = pickled_module(tmp_path / "m.pt", monkeypatch, names=["cat", "dog"])
    model = create_model(TINY, 2, seed=3)
    report = model.load_official(path)
    assert report.class_names == ("cat", "dog") and len(report.taken) == 338 and not report.left
    assert "models" not in sys.modules


def test_import_writes_a_checkpoint_of_ours(tmp_path, monkeypatch):
    path = pickled_module(tmp_path / "m.pt", monkeypatch, names={0: "cat", 1: "dog"})
    report = import_official(path, TINY, tmp_path / "training.safetensors")
    model, metadata = load_checkpoint(tmp_path / "training.safetensors")
    assert report.num_classes == 2 and metadata.class_names == ("cat", "dog") and metadata.category_ids == (1, 2)
    assert (model.variant, model.form, metadata.image_size) == (TINY, "training", 640)
    assert metadata.extra["imported"]["form"] == "deploy"

    import_official(path, TINY, tmp_path / "deploy.safetensors", form="deploy")
    deploy, _ = load_checkpoint(tmp_path / "deploy.safetensors")
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(model(images), deploy(images), atol=1e-3)

    import_official(path, TINY, tmp_path / "five.safetensors", num_classes=5)
    five, metadata = load_checkpoint(tmp_path / "five.safetensors")
    assert five.num_classes == 5 and metadata.class_names[4] == "class 4"
    for arguments, message in (
        ({"num_classes": 5, "form": "deploy"}, "untrained"),
        ({"class_names": ["one"]}, "2 class names are expected"),
        ({"form": "half"}, "form"),
    ):
        with pytest.raises(ModelError, match=message):
            import_official(path, TINY, tmp_path / "no.safetensors", **arguments)
    assert not (tmp_path / "no.safetensors").exists()


def test_coco_ids():
    names = ["person", *map(str, range(78)), "toothbrush"]
    ids = coco_category_ids(names)
    assert (len(ids), ids[0], ids[11], ids[79]) == (80, 1, 13, 90)
    assert coco_category_ids(["a", "b"]) == (1, 2)


def test_checkpoint_of_another_variant_is_named(training_file, tmp_path):
    with pytest.raises(
        ModelError, match=r"looks like yolov7-tiny or yolov7-tiny-silu \(training form\), not like yolov7"
    ):
        create_model("yolov7-x", device="meta").load_official(training_file)
    assert identify(training_file) == ["yolov7-tiny", "yolov7-tiny-silu"]
    # tiny and tiny-silu share a layout: each can be read as either
    create_model("yolov7-tiny-silu").load_official(training_file)


def test_deploy_models_take_no_published_weights(training_file):
    with pytest.raises(ModelError, match="reparameterize"):
        create_model(TINY).reparameterize().load_official(training_file)


def broken(change):
    state = published_state(form="deploy")
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update({"model.4.conv.weight": torch.zeros(32, 31, 3, 3)}),
            r"model\.4\.conv\.weight: \(32, 31, 3, 3\)",
        ),
        (lambda s: s.update({"model.77.m.0.weight": torch.zeros(255, 64, 1, 1)}), r"model\.77\.m\.0\.weight"),
        (lambda s: s.pop("model.40.bn.running_var"), r"'model\.40\.bn\.running_var' and 0 more are missing"),
        (lambda s: s.update({"model.90.conv.weight": torch.zeros(1)}), "too much"),
        (lambda s: s.update({"model.0.conv.weight": torch.full((32, 3, 3, 3), float("nan"))}), "not finite"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("model.77.")], "no detection layer"),
        (
            lambda s: [s.update({"model.0.conv.bias": torch.zeros(32)}), s.pop("model.0.bn.weight")],
            "folded already",
        ),
        (lambda s: s.clear(), "no tensors"),
    ],
)
def test_wrong_content(tmp_path, change, message):
    model = create_model(TINY)
    before = model.state_dict()["backbone.stem1.conv.weight"].clone()
    with pytest.raises(ModelError, match=message):
        model.load_official(saved(tmp_path / "x.pt", {"model": broken(change)}))
    assert torch.equal(before, model.state_dict()["backbone.stem1.conv.weight"])  # nothing was changed


def test_truncated_and_foreign_files(tmp_path, training_file):
    data = training_file.read_bytes()
    files = {
        "absent": None,
        "empty": b"",
        "cut": data[: len(data) // 3],
        "text": b"not a checkpoint",
        "legacy": pickle.dumps({"model": 1}),
    }
    for name, content in files.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelError, match=str(path)):
            read_published(path)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF  # in the middle of the weights: the archive's checksums tell
    (tmp_path / "flipped").write_bytes(flipped)
    with pytest.raises(ModelError, match="missing or damaged"):
        read_published(tmp_path / "flipped")


class Malicious:
    """Its pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["model", "elsewhere", "inside"])
@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "builtins.exec", "subprocess.Popen", "torch.load"])
def test_malicious_files_run_nothing(tmp_path, name, place):
    functions = {
        "os.system": os.system,
        "builtins.eval": builtins.eval,
        "builtins.exec": builtins.exec,
        "subprocess.Popen": subprocess.Popen,
        "torch.load": torch.load,
    }
    mark = tmp_path / "executed"
    argument = f"open({str(mark)!r}, 'w').close()" if name.startswith("builtins") else f"touch {mark}"
    bomb = Malicious(functions[name], argument)
    content = {
        "model": {"model": bomb},
        "elsewhere": {"model": published_state(form="deploy", classes=1), "hyp": bomb},
        "inside": {"model": {**published_state(form="deploy", classes=1), "x": [bomb]}},
    }[place]
    path = saved(tmp_path / "bad.pt", content)
    with pytest.raises(ModelError, match=r"refused: it asks for [\w.]+\.(system|eval|exec|Popen|load),"):
        create_model(TINY, 1).load_official(path)
    assert not mark.exists()


def archive(path, content, *, data=None, compression=zipfile.ZIP_STORED, order=b"little"):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/byteorder", order)
        for key, values in (data or {}).items():
            file.writestr(f"archive/data/{key}", values)
    return path


def tensor_pickle(offset, shape, stride, *, storage="FloatStorage", elements=4):
    """A pickle of {"model": {"w": tensor}} written by hand, so that it can lie."""

    def number(value):
        return b"J" + struct.pack("<i", value)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    reference = b"(" + pickle.dumps("storage", 0)[:-1] + f"ctorch\n{storage}\n".encode() + b"V0\nVcpu\n"
    reference += number(elements) + b"tQ"
    arguments = b"(" + reference + number(offset) + numbers(shape) + numbers(stride) + b"\x89Nt"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    return b"\x80\x02}Vmodel\n}Vw\n" + rebuilt + b"ss."


def test_tensors_that_lie_about_their_data(tmp_path):
    data = {"0": struct.pack("<4f", 1, 2, 3, 4)}
    good = archive(tmp_path / "good", tensor_pickle(1, (1, 3), (3, 1)), data=data)
    assert read_published(good).tensors["w"].tolist() == [[2.0, 3.0, 4.0]]
    turned = archive(tmp_path / "turned", tensor_pickle(0, (2, 2), (1, 2)), data=data)
    assert read_published(turned).tensors["w"].tolist() == [[1.0, 3.0], [2.0, 4.0]]
    for name, arguments in {
        "beyond": (2, (1, 3), (3, 1)),
        "strides": (0, (2, 2), (4, 1)),
        "vast": (0, (2**30, 2**30), (0, 0)),
        "negative": (-1, (1,), (1,)),
        "backwards": (3, (4,), (-1,)),
        "uneven": (0, (2, 2), (1,)),
    }.items():
        path = archive(tmp_path / name, tensor_pickle(*arguments), data=data)
        with pytest.raises(ModelError, match=r"cut off|damaged"):
            read_published(path)
    with pytest.raises(ModelError, match="data/0 is missing"):
        read_published(archive(tmp_path / "lost", tensor_pickle(0, (1,), (1,))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02", "damaged"),
        (b"\x80\x02]q\x00(K\x01e", "damaged"),
        (b"\x80\x02K\x01.", "a int is pickled in it"),
        (b"\x80\x02cos\nsystem\n.", "refused: it asks for os.system"),
        (b"\x80\x02ctorch.nn\nLinear\n)R}Vstate\nK\x01sb.", "no tensors"),
        # a state for a function it may call, or for a class, must change nothing here
        (b"\x80\x02ctorch\nSize\n}V_make\nK\x01sb.", "damaged"),
        (b"\x80\x02ctorch\nSize\nN}V_make\nK\x01s\x86b.", "damaged"),
        (b"\x80\x02ccollections\nOrderedDict\n}Vx\nK\x01sb.", "damaged"),
        (b"\x80\x02(Vstorage\ntQ.", "storage reference"),
        (b"\x80\x04\x8c\x05torch\x8c\x0cSize.__new__\x93.", "refused: it asks for torch.Size.__new__"),
    ],
)
def test_hand_written_pickles(tmp_path, content, message):
    with pytest.raises(ModelError, match=message):
        read_published(archive(tmp_path / "x", content))


def test_modules_that_name_one_another_end(tmp_path):
    # memo 0: the module; its state names itself as its child
    content = b"\x80\x02ctorch.nn\nModule\n)\x81q\x00}V_modules\n}Vself\nh\x00ssb."
    with pytest.raises(ModelError, match="no tensors"):
        read_published(archive(tmp_path / "x", content))


def test_archives_torch_would_not_write(tmp_path):
    good = tensor_pickle(0, (1,), (1,))
    with pytest.raises(ModelError, match="compressed"):
        read_published(archive(tmp_path / "c", good, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(ModelError, match="byte order"):
        read_published(archive(tmp_path / "b", good, order=b"big"))
    with zipfile.ZipFile(tmp_path / "none", "w") as file:
        file.writestr("readme", "x")
    with pytest.raises(ModelError, match=r"0 data\.pkl"):
        read_published(tmp_path / "none")


def test_records_added_by_a_newer_torch_are_ignored(tmp_path):
    source = io.BytesIO()
    torch.save({"model": {"w": torch.arange(3.0)}}, source)
    path = tmp_path / "newer.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
        folder = old.namelist()[0].split("/")[0]
        new.writestr(f"{folder}/.record_of_tomorrow", "7")
    opened = read_checkpoint(path)
    assert opened.entry == "model" and opened.tensors["w"].tolist() == [0.0, 1.0, 2.0]
    # Its newer form of a tensor, with the dtype apart from the storage.
    fresh = (
        b"\x80\x02}Vmodel\n}Vw\nctorch._utils\n_rebuild_tensor_v3\n((Vstorage\nctorch.storage\nUntypedStorage\n"
        b"V0\nVcpu\nK\x08tQK\x00K\x02\x85K\x01\x85\x89Nctorch\nfloat32\ntRss."
    )
    tensors = read_published(archive(tmp_path / "v3", fresh, data={"0": struct.pack("<2f", 5, 6)})).tensors
    assert tensors["w"].tolist() == [5.0, 6.0] and tensors["w"].dtype == torch.float32


def test_networks_that_were_never_published_have_no_published_keys():
    network = find_variant("yolov7-x")
    stages = tuple(
        replace(stage, block=replace(stage.block, rep=(1,))) if isinstance(stage.block, Elan) else stage
        for stage in network.neck
    )
    with pytest.raises(ModelError, match="no place in the published layout"):
        published_keys(replace(network, neck=stages))
