"""Prediction: the same detections by every runtime and grouping, in pixels of the original image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_detector import SIDE, metadata_of, pictures

from yolov7.detections import Detections
from yolov7.errors import ConfigError, DataError, ModelError
from yolov7.model import save_checkpoint
from yolov7.predict import Predictor, TorchRuntime, load_detector, runtimes

IMAGES = pictures(9)


def same(ours: list[Detections], theirs: list[Detections]) -> None:
    assert [len(one) for one in ours] == [len(one) for one in theirs]
    assert sum(map(len, ours)) > 30
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-2, rtol=0)  # float32 in another order, in pixels


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, trained):
    path = tmp_path_factory.mktemp("checkpoint") / "best.safetensors"
    thresholds = {"confidence": 0.2, "iou": 0.5, "max_detections": 20}
    save_checkpoint(path, trained, metadata_of(trained, thresholds=thresholds))
    return path


def test_every_file_gives_the_same_detections(exported, checkpoint):
    reference = load_detector(checkpoint).predict(IMAGES)  # training form: re-parameterised on loading
    for path, more in (
        (exported, {}),
        (exported, {"runtime": "torch"}),
        (exported / "model.safetensors", {}),
        (exported / "model.onnx", {"threads": 1}),
        (exported / "model-nms.onnx", {}),
    ):
        same(load_detector(path, **more).predict(IMAGES), reference)


@pytest.mark.parametrize("rectangular", [False, True])
def test_any_grouping_gives_the_same_detections(exported, rectangular):
    one_by_one = load_detector(exported, rectangular=rectangular, batch_size=1).predict(IMAGES)
    for size in (2, 4, 100):
        same(load_detector(exported, rectangular=rectangular, batch_size=size).predict(IMAGES), one_by_one)
    alone = load_detector(exported, rectangular=rectangular)
    same([alone.predict(image)[0] for image in reversed(IMAGES)][::-1], one_by_one)


def test_rectangular_inputs_are_the_smallest_multiples_of_the_stride(exported):
    predictor = load_detector(exported, rectangular=True)
    assert predictor.canvas_for(SIDE, SIDE) == (96, 96)
    assert predictor.canvas_for(200, 333) == (64, 96)  # 57.66 rows
    assert predictor.canvas_for(33, 90) == (40, 96)
    assert predictor.prepare(IMAGES[4]).image.shape == (64, 96, 3)


class Echo:
    """A network that finds one box: the bright part of its input."""

    def __init__(self, metadata):
        self.metadata, self.stride, self.input_shape = metadata, 8, (None, None, None)
        self.scoring = "objectness x class probability"

    def decoded(self, images):
        rows = []
        for image in torch.as_tensor(images):
            bright = image[0] > 180
            y, x = bright.any(1).nonzero(), bright.any(0).nonzero()
            rows.append([[int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1, 0.9, 1.0, 0.0, 0.0]])
        return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize("border", [0, 13])
@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize(("height", "width"), [(96, 96), (300, 200), (48, 300), (37, 53), (20, 21)])
def test_boxes_come_back_to_where_things_are(trained, height, width, rectangular, border):
    image = np.zeros((height, width, 3), np.uint8)
    left, top, right, bottom = width // 4, height // 3, width * 3 // 4, height
    image[top:bottom, left:right] = 255
    predictor = Predictor(Echo(metadata_of(trained)), rectangular=rectangular, border=border)
    (found,) = predictor.predict(image)
    pixel = max(height, width) / (SIDE - border)  # one pixel of the network's input
    np.testing.assert_allclose(found.boxes.numpy(), [[left, top, right, bottom]], atol=1.5 * max(pixel, 1))
    assert float(found.boxes[0, 3]) <= height


def test_boxes_are_clipped_to_the_image(trained):
    class Everywhere(Echo):
        def decoded(self, images):
            return torch.tensor([[[-50.0, -50.0, 500.0, 500.0, 0.9, 1.0, 0.0, 0.0]]]).expand(len(images), 1, 8)

    found = Predictor(Everywhere(metadata_of(trained))).predict([np.zeros((30, 70, 3), np.uint8)])
    assert found[0].boxes.tolist() == [[0, 0, 70, 30]]


def test_a_suppression_inside_leaves_out_boxes_that_are_not_finite_too():
    rows = np.array([[0, 1, 2, 3, 4, 0.5, 1], [0, np.nan, 2, 3, 4, 0.5, 1], [0, 1, 2, np.inf, 4, 0.5, 1]], np.float32)
    assert runtimes._detections(rows).boxes.tolist() == [[1, 2, 3, 4]]


def test_thresholds_default_to_those_of_the_export(exported):
    predictor = load_detector(exported)
    assert (predictor.confidence, predictor.iou, predictor.max_detections) == (0.2, 0.5, 20)
    sure = load_detector(exported, confidence=0.5, max_detections=3).predict(IMAGES)
    assert all(len(one) <= 3 and bool((one.scores > 0.5).all()) for one in sure)
    inside = load_detector(exported / "model-nms.onnx", confidence=0.5, max_detections=3).predict(IMAGES)
    same_or_fewer = [(len(a), len(b)) for a, b in zip(sure, inside, strict=True)]
    assert all(a == b for a, b in same_or_fewer)
    with pytest.raises(ModelError, match=r"uses IoU 0\.5; use model\.onnx for 0\.7"):
        load_detector(exported / "model-nms.onnx", iou=0.7)
    with pytest.raises(ModelError, match=r"begins at 0\.2; use model\.onnx for 0\.1"):
        load_detector(exported / "model-nms.onnx", confidence=0.1)
    with pytest.raises(ModelError, match="no decoded output"):
        load_detector(exported / "model-nms.onnx").decoded(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))


def test_a_value_that_is_not_an_image_is_refused_by_its_number(exported):
    predictor = load_detector(exported)
    good = IMAGES[0]
    for bad in (good.astype(np.float32), good[..., 0], np.zeros((0, 4, 3), np.uint8), "image.jpg", good[..., :2]):
        with pytest.raises(DataError, match=r"^image 1: a uint8 RGB array"):
            predictor.predict([good, bad])
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"confidence": 1.5}, "must lie between"),
        ({"iou": 0.0}, "must lie between"),
        ({"max_detections": 0}, "at least 1"),
        ({"image_size": 100}, "not a multiple of the network's stride 8"),
    ],
)
def test_values_out_of_range_are_refused(exported, values, message):
    with pytest.raises(ConfigError, match=message):
        load_detector(exported, **values)


def test_batches_of_another_kind_are_refused(exported, trained):
    for runtime in (load_detector(exported).runtime, TorchRuntime(trained, metadata_of(trained))):
        for wrong in (torch.zeros(1, 3, 96, 96), torch.zeros(3, 96, 96, dtype=torch.uint8)):
            with pytest.raises(ModelError, match="uint8 images"):
                runtime.decoded(wrong)
        with pytest.raises(ModelError, match="multiples of 8"):
            runtime.decoded(torch.zeros(1, 3, 90, 96, dtype=torch.uint8))
        with_array = runtime.decoded(np.zeros((1, 3, 96, 96), np.uint8))
        with_tensor = runtime.decoded(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))
        assert with_array.dtype == torch.float32 and torch.equal(with_array, with_tensor)


def test_another_image_size_is_used(exported):
    assert load_detector(exported, image_size=160).prepare(IMAGES[0]).image.shape == (160, 160, 3)
