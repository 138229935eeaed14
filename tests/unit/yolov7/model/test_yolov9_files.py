"""Published YOLOv9 files that contradict the network, themselves or the format: each is one clear line, or harmless."""

from __future__ import annotations

import builtins
import os
import sys
import types
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.unit.yolov7.model.test_checkpoint import rewritten
from tests.unit.yolov7.model.test_published import Malicious, published_state
from yolov7.config import train_parameters
from yolov7.errors import ModelError
from yolov7.model import Detector, ModelMetadata, create_model, load_checkpoint, save_checkpoint
from yolov7.model.published import yolov9 as published
from yolov7.model.published.convert import identify, import_official
from yolov7.model.published.load import read_published
from yolov7.model.variants import find_variant
from yolov7.train.initial import initial_model, load_weights


@cache
def drawn(variant: str, classes: int, seed: int) -> Detector:
    """A model that nothing changes."""
    return create_model(variant, classes, seed=seed)


def state(variant: str, classes: int = 3, *, seed: int = 1) -> dict[str, torch.Tensor]:
    """A file's tensors by their published names."""
    model = drawn(variant, classes, seed)
    form = published.DUAL if model.has_auxiliary else published.SINGLE
    values = model.state_dict()
    return {name: values[ours].clone() for name, ours in published.LAYOUT.keys(model.spec, form).copied.items()}


@pytest.fixture(scope="module")
def gelan():
    return state("gelan-t")


@pytest.fixture(scope="module")
def dual():
    return state("yolov9-t")


@pytest.fixture
def saved(tmp_path):
    def write(content, name="file.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@cache
def untouched(variant: str, classes: int) -> tuple[Detector, dict[str, torch.Tensor]]:
    """A model that only meets files it refuses, and its weights."""
    model = create_model(variant, classes)
    return model, {name: value.clone() for name, value in model.state_dict().items()}


def refusal(path, variant: str, classes: int = 3) -> str:
    model, before = untouched(variant, classes)
    with pytest.raises(ModelError) as caught:
        model.load_official(path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


# Another size, another family


def test_a_file_of_another_size_names_the_size(saved, tmp_path):
    path = saved({"model": state("yolov9-s")})
    for variant in ("gelan-t", "yolov9-t"):
        assert f"not a {variant}; the file looks like gelan-s or yolov9-s" in refusal(path, variant)
        with pytest.raises(ModelError, match="the file looks like gelan-s or yolov9-s"):
            import_official(path, variant, tmp_path / "out.safetensors")
    assert identify(path) == ["gelan-s", "yolov9-s"] and not (tmp_path / "out.safetensors").exists()


def test_a_yolov7_file_and_a_yolov9_file_do_not_mix(saved, gelan):
    seven = saved({"model": published_state(classes=3)}, "seven.pt")
    for variant in ("gelan-t", "yolov9-t"):
        message = refusal(seven, variant)
        assert f"{variant}: its head has no place in the published layout" in message
        assert "the file looks like yolov7-tiny or yolov7-tiny-silu" in message
    nine = saved({"model": gelan}, "nine.pt")
    assert "yolov7-tiny: its head" in refusal(nine, "yolov7-tiny")
    assert "the file looks like gelan-t or yolov9-t" in refusal(nine, "yolov7-tiny")


def own_file(folder, variant: str, classes: int = 3):
    model = create_model(variant, classes)
    names = tuple(f"kind {number}" for number in range(classes))
    save_checkpoint(folder / "own.safetensors", model, ModelMetadata.of(model, class_names=names))
    return folder / "own.safetensors"


@pytest.mark.parametrize(
    ("held", "wanted", "fit"),
    [("gelan-s", "gelan-t", "6 of its 227"), ("yolov7-tiny", "gelan-t", "1 of its 58")],
)
def test_weights_of_ours_of_another_size_or_family_are_refused(tmp_path, held, wanted, fit):
    path = own_file(tmp_path, held)
    with pytest.raises(ModelError, match=f"{path}: holds a {held} in training form; only {fit} kernels fit a {wanted}"):
        load_weights(create_model(wanted, 3), path)


@pytest.mark.parametrize(("held", "wanted"), [("gelan-t", "yolov9-t"), ("yolov9-t", "gelan-t")])
def test_weights_of_ours_pass_between_a_yolov9_and_its_gelan(tmp_path, held, wanted):
    path = own_file(tmp_path, held)
    model = create_model(wanted, 3, seed=7)
    load_weights(model, path)
    theirs, ours = load_checkpoint(path)[0].state_dict(), model.state_dict()
    shared = ours.keys() & theirs.keys()
    assert len(shared) == min(len(theirs), len(ours))
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)


# Class counts


def contradicting_classes(tensors, branch):
    changed = dict(tensors)
    name = next(name for name in tensors if name.endswith(f".{branch}.1.2.bias"))
    changed[name] = torch.zeros(5)
    kernel = name.replace(".bias", ".weight")
    changed[kernel] = torch.zeros(5, *tensors[kernel].shape[1:])
    return changed


@pytest.mark.parametrize("classes", [3, 5, 8])
def test_branches_with_different_class_counts_are_refused_for_any_model(saved, gelan, dual, classes):
    path = saved({"model": contradicting_classes(gelan, "cv3")})
    assert "model.22.cv3.1.2.bias: its class branches have 3 and 5 classes" in refusal(path, "gelan-t", classes)
    for branch in ("cv3", "cv5"):
        path = saved({"model": contradicting_classes(dual, branch)})
        assert "its class branches have 3 and 5 classes" in refusal(path, "yolov9-t", classes)


@pytest.fixture
def pickled(monkeypatch):
    """Whole modules of classes that exist here only while a file is written."""
    made = {name: type(name, (nn.Module,), {"__module__": "models.yolo"}) for name in ("DetectionModel", "Part")}
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.yolo", types.ModuleType("models.yolo"))
    for name, kind in made.items():
        setattr(sys.modules["models.yolo"], name, kind)

    def module(tensors, **attributes):
        root = made["DetectionModel"]()
        for name, value in attributes.items():
            setattr(root, name, value)
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            here = root
            for part in path:
                if part not in here._modules:
                    here.add_module(part, made["Part"]())
                here = here._modules[part]
            here.register_buffer(last, tensor)
        return root

    return module


def test_the_tensors_tell_the_class_count_and_names_of_another_are_not_used(saved, gelan, pickled, tmp_path):
    names = [f"thing {number}" for number in range(80)]
    path = saved({"model": pickled(gelan, names=names, nc=80, yaml={"nc": 80}), "ema": None})
    report = create_model("gelan-t", 3).load_official(path)
    assert (report.num_classes, report.class_names, report.ignored_names) == (3, (), 80)
    assert "its 80 class names are not used, since the tensors have another class count" in str(report)
    import_official(path, "gelan-t", tmp_path / "out.safetensors")
    assert load_checkpoint(tmp_path / "out.safetensors")[1].class_names == ("class 0", "class 1", "class 2")
    path = saved({"model": pickled(gelan, names={0: "a", 1: "b", 2: "c"}, nc=3)})
    report = create_model("gelan-t", 3).load_official(path)
    assert report.class_names == ("a", "b", "c") and not report.ignored_names and "names" not in str(report)


def test_metadata_of_our_own_that_contradicts_the_tensors(tmp_path):
    good, bad = own_file(tmp_path, "gelan-t"), tmp_path / "bad.safetensors"
    more = {"num_classes": 5, "class_names": ["a"] * 5, "category_ids": [1, 2, 3, 4, 5]}
    cases = [
        (more, r"head\.lead\.0\.classes\.2\.conv\.\w+: \(5[^)]*\) torch.float32 is expected, got \(3"),
        ({"class_names": ["a"]}, "class_names: 3 are expected, got 1"),
        ({"num_classes": 0, "class_names": [], "category_ids": []}, "num_classes"),
        ({"variant": "gelan-s"}, "holds a gelan-s, not a gelan-t"),
        ({"form": "deploy"}, "does not hold a gelan-t in deploy form"),
        ({"anchors": [[[1, 2]]]}, "anchors"),
    ]
    for change, message in cases:
        with pytest.raises(ModelError, match=f"{bad}: .*{message}"):
            load_checkpoint(rewritten(bad, good, header=lambda header, change=change: header.update(change)))


# Branches


def with_width(tensors, width: int, *, branches=("cv3",), levels=(0, 1, 2)):
    """The file with class branches of another width."""
    changed, generator = dict(tensors), torch.Generator().manual_seed(2)
    for name, tensor in tensors.items():
        parts = name.split(".")
        if len(parts) < 5 or parts[2] not in branches or not parts[3].isdecimal() or int(parts[3]) not in levels:
            continue
        if not any(other.startswith(f"model.{parts[1]}.dfl") for other in tensors):
            continue  # a block's cv3
        shape = list(tensor.shape)
        if parts[4] != "2" and shape:
            shape[0] = width
        if len(shape) == 4 and parts[4] != "0":
            shape[1] = width
        if shape:
            changed[name] = 0.5 + 0.1 * torch.rand(shape, generator=generator)
    return changed


@pytest.mark.parametrize("width", [96, 80])
def test_any_width_of_the_class_branches_that_agrees_is_taken(saved, gelan, dual, width):
    for variant, tensors, branches in (("gelan-t", gelan, ("cv3",)), ("yolov9-t", dual, ("cv3", "cv5"))):
        model = create_model(variant, 3)
        report = model.load_official(saved({"model": with_width(tensors, width, branches=branches)}))
        assert report.complete and not report.left and model.spec.head.class_width == width
        with torch.inference_mode():
            assert model.eval()(torch.rand(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize(
    ("branches", "levels", "name"),
    [(("cv3",), (1,), "cv3.1.0"), (("cv3",), (0,), "cv3.1.0"), (("cv5",), (0, 1, 2), "cv3.0.0")],
)
def test_class_branches_that_disagree_are_refused(saved, gelan, dual, branches, levels, name):
    variant, tensors = ("yolov9-t", dual) if "cv5" in branches else ("gelan-t", gelan)
    message = refusal(saved({"model": with_width(tensors, 80, branches=branches, levels=levels)}), variant)
    assert f"{name}.conv.weight: (" in message
    assert f"although the rest is that of a {variant}: the file is damaged" in message


def test_a_branch_without_channels_is_refused(saved, gelan):
    assert "(0, 64, 3, 3) does not fit" in refusal(saved({"model": with_width(gelan, 0)}), "gelan-t")
    network = find_variant("gelan-t")
    with pytest.raises(ModelError, match="class_width: at least 1, got 0"):
        create_model(replace(network, head=replace(network.head, class_width=0)), 3, device="meta")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.22.cv2.0.0.conv.weight", (48, 64, 3, 3)),
        ("model.22.cv2.1.2.weight", (32, 16, 1, 1)),
        ("model.22.dfl.conv.weight", (1, 8, 1, 1)),
    ],
)
def test_box_branches_of_another_shape_are_refused(saved, gelan, name, shape):
    path = saved({"model": {**gelan, name: torch.rand(shape)}})
    for classes in (3, 80):
        message = refusal(path, "gelan-t", classes)
        assert f"{name}: {shape} does not fit" in message and "although the rest is that of a gelan-t" in message


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model.29.cv5.1.", "'model.29.cv5.1.0.conv.weight' and 11 more are missing"),
        ("model.29.cv4.", "'model.29.cv4.0.0.conv.weight' and 35 more are missing"),
        ("model.29.dfl", "no detection layer of a family known here"),
        ("model.29.cv5.0.2.bias", "not"),
    ],
)
def test_a_training_file_without_a_part_of_its_head_is_refused(saved, dual, missing, message):
    kept = {name: tensor for name, tensor in dual.items() if not name.startswith(missing)}
    for variant in ("yolov9-t", "gelan-t"):
        found = refusal(saved({"model": kept}), variant)
        assert variant == "gelan-t" or message in found


# Grids


def wrong_grids():
    network = find_variant("yolov9-t")
    return replace(network, name="own", head=replace(network.head, auxiliary=("AT4", "AT3", "ASPP")))


def test_auxiliary_grids_of_ones_own_network_are_checked_before_a_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_networks", SimpleNamespace(own=wrong_grids))
    params = train_parameters({"network": "own_networks:own", "image_size": 64}, recipe="yolov9")
    index = SimpleNamespace(class_names=("a",))
    with pytest.raises(ModelError, match=r"auxiliary levels have strides \(16, 8, 32\), the lead levels \(8, 16, 32\)"):
        initial_model("own", params, index)


# Entries


def filled(value: float, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = "model.0.conv.weight"
    return {**like, first: torch.full_like(like[first], value)}


def entry_of(path) -> tuple[str, float]:
    model = create_model("yolov9-t", 3)
    report = model.load_official(path)
    assert f"tensors taken from `{report.entry}`" in str(report)
    return report.entry, float(model.state_dict()["backbone.stem.conv.weight"].mean())


def test_the_average_is_preferred_and_the_report_says_what_was_read(saved, dual, pickled):
    raw, average = filled(1, dual), filled(2, dual)
    rest = dict.fromkeys(("best_fitness", "updates", "optimizer", "opt", "git", "date"))
    interrupted = {"epoch": 7, "model": raw, "ema": average, **rest, "updates": 4000, "best_fitness": 0.5}
    assert entry_of(saved(interrupted)) == ("ema", 2)
    stripped = {"epoch": -1, "model": average, "ema": None, **rest}
    assert entry_of(saved(stripped)) == ("model", 2)
    converted = {"model": raw, "ema": None, "epoch": -1, **rest}
    assert entry_of(saved(converted)) == ("model", 1)
    modules = {"model": pickled(raw, nc=3), "ema": pickled(average, nc=3), "updates": 4000}
    assert entry_of(saved(modules)) == ("ema", 2)


# Damage and malice


@pytest.mark.parametrize("place", ["model", "ema", "inside", "opt"])
@pytest.mark.parametrize("name", ["os.system", "builtins.eval"])
def test_hostile_files_in_this_layout_run_nothing(saved, dual, tmp_path, name, place):
    mark = tmp_path / "executed"
    function, argument = {
        "os.system": (os.system, f"touch {mark}"),
        "builtins.eval": (builtins.eval, f"open({str(mark)!r}, 'w').close()"),
    }[name]
    bomb = Malicious(function, argument)
    content = {
        "model": {"model": bomb, "ema": dual},
        "ema": {"model": dual, "ema": bomb},
        "inside": {"model": {**dual, "model.30.x": [bomb]}},
        "opt": {"model": dual, "ema": None, "opt": bomb},
    }[place]
    path = saved(content)
    assert "refused: it asks for" in refusal(path, "yolov9-t")
    assert not mark.exists()


def test_cut_and_garbled_files_name_themselves(saved, gelan, tmp_path):
    whole = saved({"model": gelan}).read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xFF
    for name, data in {
        "cut": whole[: len(whole) * 2 // 3],
        "head": whole[:64],
        "tail": whole[len(whole) // 2 :],
        "garbled": bytes(middle),
        "noise": b"\x00\xff" * 4096,
        "empty": b"",
    }.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(data)
        assert refusal(path, "gelan-t")
        with pytest.raises(ModelError, match=str(path)):
            identify(path)


@pytest.mark.parametrize("name", ["model.22.cv3.0.2.bias", "model.8.cv1.conv.weight", "model.22.dfl.conv.weight"])
def test_values_that_are_not_finite_are_refused(saved, gelan, name):
    path = saved({"model": {**gelan, name: torch.full_like(gelan[name], float("inf"))}})
    with pytest.raises(ModelError, match=f"{path}: {name}: holds values that are not finite"):
        read_published(path)
