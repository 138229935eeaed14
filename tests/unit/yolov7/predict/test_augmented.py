"""Test-time augmentation: every view's boxes come back to where the objects are, and are merged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_detector import SIDE, pictures, small_index

from yolov7.cli import main
from yolov7.errors import ModelError
from yolov7.evaluate import evaluate
from yolov7.predict import AugmentedRuntime, OnnxNmsRuntime, Predictor, load_detector
from yolov7.predict.augmented import VIEWS


class Corner:
    """A network that finds one box, the bright part of its input, and remembers the shapes it saw."""

    def __init__(self, metadata, fixed=None):
        self.metadata, self.stride, self.input_shape = metadata, 8, (None, fixed, fixed)
        self.scoring = "objectness x class probability"
        self.seen = []

    def decoded(self, images):
        self.seen.append(tuple(images.shape[2:]))
        rows = []
        for image in torch.as_tensor(images):
            assert image.dtype == torch.uint8
            bright = image[0] > 180
            y, x = bright.any(1).nonzero(), bright.any(0).nonzero()
            rows.append([[int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1, 0.9, 1.0, 0.0, 0.0]])
        return torch.tensor(rows, dtype=torch.float32)


def bright(height, width, box):
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("rectangular", [False, True])
def test_every_view_finds_the_object_where_it_is(exported, views, rectangular):
    network = Corner(load_detector(exported).metadata)
    predictor = Predictor(network, augment=views, rectangular=rectangular)
    images = [bright(96, 96, (8, 16, 40, 30)), bright(60, 96, (60, 5, 90, 50)), bright(96, 40, (2, 70, 30, 95))]
    decoded = predictor.decoded(torch.from_numpy(images[0]).permute(2, 0, 1)[None])
    assert decoded.shape == (1, len(VIEWS[views]), 8)
    # A pixel of the smallest view is one and a half of the image.
    torch.testing.assert_close(
        decoded[0, :, :4], torch.tensor([[8.0, 16, 40, 30]]).expand(len(VIEWS[views]), 4), atol=1.6, rtol=0
    )
    assert all(side % 8 == 0 for shape in network.seen for side in shape)
    assert len({min(shape) for shape in network.seen}) == len({scale for scale, _ in VIEWS[views]})
    for image, box in zip(images, [(8, 16, 40, 30), (60, 5, 90, 50), (2, 70, 30, 95)], strict=True):
        (found,) = predictor.predict(image)
        assert len(found) == 1, "one object, however often it was seen"
        torch.testing.assert_close(found.boxes[0], torch.tensor(box, dtype=torch.float32), atol=2.5, rtol=0)


@pytest.mark.parametrize("folder", ["exported", "exported_yolov6"])
def test_predictor_and_evaluation_see_the_same(folder, request, tmp_path):
    exported = request.getfixturevalue(folder)
    images = pictures(6)
    plain = load_detector(exported, confidence=0.3)
    index = small_index(tmp_path, plain.predict(images), images, plain.metadata)
    augmented = load_detector(exported, augment=True)
    by_predictor = evaluate(augmented, index, batch_size=4)
    by_runtime = evaluate(AugmentedRuntime(plain.runtime), index, batch_size=2)
    assert by_predictor.metrics == pytest.approx(by_runtime.metrics, abs=1e-3)
    assert by_predictor.metrics["AP"] > 0.05  # of a network that was never trained for it
    assert by_predictor.results != evaluate(plain, index).results
    square = evaluate(plain, index, rectangular=False)
    assert evaluate(plain, index, rectangular=True).results != square.results


def test_what_cannot_be_augmented_is_refused(exported):
    detector = load_detector(exported)
    with pytest.raises(ModelError, match=f"exported for images of {SIDE} x {SIDE} alone; augment by `flip`"):
        Predictor(Corner(detector.metadata, fixed=SIDE), augment=True)
    Predictor(Corner(detector.metadata, fixed=SIDE), augment="flip")
    inside = load_detector(exported / "model-nms.onnx")
    assert isinstance(inside.runtime, OnnxNmsRuntime)
    with pytest.raises(ModelError, match=r"suppression inside.*use model\.onnx"):
        load_detector(exported / "model-nms.onnx", augment="flip")


def test_command_line(exported, tmp_path, capsys):
    from cv2 import imwrite

    imwrite(str(tmp_path / "a.png"), pictures(1)[0])
    options = ["--model", str(exported), "-o", str(tmp_path / "out"), "--json", "--confidence", "0.2"]
    found = {}
    for augment in ([], ["--augment"], ["--augment", "flip"]):
        assert main(["predict", str(tmp_path / "a.png"), *options, *augment]) == 0
        found[tuple(augment)] = json.loads(capsys.readouterr().out)["annotations"]
    assert len({json.dumps(one) for one in found.values()}) == 3, "each way sees something else"
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(tmp_path / "a.png"), *options, "--augment", "twice"])
