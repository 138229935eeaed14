"""A served model under 500 mixed good and bad requests from 8 clients: right answers, reasons, and steady memory."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import psutil
import pytest

from tests.pipeline.export_folder import SIZE, image_bytes
from tests.pipeline.served_model import Served, png_bomb, serving, split, text
from yolov7.detections import Detections
from yolov7.predict import load_detector

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]

CLIENTS, WARM_UP, REQUESTS = 8, 100, 500
MAX_BYTES, MAX_PIXELS, MAX_IMAGES = 2_000_000, 400_000, 6


@dataclass(frozen=True)
class Request:
    kind: str
    body: Any
    """Bytes, an iterator of them (sent in chunks of unknown number), or what becomes JSON."""
    content_type: str | None = "application/json"
    allowed: tuple[int, ...] = (400,)
    words: str = ""
    """Stand in the reason of a refusal."""
    truth: list[Detections] = field(default_factory=list)


@pytest.fixture(scope="module")
def server(export: Path, mlflow_file: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = {
        "YOLOV7_SERVE_MAX_REQUEST_BYTES": MAX_BYTES,
        "YOLOV7_SERVE_MAX_PIXELS": MAX_PIXELS,
        "YOLOV7_SERVE_MAX_IMAGES": MAX_IMAGES,
        "YOLOV7_SERVE_BATCH_SIZE": 2,
    }
    folder = tmp_path_factory.mktemp("load")
    with serving(export, mlflow_file, folder, **{name: str(value) for name, value in limits.items()}) as server:
        yield server


def pictures() -> list[np.ndarray]:
    """Noise at several sizes, the network's own among them, where it surely finds something."""
    draw = np.random.default_rng(3)
    shapes = [(SIZE, 48), (SIZE, SIZE), (48, SIZE), (300, 200), (90, 500)]
    return [draw.integers(0, 255, (*shape, 3), np.uint8) for shape in shapes]


def files() -> list[bytes]:
    """The pictures as PNG, which loses nothing: they can be compared."""
    return [cv2.imencode(".png", picture[..., ::-1])[1].tobytes() for picture in pictures()]


def flat(height: int, width: int) -> bytes:
    """A real image that is far larger than its file."""
    return cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes()


def makers(export: Path) -> list[Callable[[random.Random], Request]]:
    """Ways to make a request; good ones twice, so that they are a good part of the whole."""
    pngs = files()
    found = load_detector(export).predict(pictures())
    jpeg = cv2.imencode(".jpg", pictures()[3])[1].tobytes()

    def several(draw: random.Random) -> tuple[list[str], list[Detections]]:
        chosen = [draw.randrange(len(pngs)) for _ in range(draw.randint(1, MAX_IMAGES))]
        return [text(pngs[i]) for i in chosen], [found[i] for i in chosen]

    def good(draw: random.Random) -> Request:
        images, truth = several(draw)
        records = [{"image": image} for image in images]
        forms = [split(*images), {"inputs": {"image": images}}, {"dataframe_records": records}, {"instances": records}]
        return Request("good", draw.choice(forms), allowed=(200,), truth=truth)

    def with_bad_row(kind: str, words: str, make: Callable[[random.Random], Any]) -> Callable[[random.Random], Request]:
        def request(draw: random.Random) -> Request:
            images: list[Any] = several(draw)[0]
            row = draw.randrange(len(images))
            images[row] = make(draw)
            return Request(kind, split(*images), words=f"row {row}: {words}")

        return request

    def fuzzed(draw: random.Random) -> Request:
        data = bytearray(draw.choice([*pngs, jpeg]))
        for _ in range(draw.randint(1, 30)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return Request("fuzzed image", split(text(bytes(data))), allowed=(200, 400))  # some can be decoded

    def fuzzed_body(draw: random.Random) -> Request:
        body = bytearray(json.dumps(good(draw).body).encode())
        for _ in range(draw.randint(1, 20)):
            body[draw.randrange(len(body))] = draw.randrange(256)
        return Request("fuzzed body", bytes(body), allowed=(200, 400))

    def cut(draw: random.Random) -> Request:
        body = json.dumps(good(draw).body).encode()
        return Request("half a body", body[: draw.randrange(len(body))])

    def chunks(draw: random.Random) -> Request:
        return Request("endless body", (b"x" * 50_000 for _ in range(60)), allowed=(413,), words="in parts")

    images = text(pngs[0])
    fixed = [
        Request("nothing", b"", words="not readable as JSON"),
        Request("deep", b'{"inputs":' + b"[" * 3000, words="more parts than"),
        Request("list bomb", b"[]," * 300_000, words="more parts than"),
        Request("long number", b'{"inputs": ' + b"9" * 5000 + b"}", words="not readable as JSON"),
        Request("no text", b"\xff\xfe\xfa" * 100, words="not readable as JSON"),
        Request("surrogate", b'{"inputs": {"image": ["\\ud800"]}}', words="row 0: the text is not base64"),
        Request("other form", {"messages": [{"role": "user", "content": images}]}, words="exactly one of"),
        Request("params", split(images, iou="x"), words="params: iou: must be a number"),
        Request("range", split(images, iou=0), words="params: iou 0.0 is out of range"),
        Request("too many", split(*[images] * (MAX_IMAGES + 1)), words=f"at most {MAX_IMAGES} are taken"),
        Request("too large", b" " * (3 * MAX_BYTES), allowed=(413,), words="larger than"),
        Request("csv", b"image\nabc", "text/csv", (415,), "must be application/json"),
        Request("parquet", b"PAR1abcPAR1", "application/vnd.apache.parquet", (415,), "must be application/json"),
        Request("no type", b"{}", None, (415,), "names none"),
        Request("charset", split(images), "application/json; charset=latin-1", (415,), "UTF-8"),
    ]
    return [
        *[good] * 12,
        fuzzed,
        fuzzed,
        fuzzed_body,
        fuzzed_body,
        cut,
        chunks,
        with_bad_row("bomb", "the image", lambda draw: text(png_bomb())),
        with_bad_row("flat bomb", "the image is 2000x2000", lambda draw: text(flat(2000, 2000))),
        with_bad_row("half a png", "", lambda draw: text(pngs[3][: draw.randrange(1, len(pngs[3]) - 12)])),
        with_bad_row("half a jpeg", "", lambda draw: text(jpeg[: draw.randrange(1, len(jpeg) - 2)])),
        with_bad_row("no image", "not an image", lambda draw: text(b"%PDF-1.4 " + draw.randbytes(200))),
        with_bad_row("no base64", "the text is not base64", lambda draw: "<image>"),
        with_bad_row("empty", "the image is empty", lambda draw: ""),
        with_bad_row("wrong type", "base64 text of an image", lambda draw: draw.choice([None, 3, True, [1], {"a": 1}])),
        *(lambda draw, request=request: request for request in fixed),
    ]


def send(client: httpx.Client, request: Request) -> httpx.Response:
    headers = {} if request.content_type is None else {"content-type": request.content_type}
    body = json.dumps(request.body).encode() if isinstance(request.body, dict) else request.body
    return client.post("/invocations", content=body, headers=headers)


def check(request: Request, answer: httpx.Response) -> None:
    assert answer.status_code in request.allowed, f"{request.kind}: {answer.status_code} {answer.text[:2000]}"
    assert "Traceback" not in answer.text and "stack_trace" not in answer.text
    if request.truth:
        rows = answer.json()["predictions"]
        for image, truth in enumerate(request.truth):
            ours = [row for row in rows if row["image"] == image]
            boxes = np.array([[row[side] for side in ("x1", "y1", "x2", "y2")] for row in ours]).reshape(-1, 4)
            np.testing.assert_allclose(boxes, truth.boxes.numpy(), atol=0.05)
            assert [row["label"] for row in ours] == truth.labels.tolist()
    elif answer.status_code != 200:
        assert request.words in answer.text and 0 < len(answer.text) < 5000, f"{request.kind}: {answer.text[:2000]}"


def hang_up(server: Served) -> None:
    """Begin a request and leave, or send what is no HTTP."""
    host, port = server.url.removeprefix("http://").split(":")
    for words in (
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n{",
        b"\x16\x03\x01 hello\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(words)


def run(server: Served, requests: list[Request]) -> None:
    def work(part: list[Request]) -> None:
        with server.client() as client:
            for number, request in enumerate(part):
                check(request, send(client, request))
                if number % 20 == 0:
                    hang_up(server)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(work, requests[start::CLIENTS]) for start in range(CLIENTS)]:
            done.result()


def resident(family: list[psutil.Process]) -> int:
    return sum(process.memory_info().rss for process in family)


def test_500_mixed_requests_of_8_clients(server: Served) -> None:
    draw = random.Random(5)
    ways = makers(server.export)
    requests = [ways[i % len(ways)](draw) for i in range(WARM_UP + REQUESTS)]
    assert all(len(truth) > 0 for request in requests for truth in request.truth[:1] if request.truth)
    draw.shuffle(requests)
    run(server, requests[:WARM_UP])
    family, before = server.family(), resident(server.family())
    run(server, requests[WARM_UP:])
    after = resident(server.family())
    assert [one.pid for one in server.family()] == [one.pid for one in family], "no process died or was added"
    # 500 requests that each left what they bring would be 100 MB and more; the allocator's own play is half of that.
    assert after < before + 80_000_000, f"{before / 1e6:.0f} MB after {WARM_UP} requests, {after / 1e6:.0f} at the end"
    with server.client() as client:
        assert client.get("/ping").status_code == 200
        assert client.post("/invocations", json=split(text(image_bytes()))).json()["predictions"]
    assert "Traceback" not in server.log.read_text(errors="replace")
