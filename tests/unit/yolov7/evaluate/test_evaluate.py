"""Evaluation: settings as published, category ids mapped, wrong inputs refused, curves that add up to the AP."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_detector import metadata_of, pictures, small_detector, small_index

from yolov7.data.evaluation import evaluation_batches
from yolov7.errors import ConfigError, DataError, ModelError
from yolov7.evaluate import METRICS, evaluate, evaluate_detections, ground_truth, write_curves, write_results
from yolov7.export import export_onnx
from yolov7.letterbox import Border
from yolov7.model import create_model
from yolov7.nms import Thresholds, select
from yolov7.predict import Predictor, TorchRuntime, benchmark, load_detector

IMAGES = pictures(7)


@pytest.fixture(scope="module")
def runtime(trained):
    return TorchRuntime(trained.reparameterize(), metadata_of(trained))


@pytest.fixture(scope="module")
def index(tmp_path_factory, runtime):
    found = Predictor(runtime, confidence=0.3, iou=0.5, max_detections=12).predict(IMAGES)
    return small_index(tmp_path_factory.mktemp("evaluate"), found, IMAGES, runtime.metadata)


def test_figures_are_those_of_the_detections_the_settings_give(runtime, index):
    result = evaluate(runtime, index, batch_size=3)
    assert tuple(result.metrics) == METRICS
    assert 0.1 < result.metrics["AP"] < 0.9
    expected = []
    for batch in evaluation_batches(index, image_size=96, batch_size=1, stride=8):
        (found,) = select(
            runtime.decoded(batch.images), Thresholds(0.001, 0.65), scoring=runtime.scoring, multi_label=True
        )
        assert len(found) <= 300
        boxes = batch.to_original(0, found.boxes.numpy())
        for box, score, label in zip(boxes, found.scores, found.labels, strict=True):
            left, top, right, bottom = box.tolist()
            record = {"image_id": batch.image_ids[0], "category_id": 10 + int(label), "score": float(score)}
            expected.append(record | {"bbox": [left, top, right - left, bottom - top]})
    assert len(result.results) == len(expected)
    assert {record["category_id"] for record in result.results} == {10, 11, 12}
    again = evaluate_detections(ground_truth(index), expected)
    assert result.metrics == pytest.approx(again.metrics, abs=1e-6)
    assert result.per_class == pytest.approx(again.per_class, abs=1e-6)


def test_batch_size_workers_and_runtime_do_not_matter(exported, runtime, index):
    from yolov7.predict import load_detector

    alone = evaluate(runtime, index, batch_size=1)
    seen = []
    other = evaluate(
        load_detector(exported / "model.onnx"), index, batch_size=4, workers=1, progress=lambda *done: seen.append(done)
    )
    assert other.metrics == pytest.approx(alone.metrics, abs=1e-3)
    assert len(other.results) == pytest.approx(len(alone.results), rel=0.01)
    assert seen == [(4, 7), (7, 7)]


def test_rectangular_evaluation_sees_every_image(runtime, index):
    result = evaluate(runtime, index, rectangular=True, batch_size=2)
    assert {record["image_id"] for record in result.results} == {500 + i for i in range(7)}
    assert result.metrics["AP"] == pytest.approx(evaluate(runtime, index).metrics["AP"], abs=0.3)


def test_prediction_prepares_images_as_evaluation_does(runtime, index):
    """The figures are about what `predict` gives: same pixels into the network, same way back."""
    predictor = Predictor(runtime)
    for image, batch in zip(IMAGES, batches_of(index), strict=True):
        prepared = predictor.prepare(image)
        np.testing.assert_array_equal(prepared.image.transpose(2, 0, 1), batch.images[0].numpy())
        assert prepared.scale == tuple(batch.scales[0]) and prepared.pad == tuple(batch.pads[0])
        assert prepared.size == tuple(batch.original_sizes[0])


@pytest.mark.parametrize("rectangular", [False, True])
def test_prediction_with_a_border_finds_what_was_measured_with_it(runtime, index, rectangular):
    predictor = Predictor(runtime, confidence=0.2, border=10, rectangular=rectangular)
    shapes = [predictor.prepare(image).image.shape for image in IMAGES]
    assert all(shape == (96, 96, 3) for shape in shapes) is not rectangular
    for image, batch in zip(IMAGES, batches_of(index, border=Border(10)), strict=True):
        prepared = predictor.prepare(image)
        assert prepared.scale == pytest.approx(tuple(batch.scales[0]), abs=1e-12 if not rectangular else 0.03)
        grey = (prepared.image == 114).all(2)
        assert (~grey).any(1).sum() <= prepared.image.shape[0] - 10
        assert (~grey).any(0).sum() <= prepared.image.shape[1] - 10
        if not rectangular:
            np.testing.assert_array_equal(prepared.image.transpose(2, 0, 1), batch.images[0].numpy())
    assert sum(len(found) for found in predictor.predict(IMAGES)) > 0
    with pytest.raises(ConfigError, match="a border of 0 to 95 pixels is expected for this input, got 96"):
        Predictor(runtime, border=96)


def test_one_class_counts_objectness_alone(tmp_path):
    model = small_detector(1)
    runtime = TorchRuntime(model.reparameterize(), metadata_of(model))
    images = pictures(3)
    found = Predictor(runtime, confidence=0.2, max_detections=8).predict(images)
    index = small_index(tmp_path, found, images, runtime.metadata)
    result = evaluate(runtime, index)
    with torch.inference_mode():
        best = max(float(runtime.decoded(b.images)[..., 4].max()) for b in batches_of(index))
    assert max(record["score"] for record in result.results) == pytest.approx(best, abs=1e-6)
    assert result.metrics["AP"] > 0


def batches_of(index, **more):
    return evaluation_batches(index, image_size=96, batch_size=1, stride=8, **more)


def test_a_network_that_finds_nothing_scores_zero(index):
    model = create_model("yolov7-tiny", 3).eval()
    metadata = replace(metadata_of(model), image_size=96)
    result = evaluate(TorchRuntime(model, metadata), index, confidence=0.99)
    assert result.results == []
    assert result.metrics["AP"] == 0 and result.metrics["AR100"] == 0
    assert set(result.per_class.values()) == {0.0}


def test_other_classes_are_refused(runtime, index):
    class Renamed:
        def __init__(self, names):
            self.metadata = replace(runtime.metadata, class_names=names)

        stride, decoded = runtime.stride, staticmethod(runtime.decoded)

    with pytest.raises(ModelError, match="class 0 is 'kind 1', but 'kind 0' in the data set"):
        evaluate(Renamed(("kind 1", "kind 0", "kind 2")), index)
    two = small_detector(2)
    with pytest.raises(ModelError, match=r"2 classes, but the data set .* has 3"):
        evaluate(TorchRuntime(two, metadata_of(two)), index)


GOOD = {"image_id": 500, "category_id": 10, "bbox": [1.0, 1.0, 5.0, 5.0], "score": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 7}, r"detection 2: image 7 is not in the ground truth"),
        ({"category_id": 0}, r"detection 2: category 0 .* class numbers written in place of category ids"),
        ({"score": float("nan")}, r"detection 2: .* finite"),
        ({"bbox": [0.0, 0.0, float("inf"), 1.0]}, r"detection 2: .* finite"),
        ({"bbox": [0.0, 0.0, 1.0]}, r"detection 2: .* finite"),
    ],
)
def test_results_that_cannot_be_scored_are_refused(index, change, message):
    with pytest.raises(DataError, match=message):
        evaluate_detections(index, [GOOD, GOOD | change])


def test_evaluation_prints_nothing(index, capsys):
    evaluate_detections(index, [GOOD])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_no_results_and_no_truth(index):
    assert evaluate_detections(index, []).metrics["AP"] == 0
    empty = {"images": [{"id": 1, "width": 9, "height": 9}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    scores = evaluate_detections(empty, [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}])
    assert set(scores.metrics.values()) == {-1.0} and scores.per_class == {"a": -1.0}
    assert np.isnan(scores.curves.precision).all() and list(scores.curves.rows()) == []


def test_a_subset_of_an_index_is_scored_by_itself(runtime, index):
    result = evaluate(runtime, index)
    part = [record for record in result.results if record["image_id"] in (502, 505)]
    scores = evaluate_detections(ground_truth(index, [2, 5]), part)
    boxes = sum(len(index.boxes(i)) for i in (2, 5))
    assert boxes > 0 and 0 < scores.metrics["AP"] <= 1
    assert scores.metrics != result.metrics


def test_written_results_are_rounded_and_read_back(tmp_path):
    write_results(tmp_path / "results.json", [GOOD | {"bbox": [1 / 3, 2.0, 5.12345, 6.0], "score": 1 / 7}])
    (record,) = json.loads((tmp_path / "results.json").read_text())
    assert record == {"image_id": 500, "category_id": 10, "bbox": [0.333, 2.0, 5.123, 6.0], "score": 0.14286}
    write_results(tmp_path / "none.json", [])
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_written_curves_average_to_the_ap(tmp_path, runtime, index):
    result = evaluate(runtime, index)
    write_curves(tmp_path / "curves.csv", result.curves)
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["class"] for row in rows))
    assert names == ["all", "kind 0", "kind 1", "kind 2"] and len(rows) == 4 * 101
    for name, expected in {"all": result.metrics["AP"], **result.per_class}.items():
        points = [float(row["precision"]) for row in rows if row["class"] == name]
        assert np.mean(points) == pytest.approx(expected, abs=1e-5)
    curve = [float(row["precision50"]) for row in rows if row["class"] == "all"]
    assert curve == sorted(curve, reverse=True) and np.mean(curve) == pytest.approx(result.metrics["AP50"], abs=1e-5)
    scores = result.curves.score50
    assert (np.diff(scores[:, scores.min(axis=0) > 0], axis=1) <= 0).all()


@pytest.mark.parametrize("sides", [(64, 96), (96, 48)])
def test_a_file_whose_sides_are_fixed_and_differ_is_evaluated_and_timed_in_them(trained, index, tmp_path, sides):
    file = tmp_path / "fixed.onnx"
    export_onnx(trained, file, metadata=metadata_of(trained), image_size=sides, dynamic=False)
    detector = load_detector(file, confidence=0.001, iou=0.65, max_detections=300)
    prepared = [detector.prepare(image).image for image in IMAGES]  # as prediction has it
    batches = list(evaluation_batches(index, image_size=sides, batch_size=3, stride=8))
    seen = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy()
    assert all(np.array_equal(one, other) for one, other in zip(seen, prepared, strict=True))
    result = evaluate(detector, index, batch_size=3)
    bare = TorchRuntime(trained.reparameterize(), metadata_of(trained))
    bare.input_shape = (None, *sides)
    assert result.metrics == pytest.approx(evaluate(bare, index, batch_size=2).metrics, abs=1e-6)
    assert result.metrics["AP"] > 0 and len(result.results) > 100
    for wrong in ({"image_size": 96}, {"rectangular": True}):
        with pytest.raises(ModelError, match=rf"exported for images of {sides[0]} x {sides[1]}, not for"):
            evaluate(detector, index, **wrong)


def test_the_reference_of_a_benchmark_sees_the_same_input(trained, tmp_path, monkeypatch):
    file = tmp_path / "fixed.onnx"
    export_onnx(trained, file, metadata=metadata_of(trained), image_size=(64, 96), dynamic=False)
    monkeypatch.setattr(benchmark, "create_model", lambda variant, classes: small_detector(classes))
    compared = load_detector(file)
    other = benchmark.reference(compared)
    assert other.canvas == compared.canvas == (64, 96)
    results = benchmark.compare({"training form": other, "onnx": compared}, IMAGES[:2], rounds=1, warmup=0)
    assert [result.image_size for result in results.values()] == [(64, 96)] * 2
