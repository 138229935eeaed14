"""`mlflow models serve` on a registered model: what it answers to images, and to what is none."""

from __future__ import annotations

import base64
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from stages.registry import ModelRegistry
from stages.serving import MAX_IMAGES, MAX_PIXELS
from tests.pipeline.export_folder import CATEGORY_IDS, CLASSES, image_bytes, sample_image
from tests.pipeline.servers import answers, free_port, loopback_environment, running, wait_for
from yolov7.predict import load_detector

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(
    export: Path, mlflow_file: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, Path]]:
    """A client of the served champion, and the export folder it was made from."""
    folder = tmp_path_factory.mktemp("serving")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_file)
        registry = ModelRegistry()
        run_id = registry.run_for({"fingerprint": "served"}, experiment="served", name="served")
        version, _ = registry.register(
            export, name="served", run_id=run_id, origin={}, measured={"AP": "0.5"}, example=image_bytes()
        )
        registry.set_aliases("served", {"champion": version.number})
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/served@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    env, log = loopback_environment(MLFLOW_TRACKING_URI=mlflow_file), folder / "serve.log"
    url = f"http://127.0.0.1:{port}"
    with running(command, log, env=env, cwd=folder) as process:
        wait_for("the served model", answers(f"{url}/ping"), 120, log, process)
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield client, export


def ask(client: httpx.Client, *images: str, **params: Any) -> httpx.Response:
    table = {"columns": ["image"], "data": [[image] for image in images]}
    return client.post("/invocations", json={"dataframe_split": table, "params": params})


def encoded() -> str:
    return base64.b64encode(image_bytes()).decode()


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


def test_inputs_form_several_images_and_nothing_found(served: tuple[httpx.Client, Path]) -> None:
    client, _ = served
    answer = client.post("/invocations", json={"inputs": {"image": [encoded(), encoded()]}})
    assert answer.status_code == 200, answer.text[-3000:]
    rows = answer.json()["predictions"]
    assert [row["image"] for row in rows] == sorted(row["image"] for row in rows)
    first, second = ([row for row in rows if row["image"] == image] for image in (0, 1))
    assert len(first) == len(second) > 0 and first[0]["score"] >= 0.3, "the export's own threshold holds"
    assert ask(client, encoded(), confidence=1.0).json() == {"predictions": []}


def huge_png() -> bytes:
    """The head of a PNG that claims a billion pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 25_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"this is no image", "row 0: not an image of a known format, or damaged"),
        (b"", "row 0: the image is empty"),
        (image_bytes()[:-30], "row 0: the image is truncated"),
        (huge_png(), "row 0: the image"),
    ],
    ids=["text", "empty", "truncated", "huge"],
)
def test_what_is_no_image_is_refused_by_row(served: tuple[httpx.Client, Path], image: bytes, words: str) -> None:
    answer = ask(served[0], base64.b64encode(image).decode())
    assert answer.status_code == 400
    assert words in answer.json()["message"]
    assert f"{MAX_PIXELS} pixels" in answer.text or image != huge_png()


def test_a_request_that_is_too_large_or_wrong_is_refused(served: tuple[httpx.Client, Path]) -> None:
    client, _ = served
    many = ask(client, *[encoded()] * (MAX_IMAGES + 1))
    assert many.status_code == 400 and f"at most {MAX_IMAGES} are taken" in many.json()["message"]
    wrong = ask(client, encoded(), confidence=1.5)
    assert wrong.status_code == 400 and "must lie between 0 and 1" in wrong.json()["message"]
    assert ask(client).status_code == 400
    assert ask(client, encoded()).status_code == 200, "and it goes on serving"
