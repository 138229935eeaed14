"""The model as MLflow serves it: limits that are checked on headers, and batches of images of one shape."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image
from small_detector import pictures

from stages.serving.model import LARGEST, DetectorModel, Limits, _Header, _Room
from yolov7.data.decode import decode_image
from yolov7.errors import ConfigError
from yolov7.predict import load_detector


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image[..., ::-1])[1].tobytes()


@pytest.fixture
def model(request, monkeypatch):
    """Of YOLOv7, or of the family of a test that is given an export by name."""
    folder = request.getfixturevalue(getattr(request, "param", "exported"))
    monkeypatch.setenv("YOLOV7_SERVE_BATCH_SIZE", "2")
    model = DetectorModel()
    model.load_context(SimpleNamespace(artifacts={"export": str(folder)}))
    return model


families = pytest.mark.parametrize("model", ["exported", "exported_yolov6"], indirect=True)


def ask(model, cells, **params):
    return model.predict(None, pd.DataFrame({"image": cells}), params)


@families
def test_images_of_one_request_run_as_batches_of_one_shape(model, request, monkeypatch):
    exported = request.getfixturevalue(request.node.callspec.params["model"])
    shapes = []
    decoded = type(model._detector.runtime).decoded
    monkeypatch.setattr(
        type(model._detector.runtime),
        "decoded",
        lambda self, batch: shapes.append(tuple(batch.shape)) or decoded(self, batch),
    )
    images = pictures(5)
    rows = ask(model, [encoded(image) for image in images], confidence=0.2)
    assert [shape[0] for shape in shapes] == [2, 2, 1]
    found = load_detector(exported, confidence=0.2).predict(images)
    assert rows["image"].tolist() == [i for i, one in enumerate(found) for _ in range(len(one))]
    truth = np.concatenate([one.boxes.numpy() for one in found])
    np.testing.assert_allclose(rows[["x1", "y1", "x2", "y2"]].to_numpy(), truth, atol=1e-2)
    arrays = ask(model, images, confidence=0.2)
    np.testing.assert_allclose(arrays["score"], rows["score"], atol=1e-5)


@families
def test_limits_are_checked_before_anything_is_decoded(model, monkeypatch):
    monkeypatch.setattr("stages.serving.model.decode_image", lambda data: pytest.fail("something was decoded"))
    image = encoded(np.zeros((50, 40, 3), np.uint8))
    cells = {
        "3 images in one request; at most 2": ([image] * 3, {"max_images": 2}),
        "row 1: the image file has .* at most": ([image[:50], image + b"\0" * 900], {"max_image_bytes": len(image)}),
        "row 0: the image is 40x50; at most 1999 pixels": ([image], {"max_pixels": 1999}),
        "have 4000 pixels together, at most 3999": ([image] * 2, {"max_request_pixels": 3999}),
        "row 1: not an image of a known format": ([image, b"GIF89a \0"], {}),
        "row 0: bytes of an image file .* got float": ([1.5], {}),
    }
    for words, (given, limits) in cells.items():
        model._limits = replace(Limits(), **limits)
        with pytest.raises(MlflowException, match=words) as caught:
            ask(model, given)
        assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif", ".gif", ".ppm"])
def test_formats(model, suffix):
    image = pictures(1)[0]
    assert len(ask(model, [encoded(image, suffix)], confidence=0.1)) > 0
    for data in (encoded(image, suffix)[:20], b"\0" * 30):
        with pytest.raises(MlflowException, match="row 0: "):
            ask(model, [data])


def test_no_damaged_file_is_anything_but_detected_or_refused(model):
    draw = np.random.default_rng(0)
    whole = [encoded(pictures(1)[0], suffix) for suffix in (".jpg", ".png", ".webp", ".bmp", ".tif", ".gif", ".ppm")]
    refused = 0
    for number in range(280):
        data = np.frombuffer(whole[number % len(whole)], np.uint8).copy()
        places = draw.integers(0, min(len(data), 200) if number % 2 else len(data), draw.integers(1, 20))
        data[places] = draw.integers(0, 256, len(places))
        model._limits = replace(Limits(), max_pixels=100_000)
        try:
            ask(model, [data.tobytes()])
        except MlflowException as error:
            assert error.get_http_status_code() == 400 and "row 0: " in error.message
            refused += 1
    assert 50 < refused < 280


def test_limits_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("YOLOV7_SERVE_MAX_PIXELS", "77")
    assert Limits.from_environment() == replace(Limits(), max_pixels=77)
    monkeypatch.setenv("YOLOV7_SERVE_MAX_IMAGES", "0")
    with pytest.raises(ConfigError, match="YOLOV7_SERVE_MAX_IMAGES: a whole number above 0 is expected, got '0'"):
        Limits.from_environment()


def test_the_limit_of_pixels_is_one_that_can_be_kept(model, monkeypatch):
    claims = b"P6 20000 20000 255\n" + bytes(64)
    with pytest.raises(MlflowException, match="row 0: the image has more than 64000000 pixels"):
        ask(model, [claims])
    model._limits = replace(Limits(), max_pixels=10**9)
    with pytest.raises(MlflowException, match=f"row 0: the image has more than {LARGEST} pixels"):
        ask(model, [claims])
    monkeypatch.setenv("YOLOV7_SERVE_MAX_PIXELS", str(LARGEST))
    assert Limits.from_environment().max_pixels == LARGEST
    monkeypatch.setenv("YOLOV7_SERVE_MAX_PIXELS", str(LARGEST + 1))
    with pytest.raises(ConfigError, match=f"YOLOV7_SERVE_MAX_PIXELS: at most {LARGEST}"):
        Limits.from_environment()


def test_boxes_are_in_pixels_of_the_image_as_it_is_shown(model):
    image = Image.fromarray(pictures(2)[1])  # 80 x 120
    orientation = Image.Exif()
    orientation[0x0112] = 6  # a quarter turn
    file = io.BytesIO()
    image.save(file, "JPEG", exif=orientation, quality=100)
    rows = ask(model, [file.getvalue()], confidence=0.2)
    turned = decode_image(file.getvalue())
    assert turned.shape[:2] == (120, 80)
    (found,) = model._detector.predict(turned)
    np.testing.assert_allclose(rows[["x1", "y1", "x2", "y2"]].to_numpy(), found.boxes.numpy(), atol=1e-2)
    assert rows["y2"].max() > 80


def progressive(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    file = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def test_a_jpeg_of_very_many_scans_is_refused(model):
    assert len(ask(model, [progressive(5)], confidence=0.1)) > 0
    with pytest.raises(MlflowException, match="row 0: the JPEG has more than 200 scans"):
        ask(model, [progressive(300)])


@pytest.mark.parametrize(
    "data",
    [
        b"P6 #" + b"a" * 3_000_000,
        b"\xff\xd8" + b"\xff" * 3_000_000,
        b"\xff\xd8" + b"\xff\xe1\x00\x02" * 500_000,
        encoded(np.zeros((8, 8, 3), np.uint8))[:33] + b"\0\0\0\0tEXt\x9c\x5b\x8b\xaf" * 200_000,
    ],
    ids=["comment", "fill bytes", "segments", "chunks"],
)
def test_a_header_that_does_not_end_is_given_up(model, data, monkeypatch):
    headers = []
    monkeypatch.setattr("stages.serving.model._Header", lambda data: headers.append(_Header(data)) or headers[0])
    with pytest.raises(MlflowException, match="row 0: not an image of a known format"):
        ask(model, [data])
    assert headers[0]._reads <= 2 * 20_000 and headers[0].tell() < 1_000_000


def test_pixels_decoded_at_a_time_are_bounded_and_whoever_waits_first_is_first():
    room, held, most, order = _Room(100), [], [], []

    def decode(pixels: int) -> None:
        with room.held(pixels):
            held.append(pixels)
            most.append(sum(held))
            order.append(pixels)
            time.sleep(0.01)
            held.remove(pixels)

    asked = (60, 50, 30, 500, 10, 20, 95)
    with ThreadPoolExecutor(len(asked)) as pool:
        with room.held(100):
            decoded = []
            for waiting, pixels in enumerate(asked, 1):
                decoded.append(pool.submit(decode, pixels))
                while len(room._waiting) < waiting:
                    time.sleep(0.001)
        for done in decoded:
            done.result()
    assert max(most) <= 500 and sorted(most)[-2] <= 100, "an image above the bound is decoded alone"
    # Images that fit beside each other start together, and which of them notes it first is the scheduler's choice.
    assert [sorted(order[:1]), sorted(order[1:3]), order[3], sorted(order[4:6]), order[6]] == (
        [[60], [30, 50], 500, [10, 20], 95]
    )
