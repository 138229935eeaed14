"""Published YOLOv6 files: every release, form and kind, and files that contradict network, themselves or format."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.small_efficient import small_efficient
from tests.unit.yolov7.model.test_published import published_state
from tests.unit.yolov7.model.test_yolov6 import KINDS
from yolov7.errors import ModelError
from yolov7.model import Detector, create_model, load_checkpoint
from yolov7.model.heads.efficient import with_options
from yolov7.model.modes import with_mode
from yolov7.model.published import yolov6 as published
from yolov7.model.published import yolov6_names as names
from yolov7.model.published.convert import identify, import_official
from yolov7.model.spec import Network
from yolov7.model.variants import find_variant


def filled(network: str | Network, classes: int = 3, seed: int = 5) -> Detector:
    """Weights and statistics as training leaves them."""
    model = create_model(network, classes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
        for branch in model.head.lead:
            for output in (branch.box_output, branch.class_output):
                output.conv.weight.normal_(0, 0.05, generator=generator)
    return model.eval()


def state(model: Detector, form: str) -> dict[str, torch.Tensor]:
    """A file's tensors by their published names, with the values of `model`."""
    values, keys = model.state_dict(), published.LAYOUT.keys(model.spec, form)
    return {name: values[ours].clone() for name, ours in keys.copied.items()}


@pytest.fixture
def saved(tmp_path):
    def write(content, name="file.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def same(one: Detector, other: Detector) -> bool:
    images = torch.rand(1, 3, 64, 128)
    with torch.inference_mode():
        return torch.allclose(one.eval()(images), other.eval()(images), rtol=1e-5, atol=1e-4)


def refusal(path, variant: str | Network, classes: int = 3) -> str:
    model = create_model(variant, classes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        model.load_official(path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "objectness"])
def test_every_tensor_has_a_place_and_loads(saved, kind):
    release = KINDS[kind].get("release", "2.0")
    source = filled(small_efficient(**KINDS[kind]))
    tensors = state(source, f"{release} training")
    keys = published.LAYOUT.keys(source.spec, f"{release} training")
    assert sorted(keys.copied.values()) == sorted(source.state_dict())
    assert published.LAYOUT.form(tensors) == f"{release} training"
    model = create_model(source.spec, 3)
    report = model.load_official(saved({"model": tensors}))
    assert report.complete and not report.left and not report.untouched and same(model, source)


def test_either_numbering_of_the_way_up_of_p6(saved):
    source = filled(small_efficient(**KINDS["3.0 p6"]))
    for form, first, last in (("3.0 training", 3, 5), ("3.0 training, n4 to n6", 4, 6)):
        tensors = state(source, form)
        numbers = {int(name.split(".")[1].removeprefix("Rep_n")) for name in tensors if ".Rep_n" in name}
        assert numbers == set(range(first, last + 1))
        model = create_model(source.spec, 3)
        report = model.load_official(saved({"model": tensors}))
        assert report.form == form and report.complete and not report.left and same(model, source)


@pytest.mark.parametrize("variant", ["yolov6-t", "yolov6v3-s", "yolov6v3-n6"])
def test_published_sizes_are_told_apart(saved, variant):
    model = create_model(variant, 3)
    release = "3.0" if "v3" in variant else "2.0"
    path = saved({"model": state(model, f"{release} training")})
    assert identify(path) == [variant]
    other = {"yolov6-t": "yolov6-n", "yolov6v3-s": "yolov6v3-n", "yolov6v3-n6": "yolov6v3-n"}[variant]
    message = refusal(path, other)
    assert f"looks like {variant} ({release} training form)" in message


def test_a_file_of_the_other_release_says_so(saved):
    three = saved({"model": state(create_model("yolov6v3-n", 3), "3.0 training")}, "three.pt")
    message = refusal(three, "yolov6-n")
    assert "its neck is that of YOLOv6 release 3.0, and yolov6-n is of release 2.0" in message
    assert message.endswith("the file looks like yolov6v3-n (3.0 training form)")
    two = saved({"model": state(create_model("yolov6-n", 3), "2.0 training")}, "two.pt")
    assert "release 2.0, and yolov6v3-n is of release 3.0; the file looks like yolov6-n" in refusal(two, "yolov6v3-n")


def test_files_of_another_family(saved):
    seven = saved({"model": published_state(classes=3)}, "seven.pt")
    assert "yolov6-n: its head has no place in the published layout" in refusal(seven, "yolov6-n")
    six = saved({"model": state(create_model("yolov6-n", 3), "2.0 training")}, "six.pt")
    message = refusal(six, "yolov7-tiny")
    assert (
        "yolov7-tiny: its head has no place in the published layout of YOLOv6; the file looks like yolov6-n" in message
    )
    assert "gelan-t: its head has no place in the published layout of YOLOv6" in refusal(six, "gelan-t")


def test_the_outputs_of_a_training_file_are_left_or_taken(saved):
    base = small_efficient("3.0")
    for options in ({"anchor_aided": True}, {"distributions": True}):
        source = filled(with_options(base, **options))
        path = saved({"model": state(source, "3.0 training")})
        plain, trained = create_model(base, 3), create_model(source.spec, 3)
        report = plain.load_official(path)
        assert report.complete and not report.untouched and same(plain, source)
        assert report.left and all("auxiliary part" in reason for _, reason in report.left)
        report = trained.load_official(path)
        assert not report.left and not report.untouched
        path = saved({"model": state(plain, "3.0 training")})
        report = create_model(source.spec, 3).load_official(path)
        assert report.complete and report.untouched and all(".auxiliary." in name for name in report.untouched)


def test_the_file_says_whether_distances_are_distributions(saved):
    source = filled(small_efficient(bins=17))
    model = create_model(small_efficient(), 3)
    report = model.load_official(saved({"model": state(source, "2.0 training")}))
    assert report.complete and model.spec.head.bins == 17 and same(model, source)


@pytest.mark.parametrize(("theirs", "ours"), [(17, 0), (0, 17)])
def test_it_says_so_for_another_class_count_too(saved, theirs, ours):
    """A 17-bin N or S of 3.0, the published teacher, into a network for other classes, and the other way round."""
    source = filled(small_efficient("3.0", bins=theirs), classes=5)
    model = filled(small_efficient("3.0", bins=ours), classes=3, seed=9)
    before = model.state_dict()
    report = model.load_official(saved({"model": state(source, "3.0 training")}))
    assert model.spec.head.bins == theirs and not report.complete and report.num_classes == 5
    assert {name.split(".")[1] for name, _ in report.left} == {"cls_preds"}
    after, given = model.state_dict(), source.state_dict()
    for name in after:
        outputs = ".class_output." in name
        assert outputs == (name in report.untouched), name
        assert torch.equal(after[name], (before if outputs else given)[name]), name
    images = torch.rand(1, 3, 64, 128)
    with torch.inference_mode():
        assert torch.allclose(model.eval()(images)[..., :4], source(images)[..., :4], rtol=1e-5, atol=1e-4)


def test_bins_of_a_file_that_the_trained_outputs_exclude(saved):
    path = saved({"model": state(filled(small_efficient("3.0", bins=17)), "3.0 training")})
    for classes in (3, 4):
        message = refusal(path, small_efficient("3.0", distributions=True), classes)
        assert "its distances are distributions of 17 bins" in message and "distributions" in message


def test_another_class_count_keeps_the_models_own_outputs(saved, tmp_path):
    source = filled(small_efficient("3.0", anchor_aided=True), classes=5)
    path = saved({"model": state(source, "3.0 training")})
    model = create_model(source.spec, 3, seed=2)
    report = model.load_official(path)
    assert not report.complete and report.num_classes == 5
    assert {name.split(".")[1] for name, _ in report.left} == {"cls_preds", "cls_preds_ab"}
    assert all("class_output" in name or "anchor_classes" in name for name in report.untouched)


def test_a_file_becomes_one_of_ours(saved, tmp_path):
    source = filled("yolov6-n")
    path = saved({"model": None, "ema": state(source, "2.0 training"), "updates": 9, "epoch": 3})
    for form in ("training", "deploy"):
        out = tmp_path / f"{form}.safetensors"
        report = import_official(path, "yolov6-n", out, form=form)
        assert report.entry == "ema" and report.form == "2.0 training"
        assert same(load_checkpoint(out)[0], source)


# Deploy form


def folded(model: Detector, release: str) -> dict[str, torch.Tensor]:
    """A file of the deploy form: the values of the re-parameterised network by the published names."""
    naming = names.Naming(release, "deploy")
    state, deploy = model.state_dict(), dict(model.reparameterize().named_modules())
    tensors = {}
    for part in names.parts_of(model.spec, naming):
        if part.what == "number":
            tensors[part.theirs] = state[part.ours].clone()
            continue
        conv = deploy[part.ours] if part.what == "plain" else deploy[part.ours].conv
        conv = getattr(conv, "conv", conv)
        name = part.theirs if part.what == "plain" else names.folded_name(part, naming)
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = conv.weight.clone(), conv.bias.clone()
    return tensors


@pytest.mark.parametrize("kind", ["rep", "rep csp", "conv csp", "3.0 conv csp"])
def test_a_deploy_file_gives_the_same_predictions(saved, kind):
    release = KINDS[kind].get("release", "2.0")
    source = filled(small_efficient(**KINDS[kind]))
    tensors = folded(source, release)
    assert any("rbr_reparam.weight" in name for name in tensors) is ("rep" in kind)
    model = filled(source.spec, seed=9)  # whose statistics the file replaces
    report = model.load_official(saved({"model": tensors}))
    assert report.form == f"{release} deploy" and report.complete and not report.left
    assert same(model, source) and same(model.reparameterize(), source)
    missing = next(name for name in tensors if name.startswith("backbone.stem") and name.endswith(".bias"))
    del tensors[missing]
    assert f"{missing}" in refusal(saved({"model": tensors}), source.spec)


def test_deploy_files_of_published_sizes_are_told_apart(saved):
    tensors = folded(create_model("yolov6-t", 3), "2.0")
    path = saved({"model": tensors})
    assert identify(path) == ["yolov6-t"]
    assert "looks like yolov6-t (2.0 deploy form)" in refusal(path, "yolov6-n")


# RepOptimizer


@pytest.mark.parametrize(("kind", "mode"), [("target", "conv"), ("search", "linear-add")])
def test_files_of_repoptimizer_are_recognised(saved, kind, mode):
    network = small_efficient()
    plain = with_mode(network, mode)
    source = filled(plain)
    tensors = state(source, f"2.0 RepOptimizer {kind}")
    assert "backbone.stem.conv.weight" in tensors and "neck.Rep_p4.block.0.bn.weight" in tensors
    assert ("backbone.stem.scale_1x1.weight" in tensors) is (kind == "search")
    path = saved({"model": tensors})
    model = create_model(plain, 3)
    report = model.load_official(path)
    assert report.form == f"2.0 RepOptimizer {kind}" and report.complete and same(model, source)
    message = refusal(path, network)
    assert f"its 3x3 blocks are those of a RepOptimizer {kind} ({mode}), not small-efficient's (rep)" in message
    whole = saved({"model": state(create_model(with_mode(find_variant("yolov6-n"), mode), 3), report.form)}, "n.pt")
    assert identify(whole) == ["yolov6-n"]


def test_a_file_of_the_search_holds_the_scales(saved):
    network = with_mode(small_efficient(), "linear-add")
    source = filled(network)
    tensors = state(source, "2.0 RepOptimizer search")
    block = {"conv", "conv_1x1", "scale_conv", "scale_1x1", "bn"}
    assert {name.split(".")[2] for name in tensors if name.startswith("backbone.stem.")} == block
    assert tensors["backbone.ERBlock_2.1.conv1.scale_identity.weight"].shape == (8,)
    path = saved({"model": tensors})
    model = create_model(network, 3)
    report = model.load_official(path)
    assert report.form == "2.0 RepOptimizer search" and report.complete and not report.left and same(model, source)
    assert "RepOptimizer search (linear-add), not small-efficient's (rep)" in refusal(path, small_efficient())


# Whole modules


def test_a_stripped_file_of_a_pickled_module_in_half_precision(saved, monkeypatch):
    """As released: classes of the package `yolov6`, which are not here when the file is read."""
    source = filled(small_efficient(expansion=1 / 2))
    made = {name: type(name, (nn.Module,), {"__module__": "yolov6.models.yolo"}) for name in ("Model", "Part")}
    with monkeypatch.context() as patch:
        for name in ("yolov6", "yolov6.models", "yolov6.models.yolo"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        for name, kind in made.items():
            setattr(sys.modules["yolov6.models.yolo"], name, kind)
        root = made["Model"]()
        for name, tensor in state(source, "2.0 training").items():
            *path, last = name.split(".")
            here = root
            for part in path:
                if part not in here._modules:
                    here.add_module(part, made["Part"]())
                here = here._modules[part]
            if name.endswith(("alpha", "proj")):
                here.register_parameter(last, nn.Parameter(tensor))
            else:
                here.register_buffer(last, tensor)
        path = saved({"model": root.half(), "ema": None, "updates": None, "optimizer": None, "epoch": 299})
    model = create_model(source.spec, 3)
    report = model.load_official(path)
    assert report.entry == "model" and report.complete and not report.left and not report.untouched
    ours, theirs = model.state_dict(), source.state_dict()
    assert all(torch.equal(value.half(), theirs[name].half()) for name, value in ours.items())


def test_no_published_file_has_objectness_so_its_outputs_stay_fresh(saved):
    source = filled(small_efficient())
    model = create_model(small_efficient(objectness=True), 3)
    report = model.load_official(saved({"model": state(source, "2.0 training")}))
    assert report.untouched and all(".object_output." in name for name in report.untouched)
    theirs = source.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items() if name in theirs)


# Damage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detect.cls_preds.1.bias": torch.zeros(5)}, "detect.cls_preds.1.bias: its levels have 3 and 5 classes"),
        ({"detect.cls_preds.0.bias": torch.zeros(0)}, "detect.cls_preds.0.bias: a bias for each class is expected"),
        ({"detect.proj": torch.ones(17)}, "detect.proj: 0, 1, ..., 16 are expected"),
        ({"detect.stems.1.conv.weight": torch.zeros(8, 8, 1, 1)}, "detect.stems.1.conv.weight: (8, 8, 1, 1)"),
        ({"backbone.ERBlock_2.1.block.3.rbr_dense.conv.weight": torch.zeros(8, 8, 3, 3)}, "block.3"),
        ({"detect.reg_preds.2.weight": torch.zeros(68, 16, 1, 1)}, "detect.reg_preds.2.weight"),
        ({"detect.cls_preds.1.bias": torch.zeros(3, dtype=torch.int64)}, "floating-point values are expected, got"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files_are_one_clear_line(saved, change, message):
    tensors = state(create_model(small_efficient(), 3), "2.0 training")
    assert message in refusal(saved({"model": {**tensors, **change}}), small_efficient())


def test_a_network_of_ones_own_without_a_place_in_the_layout(saved):
    network = small_efficient()
    path = saved({"model": state(create_model(network, 3), "2.0 training")})
    first, *others = network.backbone
    renamed = replace(network, backbone=(first, replace(others[0], name="down"), *others[1:]))
    assert "stage 'down' has no place in the published layout" in refusal(path, renamed)
