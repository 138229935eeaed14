"""Everything around a YOLOv9's file: views, tiles, rectangles, videos, cost of its own, and what a server answers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from small_detector import SIDE, metadata_of, pictures, small_index

from stages.evaluate import run_evaluation
from stages.project.params import Evaluate
from stages.serving.model import DetectorModel
from yolov7.cli import main
from yolov7.evaluate import evaluate
from yolov7.predict import AugmentedRuntime, Predictor, TiledPredictor, load_detector, open_onnx
from yolov7.predict.benchmark import benchmark
from yolov7.predict.runtimes import OnnxRuntime

IMAGES = pictures(6)


@pytest.fixture(scope="module")
def runtime(exported_aligned):
    return open_onnx(exported_aligned / "model.onnx")


@pytest.fixture(scope="module")
def index(tmp_path_factory, exported_aligned, trained_aligned):
    found = load_detector(exported_aligned, confidence=0.2).predict(IMAGES)
    return small_index(tmp_path_factory.mktemp("index"), found, IMAGES, metadata_of(trained_aligned))


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


def test_views_tiles_and_rectangles_find_the_same_objects_or_more(exported_aligned):
    image = cv2.copyMakeBorder(IMAGES[1], 0, 16, 0, 0, cv2.BORDER_REPLICATE)  # 96 x 120: wider than the input
    (whole,) = load_detector(exported_aligned, confidence=0.2).predict(image)
    tiled = TiledPredictor(load_detector(exported_aligned, confidence=0.2), overlap=0.25).predict(image)[0]
    (rectangle,) = load_detector(exported_aligned, confidence=0.2, rectangular=True).predict(image)
    (views,) = load_detector(exported_aligned, confidence=0.2, augment="all").predict(image)
    for found in (whole, tiled, rectangle, views):
        assert len(found) > 0 and 0.2 < float(found.scores.min()) <= float(found.scores.max()) <= 1
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert found.boxes.min() >= 0 and found.boxes[:, 2].max() <= 120 and found.boxes[:, 3].max() <= 96


def test_the_command_detects_in_a_video_and_writes_tables(exported_aligned, tmp_path, capsys):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (SIDE, SIDE))
    for image in IMAGES[:3]:
        writer.write(cv2.resize(image, (SIDE, SIDE)))
    writer.release()
    source, out = str(tmp_path / "v.avi"), tmp_path / "out"
    more = ["--confidence", "0.2", "--augment", "scales", "--also", "csv", "yolo", "-o", str(out)]
    assert main(["predict", source, "--model", str(exported_aligned), *more]) == 0
    assert "3 images" in capsys.readouterr().out
    found = json.loads((out / "detections.json").read_text())["annotations"]
    assert len(found) > 0 and len((out / "detections.csv").read_text().splitlines()) == 1 + len(found)


def test_published_settings_reach_the_evaluation(runtime, index, monkeypatch):
    """IoU 0.7, rectangular batches with half a stride to spare (reference sheet: yolov9-training, sections 4, 8)."""
    shapes, decoded = [], OnnxRuntime.decoded
    monkeypatch.setattr(
        OnnxRuntime, "decoded", lambda self, images: shapes.append(tuple(images.shape)) or decoded(self, images)
    )
    published = Evaluate(iou=0.7, rectangular=True, batch_size=2)
    result = run_evaluation(Predictor(runtime), index, published)
    assert published.conditions == "confidence=0.001 iou=0.7 max_detections=300 rectangular=True"
    # height / width of the pairs, sorted: 0.37 and 0.60, 0.67 and 0.79, 1.0 and 2.1; stride 8, side 96
    assert shapes == [(2, 3, 64, 104), (2, 3, 80, 104), (2, 3, 104, 104)]
    usual = evaluate(runtime, index, rectangular=True, batch_size=2)
    scores, lower = (np.sort([one["score"] for one in found.results]) for found in (result, usual))
    assert (scores >= lower).all() and scores.sum() > lower.sum(), "a higher IoU suppresses less; 300 are kept"
    assert result.metrics["AP"] > 0


def test_a_benchmark_counts_its_time(runtime):
    timed = benchmark(Predictor(runtime), IMAGES[:2], rounds=2, warmup=1)
    assert timed.rounds == 2 and all(timing.median > 0 for timing in timed.timings)


def test_the_server_answers_what_the_predictor_finds(exported_aligned):
    model = DetectorModel()
    model.load_context(SimpleNamespace(artifacts={"export": str(exported_aligned)}))
    cells = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in IMAGES[:3]]
    rows = model.predict(None, pd.DataFrame({"image": cells}), {"confidence": 0.2})
    found = load_detector(exported_aligned, confidence=0.2).predict(IMAGES[:3])
    assert len(rows) == sum(map(len, found)) > 5
    boxes = np.concatenate([one.boxes.numpy() for one in found])
    np.testing.assert_allclose(rows[["x1", "y1", "x2", "y2"]].to_numpy(), boxes, atol=1e-2)
    np.testing.assert_allclose(rows["score"], np.concatenate([one.scores.numpy() for one in found]), atol=1e-5)
