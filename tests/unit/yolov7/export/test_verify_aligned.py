"""Verification sees every way of breaking a YOLOv9, and says which outputs are off."""

from __future__ import annotations

import copy

import pytest
import torch
from broken_graphs import (
    broken,
    further_files,
    missing_fold,
    nan_in_a_weight,
    scaled_again,
    standardised,
    swapped_channels,
    with_weights_of,
)
from small_detector import metadata_of, pictures, small_index

from yolov7.artefact import FILE_OF_FORMAT
from yolov7.export import FLOAT16, VerifyLimits, verify
from yolov7.model import save_checkpoint
from yolov7.predict import Predictor, TorchRuntime

BOXES, SCORES = "(x1, y1, x2, y2)", "('kind 0', 'kind 1', 'kind 2')"


@pytest.fixture(scope="module")
def index(tmp_path_factory, trained_aligned):
    metadata, images = metadata_of(trained_aligned), pictures(6)
    runtime = TorchRuntime(trained_aligned, metadata)
    found = Predictor(runtime, confidence=0.2, iou=0.5, max_detections=12).predict(images)
    return small_index(tmp_path_factory.mktemp("index"), found, images, metadata)


@pytest.fixture(scope="module")
def deploy(trained_aligned):
    return trained_aligned.reparameterize()


def files_of(folder):
    return folder / "model.safetensors", folder / "model.onnx", folder / "model-nms.onnx"


def test_a_good_export_passes_in_every_form(exported_aligned, trained_aligned, index):
    limits = {"openvino": VerifyLimits(), "openvino-float16": FLOAT16, "onnx-raw": VerifyLimits()}
    more = {name: (exported_aligned / FILE_OF_FORMAT[name], held_to) for name, held_to in limits.items()}
    report = verify(
        trained_aligned, *files_of(exported_aligned), index, metadata=metadata_of(trained_aligned), more=more
    )
    assert report.passed, report.problems
    for form in report.forms:
        assert form.detections.matched >= 40 and 0.1 < form.ap < 0.9  # AP that could change if detections did
        if form.limits == VerifyLimits() and form.name != "onnx-nms":
            assert 0 < form.max_raw_difference < 1e-5 and 0 < form.max_box_difference < 1e-2


def sides(model, order):
    """The sides of the distributions in another order than left, top, right, bottom."""
    for branch in model.head.lead:
        convolution = branch.box[-1].conv
        for tensor in (convolution.weight, convolution.bias):
            tensor.copy_(tensor.unflatten(0, (4, 16))[list(order)].flatten(0, 1))


def left_and_right_swapped(model):
    sides(model, (2, 1, 0, 3))


def x_and_y_swapped(model):
    sides(model, (1, 0, 3, 2))


def bins_shuffled(model):
    values = model.head.lead_bins.values
    values.copy_(values[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))])


def bins_off_by_one(model):
    model.head.lead_bins.values += 1


def classes_in_another_order(model):
    for branch in model.head.lead:
        convolution = branch.classes[-1].conv
        for tensor in (convolution.weight, convolution.bias):
            tensor.copy_(tensor[[1, 0, 2]])


BREAKS = [
    (left_and_right_swapped, "(x1, x2)", None),
    (x_and_y_swapped, BOXES, None),
    (bins_shuffled, BOXES, None),
    (bins_off_by_one, BOXES, None),
    (classes_in_another_order, None, "('kind 0', 'kind 1')"),
]


def assert_named(problems, boxes, scores):
    """The problems name these columns of the output and no others."""
    for what, columns in (("box difference in pixels", boxes), ("probability difference", scores)):
        said = [problem for problem in problems if problem.startswith(what + " (")]
        assert [problem.startswith(f"{what} {columns} ") for problem in said] == ([] if columns is None else [True])


@pytest.mark.parametrize(("change", "boxes", "scores"), BREAKS)
def test_broken_weights_are_caught_in_every_file_by_tensor_detection_and_ap(
    exported_aligned, trained_aligned, deploy, index, tmp_path, change, boxes, scores
):
    bad = copy.deepcopy(deploy)
    with torch.no_grad():
        change(bad)
    save_checkpoint(tmp_path / "m.safetensors", bad, metadata_of(bad))
    graphs = [
        broken(file, tmp_path / file.name, lambda graph: with_weights_of(graph, deploy, bad))
        for file in files_of(exported_aligned)[1:]
    ]
    report = verify(trained_aligned, tmp_path / "m.safetensors", *graphs, index, metadata=metadata_of(trained_aligned))
    problems = {form.name: form.problems for form in report.forms if not form.passed}
    assert problems.keys() == {"deploy", "onnx", "onnx-nms"}
    for name in ("deploy", "onnx"):
        assert_named(problems[name], boxes, scores)
    for said in problems.values():
        assert any("unmatched" in problem for problem in said) and any("AP difference" in problem for problem in said)


def test_the_auxiliary_head_in_place_of_the_main_one_is_caught(
    exported_aligned, trained_aligned, deploy, index, tmp_path
):
    """As a converter that takes the first of the two outputs would do."""
    wrong = copy.deepcopy(trained_aligned)
    for lead, auxiliary in zip(wrong.head.lead, wrong.head.auxiliary, strict=True):
        lead.load_state_dict(auxiliary.state_dict())
    bad = wrong.reparameterize()
    save_checkpoint(tmp_path / "m.safetensors", bad, metadata_of(bad))
    graph = broken(
        exported_aligned / "model.onnx", tmp_path / "m.onnx", lambda graph: with_weights_of(graph, deploy, bad)
    )
    report = verify(
        trained_aligned,
        tmp_path / "m.safetensors",
        graph,
        exported_aligned / "model-nms.onnx",
        index,
        metadata=metadata_of(trained_aligned),
    )
    problems = {form.name: form.problems for form in report.forms if not form.passed}
    assert problems.keys() == {"deploy", "onnx"}
    for said in problems.values():
        assert_named(said, BOXES, SCORES)
        assert any("AP difference" in problem for problem in said)


@pytest.mark.parametrize("change", [swapped_channels, scaled_again, standardised, missing_fold, nan_in_a_weight])
def test_a_broken_graph_is_caught_with_and_without_suppression(
    exported_aligned, trained_aligned, index, tmp_path, change
):
    deploy, *graphs = files_of(exported_aligned)
    graphs = [broken(file, tmp_path / file.name, change) for file in graphs]
    report = verify(trained_aligned, deploy, *graphs, index, metadata=metadata_of(trained_aligned))
    problems = {form.name: form.problems for form in report.forms if not form.passed}
    assert problems.keys() == {"onnx", "onnx-nms"}
    assert_named(problems["onnx"], BOXES, SCORES)
    assert any("unmatched" in problem for problem in problems["onnx-nms"])


@pytest.mark.parametrize("change", [None, left_and_right_swapped, bins_shuffled])
def test_openvino_and_int8_have_limits_that_pass_good_files_and_no_broken_ones(
    exported_aligned, trained_aligned, deploy, index, tmp_path, change
):
    decoded, bad = exported_aligned / "model.onnx", copy.deepcopy(deploy)
    if change is not None:
        with torch.no_grad():
            change(bad)
        decoded = broken(decoded, tmp_path / "m.onnx", lambda graph: with_weights_of(graph, deploy, bad))
    more = further_files(decoded, tmp_path, index, layers=5)  # all layers of random weights cost too much
    report = verify(
        trained_aligned, *files_of(exported_aligned), index, metadata=metadata_of(trained_aligned), more=more
    )
    failed = {form.name: form.problems for form in report.forms if not form.passed}
    assert set(failed) == (set() if change is None else set(more)), failed
    assert all(any("unmatched" in problem for problem in problems) for problems in failed.values())
