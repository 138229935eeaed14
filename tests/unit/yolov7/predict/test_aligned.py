"""Everything around a file of YOLOv9 or YOLOv6: views, tiles, rectangles, videos, cost of its own, and what a server
answers.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from small_aligned import small_aligned
from small_detector import SIDE, metadata_of, pictures, small_index
from small_efficient import small_efficient, trained_efficient

from stages.evaluate import run_evaluation
from stages.project.params import Evaluate
from stages.serving.model import DetectorModel
from yolov7.cli import main
from yolov7.data.evaluation import evaluation_batches
from yolov7.evaluate import evaluate
from yolov7.export import export_onnx
from yolov7.predict import AugmentedRuntime, Predictor, TiledPredictor, TorchRuntime, load_detector, open_onnx
from yolov7.predict.benchmark import benchmark
from yolov7.predict.runtimes import OnnxRuntime

IMAGES = pictures(6)


@pytest.fixture(scope="module", params=["aligned", "yolov6"])
def made(request):
    """Export folder and trained model of a family."""
    return tuple(request.getfixturevalue(f"{kind}_{request.param}") for kind in ("exported", "trained"))


@pytest.fixture(scope="module")
def folder(made):
    return made[0]


@pytest.fixture(scope="module")
def runtime(folder):
    return open_onnx(folder / "model.onnx")


@pytest.fixture(scope="module")
def index(tmp_path_factory, made):
    folder, trained = made
    found = load_detector(folder, confidence=0.2).predict(IMAGES)
    return small_index(tmp_path_factory.mktemp("index"), found, IMAGES, metadata_of(trained))


def test_mirrored_views_come_back_with_left_and_right_exchanged(runtime):
    batch = torch.from_numpy(IMAGES[0]).permute(2, 0, 1)[None].contiguous()
    seen = AugmentedRuntime(runtime, "flip").decoded(batch)
    plain, mirrored = runtime.decoded(batch), runtime.decoded(batch.flip(3))
    count = plain.shape[1]
    assert seen.shape == (1, 2 * count, 4 + 3)
    torch.testing.assert_close(seen[:, :count], plain)
    x1, y1, x2, y2 = mirrored[..., :4].unbind(-1)
    torch.testing.assert_close(seen[:, count:, :4], torch.stack((SIDE - x2, y1, SIDE - x1, y2), -1))
    torch.testing.assert_close(seen[:, count:, 4:], mirrored[..., 4:])


def test_views_tiles_and_rectangles_find_the_same_objects_or_more(folder):
    image = cv2.copyMakeBorder(IMAGES[1], 0, 16, 0, 0, cv2.BORDER_REPLICATE)  # 96 x 120: wider than the input
    (whole,) = load_detector(folder, confidence=0.2).predict(image)
    tiled = TiledPredictor(load_detector(folder, confidence=0.2), overlap=0.25).predict(image)[0]
    (rectangle,) = load_detector(folder, confidence=0.2, rectangular=True).predict(image)
    (views,) = load_detector(folder, confidence=0.2, augment="all").predict(image)
    for found in (whole, tiled, rectangle, views):
        assert len(found) > 0 and 0.2 < float(found.scores.min()) <= float(found.scores.max()) <= 1
        positive = (found.boxes[:, 2:] > found.boxes[:, :2]).all(1)  # but one in the grey is clipped to nothing
        assert positive.float().mean() > 0.9 and (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
        assert found.boxes.min() >= 0 and found.boxes[:, 2].max() <= 120 and found.boxes[:, 3].max() <= 96


def test_the_command_detects_in_a_video_and_writes_tables(folder, tmp_path, capsys):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (SIDE, SIDE))
    for image in IMAGES[:3]:
        writer.write(cv2.resize(image, (SIDE, SIDE)))
    writer.release()
    source, out = str(tmp_path / "v.avi"), tmp_path / "out"
    common = ["predict", source, "--model", str(folder), "--confidence", "0.2", "-o", str(out)]
    for views in (["--augment", "scales"], ["--tiles", "0.2"]):
        assert main([*common, *views, "--also", "csv", "yolo"]) == 0
        told = capsys.readouterr()
        assert "3 images" in told.out and "labelling tools" not in told.err
        found = json.loads((out / "detections.json").read_text())["annotations"]
        assert len(found) > 0 and len((out / "detections.csv").read_text().splitlines()) == 1 + len(found)
    assert main([*common, "--also", "cvat"]) == 0 and (out / "cvat.xml").is_file()
    assert (
        f"labelling tools need pictures without boxes, and {out / 'v.avi'} holds drawn ones" in capsys.readouterr().err
    )
    assert (out / "v.avi/000000.jpg").is_file()


def test_published_settings_reach_the_evaluation(runtime, index, monkeypatch):
    """IoU 0.7, rectangular batches with half a stride to spare (reference sheet: yolov9-training, sections 4, 8)."""
    shapes, decoded = [], OnnxRuntime.decoded
    monkeypatch.setattr(
        OnnxRuntime, "decoded", lambda self, images: shapes.append(tuple(images.shape)) or decoded(self, images)
    )
    published = Evaluate(iou=0.7, rectangular=True, batch_size=2)
    result = run_evaluation(Predictor(runtime), index, published)
    assert published.conditions == "confidence=0.001 iou=0.7 max_detections=300 rectangular=True"
    # height / width of the pairs, sorted: 0.37 and 0.60, 0.67 and 0.79, 1.0 and 2.1; strides 8 and 32, side 96
    heights, width = {8: ((64, 80, 104), 104), 32: ((96, 96, 128), 128)}[runtime.stride]
    assert shapes == [(2, 3, height, width) for height in heights]
    usual = evaluate(runtime, index, rectangular=True, batch_size=2)
    scores, lower = (np.sort([one["score"] for one in found.results]) for found in (result, usual))
    assert (scores >= lower).all() and scores.sum() > lower.sum(), "a higher IoU suppresses less; 300 are kept"
    assert result.metrics["AP"] > 0


def test_one_class_counts_its_probability(made, tmp_path):
    model = {"small-aligned": small_aligned, "small-efficient": small_yolov6}[made[1].variant](1)
    runtime = TorchRuntime(model.reparameterize(), metadata_of(model))
    found = Predictor(runtime, confidence=0.05, iou=0.5, max_detections=8).predict(IMAGES[:3])
    index = small_index(tmp_path, found, IMAGES[:3], runtime.metadata)
    result = evaluate(runtime, index)
    batches = evaluation_batches(index, image_size=SIDE, batch_size=1, stride=runtime.stride)
    best = max(float(runtime.decoded(batch.images)[..., 4].max()) for batch in batches)
    assert max(record["score"] for record in result.results) == pytest.approx(best, abs=1e-6)
    assert result.metrics["AP"] > 0


def small_yolov6(num_classes):
    return trained_efficient(small_efficient(), num_classes)


def test_fixed_sides_that_differ_are_evaluated_and_timed_in_them(made, index, tmp_path):
    _, trained = made
    metadata, file, sides = metadata_of(trained), tmp_path / "fixed.onnx", (64, 96)
    export_onnx(trained, file, metadata=metadata, image_size=sides, dynamic=False)
    detector = load_detector(file, confidence=0.001, iou=0.65, max_detections=300)
    result = evaluate(detector, index, batch_size=3)
    bare = TorchRuntime(trained.reparameterize(), metadata)
    bare.input_shape = (None, *sides)
    assert result.metrics == pytest.approx(evaluate(bare, index, batch_size=2).metrics, abs=1e-6)
    assert result.metrics["AP"] > 0 and len(result.results) > 100
    assert benchmark(detector, IMAGES[:1], rounds=1, warmup=0).image_size == sides


def test_a_benchmark_counts_its_time(runtime):
    timed = benchmark(Predictor(runtime), IMAGES[:2], rounds=2, warmup=1)
    assert timed.rounds == 2 and all(timing.median > 0 for timing in timed.timings)


def test_the_server_answers_what_the_predictor_finds(folder):
    model = DetectorModel()
    model.load_context(SimpleNamespace(artifacts={"export": str(folder)}))
    cells = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in IMAGES[:3]]
    rows = model.predict(None, pd.DataFrame({"image": cells}), {"confidence": 0.2})
    found = load_detector(folder, confidence=0.2).predict(IMAGES[:3])
    assert len(rows) == sum(map(len, found)) > 5
    boxes = np.concatenate([one.boxes.numpy() for one in found])
    np.testing.assert_allclose(rows[["x1", "y1", "x2", "y2"]].to_numpy(), boxes, atol=1e-2)
    np.testing.assert_allclose(rows["score"], np.concatenate([one.scores.numpy() for one in found]), atol=1e-5)
