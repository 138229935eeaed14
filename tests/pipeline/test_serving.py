"""`mlflow models serve` on a registered model: what it answers to images, and to what is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from stages.serving.model import Limits
from tests.pipeline.export_folder import CATEGORY_IDS, CLASSES, image_bytes, sample_image
from tests.pipeline.served_model import png_bomb, serving, split, text
from yolov7.predict import load_detector

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

MAX_IMAGES, MAX_PIXELS = Limits().max_images, Limits().max_pixels


@pytest.fixture(scope="module")
def served(
    export: Path, mlflow_file: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, Path]]:
    """A client of the served champion, and the export folder it was made from."""
    with serving(export, mlflow_file, tmp_path_factory.mktemp("serving")) as server, server.client() as client:
        yield client, export


def ask(client: httpx.Client, *images: str, **params: Any) -> httpx.Response:
    return client.post("/invocations", json=split(*images, **params))


def encoded() -> str:
    return text(image_bytes())


def test_detections_are_those_of_the_artefact(served: tuple[httpx.Client, Path]) -> None:
    client, export = served
    answer = ask(client, encoded(), confidence=0.4, iou=0.3)
    assert answer.status_code == 200, answer.text
    rows = answer.json()["predictions"]
    (truth,) = load_detector(export, confidence=0.4, iou=0.3).predict(sample_image())
    assert len(rows) == len(truth) > 5
    boxes = np.array([[row[side] for side in ("x1", "y1", "x2", "y2")] for row in rows])
    np.testing.assert_allclose(boxes, truth.boxes.numpy(), atol=1e-2)
    np.testing.assert_allclose([row["score"] for row in rows], truth.scores.numpy(), atol=1e-4)
    assert [row["name"] for row in rows] == [CLASSES[label] for label in truth.labels]
    assert [row["category_id"] for row in rows] == [CATEGORY_IDS[label] for label in truth.labels]
    assert {row["image"] for row in rows} == {0}


def test_every_form_several_images_and_nothing_found(served: tuple[httpx.Client, Path]) -> None:
    client, _ = served
    twice = [{"image": encoded()}] * 2
    found = []
    for content in (
        split(encoded(), encoded()),
        {"inputs": {"image": [encoded(), encoded()]}},
        {"dataframe_records": twice},
        {"instances": twice},
    ):
        answer = client.post("/invocations", json=content)
        assert answer.status_code == 200, answer.text[-3000:]
        found.append(answer.json()["predictions"])
    assert found[1:] == found[:1] * 3
    rows = found[0]
    assert [row["image"] for row in rows] == sorted(row["image"] for row in rows)
    first, second = ([row for row in rows if row["image"] == image] for image in (0, 1))
    assert len(first) == len(second) > 0 and first[0]["score"] >= 0.3, "the export's own threshold holds"
    assert ask(client, encoded(), confidence=1.0).json() == {"predictions": []}


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"this is no image", "row 1: not an image of a known format, or damaged"),
        (b"", "row 1: the image is empty"),
        (image_bytes()[:-30], "row 1: the image is truncated"),
        (png_bomb(), "row 1: the image"),
    ],
    ids=["text", "empty", "truncated", "huge"],
)
def test_a_cell_that_is_not_an_image_is_refused_by_row(
    served: tuple[httpx.Client, Path], image: bytes, words: str
) -> None:
    answer = ask(served[0], encoded(), text(image))
    assert answer.status_code == 400
    assert words in answer.json()["message"]
    assert f"{MAX_PIXELS} pixels" in answer.text or image != png_bomb()


def test_a_request_that_is_too_large_or_wrong_is_refused(served: tuple[httpx.Client, Path]) -> None:
    client, _ = served
    many = ask(client, *[encoded()] * (MAX_IMAGES + 1))
    assert many.status_code == 400 and f"at most {MAX_IMAGES} are taken" in many.json()["message"]
    wrong = ask(client, encoded(), confidence=1.5)
    assert wrong.status_code == 400 and "must lie between 0 and 1" in wrong.json()["message"]
    assert ask(client).status_code == 400
    for body, kind, status, words in (
        (b"{", "application/json", 400, "not readable as JSON"),
        (b"[" * 100_000, "application/json", 400, "more parts than"),
        (b"image\nabc", "text/csv", 415, "must be application/json"),
        (b"\0" * (80 << 20), "application/json", 413, "send the images in parts"),
    ):
        answer = client.post("/invocations", content=body, headers={"content-type": kind})
        assert answer.status_code == status and words in answer.json()["message"] and len(answer.text) < 1000
    assert "must be application/json" in client.post("/invocations", content=b"{}").json()["message"]
    assert ask(client, encoded()).status_code == 200, "and it goes on serving"
