"""Another family's files: loading asks the layouts, and knows no names of its own."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from small_detector import small_network

from tests.unit.yolov7.model.test_published import published_state, saved
from yolov7.errors import ModelError
from yolov7.model import create_model
from yolov7.model.published import load
from yolov7.model.published.convert import identify
from yolov7.model.published.layout import PublishedKeys, PublishedLayout
from yolov7.model.published.yolov7 import LAYOUT

YOLOV7 = next(load.families())


class NamedLayout(PublishedLayout):
    """A tree of names under `net.`, classes counted by `net.classes`, objects of `fam6`; `scale` is stored inverted."""

    packages = ("fam6",)

    def form(self, names):
        return "training" if any(name.startswith("net.") for name in names) else None

    def num_classes(self, tensors):
        if "net.classes" not in tensors:
            raise ModelError("it does not say how many classes it has")
        return int(tensors["net.classes"])

    def keys(self, network, form):
        if network.name != "small":
            raise ModelError(f"{network.name} was never published")
        names = create_model(network, device="meta").state_dict()
        inverted = {f"net.{name}" for name in names if "implicit" in name}
        return PublishedKeys(
            form=form,
            copied={f"net.{name}": name for name in names if f"net.{name}" not in inverted},
            derived={"net.classes", *inverted},
            outputs={f"net.{name}" for name in names if ".predict." in name},
        )

    def foreign(self, names, keys):
        return [name for name in names if name not in keys]

    def finish(self, transfer, tensors, model, keys):
        for name in sorted(keys.derived - {"net.classes"}):
            ours = name.removeprefix("net.")
            if tensors[name].shape == model.state_dict()[ours].shape:
                transfer.values[ours] = -tensors[name]
                transfer.taken.append(name)


@pytest.fixture(autouse=True)
def two_families(monkeypatch):
    def families():
        yield YOLOV7
        yield "named", NamedLayout(), {"small": small_network}

    monkeypatch.setattr(load, "families", families)


def named_state(classes=3, seed=1):
    state = create_model(small_network(), classes, seed=seed).state_dict()
    tensors = {f"net.{name}": -value if "implicit" in name else value for name, value in state.items()}
    return {**tensors, "net.classes": torch.tensor(classes)}


def test_a_file_of_another_family_is_recognised_and_loaded(tmp_path):
    path = saved(tmp_path / "x.pt", {"model": named_state(), "ema": None})
    assert identify(path) == ["small"]
    model = create_model(small_network(), 3, seed=2)
    report = model.load_official(path)
    assert report.complete and not report.left and not report.untouched and report.num_classes == 3
    for name, value in create_model(small_network(), 3, seed=1).state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_its_outputs_stay_for_another_class_count(tmp_path):
    path = saved(tmp_path / "x.pt", named_state(classes=5))
    model = create_model(small_network(), 3, seed=2)
    report = model.load_official(path)
    assert not report.complete and {name for name, _ in report.left} == {
        f"net.head.{part}.{level}.predict.conv.{kind}"
        for part in ("lead", "auxiliary")
        for level in (0, 1)
        for kind in ("weight", "bias")
    }
    assert all(".predict." in name for name in report.untouched) and len(report.untouched) == 10


def test_a_refusal_of_the_layout_names_the_file(tmp_path):
    without = {name: value for name, value in named_state().items() if name != "net.classes"}
    path = saved(tmp_path / "x.pt", without)
    with pytest.raises(ModelError, match=rf"{path}: it does not say how many classes"):
        identify(path)
    path = saved(tmp_path / "x.pt", {**named_state(), "net.more": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"'net\.more' is too much"):
        create_model(small_network(), 3).load_official(path)
    path = saved(tmp_path / "x.pt", named_state())
    with pytest.raises(ModelError, match=rf"{path}: yolov7-tiny was never published"):
        create_model("yolov7-tiny", 3, device="meta").load_official(path)
    path = saved(tmp_path / "x.pt", {"other.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"no detection layer of a family known here \(yolov7, named\)"):
        identify(path)


def test_objects_of_its_package_are_read(tmp_path, monkeypatch):
    class Net(torch.nn.Module):
        __module__, __qualname__ = "fam6.models.net", "Net"

    module = types.ModuleType("fam6.models.net")
    module.Net = Net
    for name in ("fam6", "fam6.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "fam6.models.net", module)
    net = Net()
    net.net = torch.nn.Module()
    net.net.register_buffer("classes", torch.tensor(4))
    path = saved(tmp_path / "x.pt", {"model": net})
    assert load.recognise(load.read_published(path)).num_classes == 4
    monkeypatch.setattr(load, "families", lambda: iter([YOLOV7]))
    with pytest.raises(ModelError, match=r"refused: it asks for fam6\.models\.net\.Net"):
        load.read_published(path)


def test_yolov7_files_are_still_its_own(tmp_path):
    state = published_state(classes=2)
    state["model.50.anchors"] = torch.ones(3, 3, 2)  # of no layer that has anchors
    path = saved(tmp_path / "x.pt", state)
    assert load.recognise(load.read_published(path)).layout is LAYOUT
    report = create_model("yolov7-tiny", 2).load_official(path)
    assert report.left == (("model.50.anchors", "not of this network"),) and report.complete
