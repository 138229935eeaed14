"""Verification passes a good export, and sees every way of breaking one."""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
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
)
from onnx import helper, numpy_helper
from small_detector import metadata_of, pictures, small_detector

import stages.export as stage
from stages.project.params import Export, Params
from yolov7.artefact import FILE_OF_FORMAT, check_folder
from yolov7.detections import Detections
from yolov7.errors import ModelError
from yolov7.evaluate import evaluate
from yolov7.export import VerifyLimits, verify
from yolov7.export.matching import agreement
from yolov7.files import write_json
from yolov7.model import save_checkpoint
from yolov7.nms import Thresholds
from yolov7.predict import load_detector


def check(exported: Path, trained, index, *, deploy=None, decoded=None, with_nms=None):
    """Verify the export, with some of its files replaced."""
    deploy, decoded = deploy or exported / "model.safetensors", decoded or exported / "model.onnx"
    with_nms = with_nms or exported / "model-nms.onnx"
    return verify(trained, deploy, decoded, with_nms, index, metadata=metadata_of(trained), batch_size=4)


def test_a_good_export_passes_and_the_figures_mean_something(exported, trained, index, tmp_path):
    report = check(exported, trained, index)
    assert report.passed, report.problems
    said = report.to_dict()
    assert set(said["forms"]) == {"deploy", "onnx", "onnx-nms"} and said["passed"] is True
    assert said["images"] == [500, 501, 502, 503, 504, 505]
    for name, form in said["forms"].items():
        assert form["passed"] and form["problems"] == []
        assert form["detections"]["matched"] >= 60 and form["detections"]["unmatched_share"] == 0
        assert 0.1 < form["ap"] < 0.9  # AP that could change if detections did
        if name != "onnx-nms":
            assert 0 < form["max_raw_difference"] < 1e-5
            assert 0 < form["max_box_difference"] < 1e-2
    write_json(tmp_path / "verify.json", said)
    assert json.loads((tmp_path / "verify.json").read_text())["forms"]["onnx"]["passed"] is True


def test_the_stage_tells_the_figures_in_model_json(exported, trained, index, tmp_path, monkeypatch):
    """Around the export itself, which is made already."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, "models/small/export")
    save_checkpoint(Path("models/small/train/best.safetensors"), trained, metadata_of(trained))
    # MLflow was away when the training ended; the run has been delivered since.
    write_json("models/small/train/run.json", {"run_id": None, "variant": "small", "fingerprint": "f1"})
    write_json(".state/mlflow/small-f1.json", {"run_id": "r1"})
    description = json.loads((exported / "model.json").read_text())
    for name, answer in {
        "dataset_document": lambda: {"sha256": "d" * 64},
        "open_index": lambda split: index,
        "export_folder": lambda *_, **more: copy.deepcopy(description) | more["extra"],
        "dvc_hash": lambda path: "h",
        "git_revision": lambda: "abc",
    }.items():
        monkeypatch.setattr(stage, name, answer)
    settings = Export(confidence=0.2, iou=0.5, max_detections=20, formats=("openvino", "onnx-raw"), verify_images=4)
    stage.main(Params(export=settings), argparse.Namespace(variant="small"))
    folder = Path("models/small/export")
    said, verified = (json.loads((folder / name).read_text()) for name in ("model.json", "verify.json"))
    assert said["figures"]["validation_images"] == 4 and (said["run_id"], said["training"]) == ("r1", "f1")
    assert set(said["figures"]["forms"]) == {"deploy", "onnx", "onnx-nms", "openvino", "onnx-raw"}
    for name, form in said["figures"]["forms"].items():
        assert form["AP"] == verified["forms"][name]["ap"] > 0 and form["passed"]
    assert load_detector(folder).predict(pictures(1))
    later = {"verify.json", "metrics.json", "MODEL_CARD.md"}
    assert said["files"].keys() == description["files"].keys() | later == check_folder(folder).keys()
    for name in later:
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept.replace(b"0", b"9", 1))
        with pytest.raises(ModelError, match=name):
            check_folder(folder)
        (folder / name).write_bytes(kept)


def test_a_file_with_the_suppression_inside_is_evaluated_with_its_own_thresholds(exported, trained, index):
    form = next(form for form in check(exported, trained, index).forms if form.name == "onnx-nms")
    measured = evaluate(load_detector(exported / "model-nms.onnx"), index, confidence=0.9, batch_size=3)
    assert measured.metrics["AP"] == pytest.approx(form.ap, abs=1e-9) and measured.metrics["AP"] > 0
    assert min(result["score"] for result in measured.results) < 0.9


def test_some_images_only(exported, trained, index):
    files = (exported / "model.safetensors", exported / "model.onnx", exported / "model-nms.onnx")
    report = verify(trained, *files, index, metadata=metadata_of(trained), images=[4, 1])
    assert report.passed and report.images == [504, 501]


def other_class_order(graph):
    """The class outputs of every level in another order, as a class list sorted by name would make them."""
    for node in [n for n in graph.graph.node if n.op_type == "Conv"]:
        for name in node.input[1:]:
            tensor = next(t for t in graph.graph.initializer if t.name == name)
            values = numpy_helper.to_array(tensor)
            if values.shape[0] == 3 * 8:
                parts = values.reshape(3, 8, *values.shape[1:])
                parts = np.concatenate([parts[:, :5], parts[:, [6, 5, 7]]], axis=1)
                tensor.CopyFrom(numpy_helper.from_array(parts.reshape(values.shape), name))


@pytest.mark.parametrize(
    "change", [swapped_channels, scaled_again, standardised, other_class_order, missing_fold, nan_in_a_weight]
)
def test_a_broken_graph_is_caught_with_and_without_suppression(exported, trained, index, tmp_path, change):
    decoded = broken(exported / "model.onnx", tmp_path / "m.onnx", change)
    with_nms = broken(exported / "model-nms.onnx", tmp_path / "n.onnx", change)
    report = check(exported, trained, index, decoded=decoded, with_nms=with_nms)
    assert not report.passed
    failed = {form.name: form.problems for form in report.forms if not form.passed}
    assert set(failed) == {"onnx", "onnx-nms"}
    assert any("probability difference" in problem for problem in failed["onnx"])
    assert any("unmatched" in problem for problem in failed["onnx-nms"])


@pytest.mark.parametrize("change", [None, swapped_channels, standardised])
def test_openvino_and_int8_have_limits_that_pass_good_files_and_no_broken_ones(
    exported, trained, index, tmp_path, change
):
    decoded = (
        exported / "model.onnx" if change is None else broken(exported / "model.onnx", tmp_path / "m.onnx", change)
    )
    files = (exported / "model.safetensors", exported / "model.onnx", exported / "model-nms.onnx")
    more = further_files(decoded, tmp_path, index, layers=5)  # of six: random weights cost too much
    report = verify(trained, *files, index, metadata=metadata_of(trained), more=more)
    failed = {form.name: form.problems for form in report.forms if not form.passed}
    assert set(failed) == (set() if change is None else set(more)), failed
    if change is not None:
        assert all(any("unmatched" in problem for problem in problems) for problems in failed.values())


def test_raw_maps_are_verified_by_tensor_and_by_detection(exported, trained, index, tmp_path):
    metadata, raw = metadata_of(trained), exported / FILE_OF_FORMAT["onnx-raw"]
    assert "optional/model-raw.onnx" in json.loads((exported / "model.json").read_text())["files"]
    files = (exported / "model.safetensors", exported / "model.onnx", exported / "model-nms.onnx")
    for file, good in ((raw, True), (broken(raw, tmp_path / "broken.onnx", missing_fold), False)):
        report = verify(trained, *files, index, metadata=metadata, more={"onnx-raw": (file, VerifyLimits())})
        assert report.passed == good, report.problems
        form = report.forms[-1]
        assert form.name == "onnx-raw" and (form.max_raw_difference < 1e-5) == good
        assert good or any("probability difference" in problem for problem in form.problems)


def test_a_missing_fold_in_the_checkpoint_is_caught(exported, trained, index, tmp_path):
    for ending in ("running_mean", ".implicit", "pointwise.bn.weight"):
        unfolded = copy.deepcopy(trained)
        tensors = [tensor for key, tensor in unfolded.state_dict().items() if key.endswith(ending)]
        assert tensors
        with torch.no_grad():
            for tensor in tensors:
                tensor.fill_(0.0)
        deploy = unfolded.reparameterize()
        save_checkpoint(tmp_path / "m.safetensors", deploy, metadata_of(deploy))
        report = check(exported, trained, index, deploy=tmp_path / "m.safetensors")
        assert [form.name for form in report.forms if not form.passed] == ["deploy"], ending


def test_names_in_another_order_are_caught_though_every_number_agrees(exported, trained, index, tmp_path):
    deploy = trained.reparameterize()
    metadata = replace(metadata_of(deploy), class_names=("kind 1", "kind 0", "kind 2"))
    save_checkpoint(tmp_path / "m.safetensors", deploy, metadata)
    report = check(exported, trained, index, deploy=tmp_path / "m.safetensors")
    assert not report.passed
    assert report.problems == [
        "deploy: class_names is ('kind 1', 'kind 0', 'kind 2'), trained was ('kind 0', 'kind 1', 'kind 2')"
    ]


@pytest.mark.parametrize(("constant", "value"), [("nms/iou", 0.99), ("nms/confidence", 0.5), ("nms/max_detections", 5)])
def test_a_suppression_that_contradicts_its_metadata_is_caught(exported, trained, index, tmp_path, constant, value):
    def change(graph):
        tensor = next(t for t in graph.graph.initializer if t.name == constant)
        tensor.CopyFrom(numpy_helper.from_array(np.array([value], numpy_helper.to_array(tensor).dtype), constant))

    with_nms = broken(exported / "model-nms.onnx", tmp_path / "n.onnx", change)
    report = check(exported, trained, index, with_nms=with_nms)
    assert [form.name for form in report.forms if not form.passed] == ["onnx-nms"]
    assert any("unmatched" in problem for problem in report.problems)


def test_boxes_beside_their_places_are_no_ties(exported, trained, index, tmp_path):
    """Each overlaps its counterpart as a rival in the suppression would, and has its score."""
    moved = np.eye(7, dtype=np.float32)
    for low, high in ((1, 3), (2, 4)):  # a tenth of the box's sides to the right and down
        moved[low, low], moved[high, low], moved[high, high], moved[low, high] = 0.9, 0.1, 1.1, -0.1

    def change(graph):
        graph.graph.initializer.append(numpy_helper.from_array(moved, "moved"))
        for node in graph.graph.node:
            node.output[:] = ["in_place" if name == "detections" else name for name in node.output]
        graph.graph.node.append(helper.make_node("MatMul", ["in_place", "moved"], ["detections"]))

    report = check(exported, trained, index, with_nms=broken(exported / "model-nms.onnx", tmp_path / "n.onnx", change))
    assert [form.name for form in report.forms if not form.passed] == ["onnx-nms"]
    assert report.forms[-1].detections.unmatched_share < 0.01, "or this test shows nothing"
    assert any("share of detections on the edge" in problem for problem in report.problems)


def test_shifted_boxes_are_on_the_edge_and_too_many_of_them():
    ours = [detections((0, 0, 40, 40, 0.5 + number / 200, 0)) for number in range(50)]
    theirs = [Detections(one.boxes + torch.tensor([8, 0, 8, 0]), one.scores, one.labels) for one in ours]
    result = agreement(ours, theirs, thresholds=Thresholds(0.25, 0.45), score_tolerance=1e-3)
    assert (result.matched, result.unmatched_share, result.edge_share) == (0, 0, 1)
    few = agreement(ours[:2], theirs[:2], thresholds=Thresholds(0.25, 0.45), score_tolerance=1e-3)
    assert (few.on_the_edge, few.edge_share) == (4, 0)


def test_limits_decide(exported, trained, index):
    files = (exported / "model.safetensors", exported / "model.onnx", exported / "model-nms.onnx")
    strict = VerifyLimits(raw_difference=1e-12, box_difference=1e-9)
    report = verify(trained, *files, index, metadata=metadata_of(trained), limits=strict)
    assert not report.passed
    assert any("exceeds 1e-12" in problem for problem in report.problems)


def test_a_model_of_other_classes_is_refused(exported, index):
    other = small_detector(2)
    files = (exported / "model.safetensors", exported / "model.onnx", exported / "model-nms.onnx")
    with pytest.raises(ModelError, match="2 classes, but the data set"):
        verify(other, *files, index, metadata=metadata_of(other))


def detections(*rows):
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(values[:, :4], values[:, 4], values[:, 5].long())


def test_agreement_counts_pairs_edges_and_strangers():
    ours = detections((0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.8, 1), (60, 60, 90, 90, 0.2501, 1))
    theirs = detections((0, 0, 10, 10.1, 0.9002, 0), (20, 20, 40, 40, 0.8, 2))
    result = agreement([ours], [theirs], thresholds=Thresholds(0.25, 0.45), score_tolerance=1e-3)
    assert (result.expected, result.found, result.matched, result.on_the_edge) == (3, 2, 1, 1)
    assert result.unmatched_share == pytest.approx(2 / 5)  # the box whose class is another, on both sides
    assert result.max_score_difference == pytest.approx(0.0002, abs=1e-6)
    assert result.max_box_difference == pytest.approx(0.1, abs=1e-5)
    assert result.min_iou == pytest.approx(10 / 10.1, abs=1e-5)


def test_a_near_tie_in_the_suppression_is_not_a_disagreement():
    # Either of two overlapping boxes of equal score may survive; which one is a matter of the last bit.
    ours = detections((0, 0, 10, 10, 0.7000001, 0))
    theirs = detections((0, 2, 10, 12, 0.7000002, 0))
    assert agreement([ours], [theirs], thresholds=Thresholds(0.25, 0.45), score_tolerance=1e-3).unmatched_share == 0
    sure = detections((0, 2, 10, 12, 0.8, 0))
    assert agreement([ours], [sure], thresholds=Thresholds(0.25, 0.45), score_tolerance=1e-3).unmatched_share == 1


def test_nothing_on_either_side_agrees():
    result = agreement([detections()], [detections()], thresholds=Thresholds(0.25, 0.45), score_tolerance=1e-3)
    assert result.unmatched_share == 0 and result.min_iou == 1
