"""The page to try models on: its HTTP interface, its command, and the page itself in a real browser."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import onnx
import pytest

from stages import try_model
from stages.page.app import Server
from stages.page.choices import FLOOR, Choices, given, registered
from stages.page.guard import is_ours
from stages.registry.versions import ModelRegistry
from stages.serving.model import Limits
from stages.serving.settings import Settings
from tests.pipeline.export_folder import CATEGORY_IDS, CLASSES, another, image_bytes, sample_image
from tests.pipeline.servers import loopback_environment
from yolov7.data.formats.coco import read_coco
from yolov7.errors import ConfigError, ModelError
from yolov7.predict import load_detector

ROOT = Path(__file__).resolve().parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ADDRESS = "http://127.0.0.1:7070"
PNG = {"content-type": "image/png"}
EVIL_NAMES = ("<img src=x onerror=document.title='hacked'>", 'a "b" & <b>c</b>', "owl")
EVIL_CARD = (
    "# Card\n\n<script>document.title='hacked'</script>\n\n![x](http://127.0.0.1:1/x)\n\n[y](javascript:alert(1))\n"
)


class Client:
    """Requests to the page's server without a network."""

    def __init__(self, choices: Choices, settings: Settings):
        self._transport = httpx.ASGITransport(Server(choices, "127.0.0.1", settings))

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def answer() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url=ADDRESS) as client:
                return await client.request(method, path, **request)

        return asyncio.run(answer())

    def get(self, path: str, **request: Any) -> httpx.Response:
        return self.ask("GET", path, **request)

    def post(self, path: str, **request: Any) -> httpx.Response:
        return self.ask("POST", path, **request)


def client(models: list[str | Path], **settings: int) -> Client:
    choices = Choices(given([str(model) for model in models]), Limits(max_pixels=10**6))
    return Client(choices, Settings(**settings))


@pytest.fixture
def page(export: Path) -> Client:
    return client([export, export / "model-nms.onnx"])


@pytest.fixture(scope="module")
def evil(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose class names and card are made to run a script."""
    network = onnx.load(export / "model.onnx")
    for entry in network.metadata_props:
        if entry.key == "yolov7":
            entry.value = json.dumps({**json.loads(entry.value), "class_names": EVIL_NAMES})
    folder = tmp_path_factory.mktemp("evil")
    onnx.save(network, folder / "evil.onnx")
    (folder / "MODEL_CARD.md").write_text(EVIL_CARD)
    return folder / "evil.onnx"


# HTTP -----------------------------------------------------------------------------------------------------------------


def test_the_page_and_its_files_load_nothing_from_elsewhere(page: Client) -> None:
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        answer = page.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert "http://" not in answer.text and "https://" not in answer.text
        rules = answer.headers["content-security-policy"]
        assert "default-src 'none'" in rules and "script-src 'self'" in rules and "frame-ancestors 'none'" in rules
        assert "unsafe" not in rules and answer.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in page.get("/").text and "style=" not in page.get("/").text, "the policy forbids them"


def test_models_and_their_facts(page: Client, export: Path) -> None:
    labels = page.get("/models").json()["models"]
    assert labels == [str(export), str(export / "model-nms.onnx")]
    facts, inside = page.get("/models/0").json(), page.get("/models/1").json()
    assert facts["classes"] == [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    assert (facts["confidence"], facts["iou"], facts["floor"], facts["iou_is_fixed"]) == (0.3, 0.5, FLOOR, False)
    assert (inside["floor"], inside["iou_is_fixed"]) == (0.3, True)
    for path in ("/models/2", "/models/-1", "/models/x", "/models/0/../../params.yaml", "/page.html", "/app.py"):
        assert page.get(path).status_code == 404, path


def test_detections_above_a_threshold_are_those_of_the_detector_at_it(page: Client, export: Path) -> None:
    """The page asks once at the floor and filters by itself."""
    for iou in (0.3, 0.7):
        answer = page.post(f"/models/0/detect?iou={iou}", content=image_bytes(), headers=PNG)
        body = answer.json()
        assert answer.status_code == 200 and body["milliseconds"] > 0
        scores = [one["score"] for one in body["detections"]]
        assert scores == sorted(scores, reverse=True) and min(scores) > FLOOR
        for confidence in (FLOOR, 0.2, 0.5):
            (found,) = load_detector(export, confidence=confidence, iou=iou).predict(sample_image())
            kept = [one for one in body["detections"] if one["score"] > confidence]
            assert [one["score"] for one in kept] == found.scores.tolist()
            assert [[one[side] for side in ("x1", "y1", "x2", "y2")] for one in kept] == found.boxes.tolist()
            assert [one["category_id"] for one in kept] == [CATEGORY_IDS[label] for label in found.labels.tolist()]


def test_a_file_with_the_suppression_inside_keeps_its_thresholds(page: Client) -> None:
    found = page.post("/models/1/detect?iou=0.9", content=image_bytes(), headers=PNG).json()["detections"]
    assert found and min(one["score"] for one in found) > 0.3


BOMB = cv2.imencode(".png", np.zeros((4000, 4000), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (b"", "image/png", 400, "the image is empty"),
        (b"%PDF-1.7 not an image", "image/png", 400, "not an image of a known format"),
        (image_bytes()[:-40], "image/png", 400, "the image is truncated"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 400, "not an image of a known format"),
        (BOMB, "image/png", 400, "the image is 4000x4000; at most 1000000 pixels are taken"),
        (b"\0" * 60_000, "image/png", 413, "more than 50,000 bytes"),
        (image_bytes(), "application/x-www-form-urlencoded", 415, "send the bytes of an image file"),
        (image_bytes(), "multipart/form-data; boundary=x", 415, "send the bytes of an image file"),
        (image_bytes(), "text/plain", 415, "send the bytes of an image file"),
    ],
)
def test_what_is_refused_and_why(export: Path, content: bytes, kind: str, status: int, words: str) -> None:
    some = client([export], max_image_bytes=50_000)
    answer = some.post("/models/0/detect", content=content, headers={"content-type": kind})
    assert answer.status_code == status and words in answer.json()["message"], answer.text
    assert "row 0" not in answer.text and str(export) not in answer.text
    assert some.post("/models/0/detect", content=image_bytes(), headers=PNG).status_code == 200


def test_a_body_without_a_length_is_cut_at_the_limit(export: Path) -> None:
    sent = []

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            sent.append(1)
            yield b"\0" * 10_000

    answer = client([export], max_image_bytes=50_000).post("/models/0/detect", content=endless(), headers=PNG)
    assert answer.status_code == 413 and len(sent) < 10


def test_pictures_that_do_not_arrive_keep_nobody_out(export: Path) -> None:
    some = client([export], max_waiting=1)
    begun = []

    async def slow() -> AsyncIterator[bytes]:
        yield b"\0"
        begun.append(1)
        await asyncio.sleep(3600)

    async def beside() -> int:
        async with httpx.AsyncClient(transport=some._transport, base_url=ADDRESS) as other:
            late = [asyncio.create_task(other.post("/models/0/detect", content=slow(), headers=PNG)) for _ in range(3)]
            while len(begun) < len(late) and not any(task.done() for task in late):
                await asyncio.sleep(0)
            answer = await other.post("/models/0/detect", content=image_bytes(), headers=PNG)
            assert not any(task.done() for task in late)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            return answer.status_code

    assert asyncio.run(beside()) == 200


def test_a_visitor_who_leaves_during_an_upload_is_no_error(export: Path) -> None:
    messages = iter([{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}])
    sent = []

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/models/0/detect", "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"image/png"), (b"content-length", b"99")],
    }  # fmt: skip
    asyncio.run(client([export])._transport.app(scope, receive, send))
    assert sent[0]["status"] == 400


def test_more_pictures_than_may_wait(export: Path) -> None:
    some = client([export], max_waiting=1)

    async def together() -> list[int]:
        async with httpx.AsyncClient(transport=some._transport, base_url=ADDRESS) as other:
            posts = (other.post("/models/0/detect", content=image_bytes(), headers=PNG) for _ in range(3))
            return [answer.status_code for answer in await asyncio.gather(*posts)]

    assert sorted(asyncio.run(together())) == [200, 503, 503]


def test_an_iou_that_is_none(page: Client) -> None:
    for iou, words in (("x", "iou: a number"), ("7", "out of range"), ("nan", "out of range")):
        answer = page.post(f"/models/0/detect?iou={iou}", content=image_bytes(), headers=PNG)
        assert answer.status_code == 400 and words in answer.json()["message"]


def test_requests_of_other_sites_are_refused(page: Client) -> None:
    post = {"path": "/models/0/detect", "content": image_bytes()}
    for origin in ("https://evil.example", "http://127.0.0.1:8080", "http://localhost:7070", "null", "http://[bad"):
        answer = page.post(**post, headers={**PNG, "origin": origin})
        assert answer.status_code == 403 and "other sites" in answer.json()["message"], origin
    for site in ("cross-site", "same-site"):
        assert page.get("/models", headers={"sec-fetch-site": site}).status_code == 403
        assert page.get("/", headers={"sec-fetch-site": site}).status_code == 200, "a link to the page"
    own = {**PNG, "origin": ADDRESS, "sec-fetch-site": "same-origin"}
    answer = page.post(**post, headers=own)
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
    assert page.ask("OPTIONS", "/models/0/detect", headers={"origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[bad"])
def test_a_name_that_was_made_to_point_here_is_refused(page: Client, name: str) -> None:
    answer = page.get("/", headers={"host": f"{name}:7070"})
    assert answer.status_code == 421 and "does not go by that name" in answer.json()["message"]


@pytest.mark.parametrize(
    ("host", "ours", "others"),
    [
        ("127.0.0.1", ["127.0.0.1", "localhost", "::1"], ["192.168.1.5", "box.local", "0.0.0.0"]),
        ("localhost", ["127.0.0.1", "localhost"], ["192.168.1.5", "box"]),
        ("box.local", ["box.local", "192.168.1.5", "localhost"], ["evil.example", "box"]),
        ("0.0.0.0", ["192.168.1.5", "127.0.0.1", "localhost"], ["evil.example", "box.local"]),
    ],
)
def test_names_of_a_server(host: str, ours: list[str], others: list[str]) -> None:
    assert all(is_ours(name, host) for name in ours) and not any(is_ours(name, host) for name in others)


def test_a_card_brings_no_html_of_its_own(evil: Path) -> None:
    facts = client([evil]).get("/models/0").json()
    assert facts["card"].startswith("<h1>Card</h1>") and "&lt;script&gt;" in facts["card"]
    assert not any(tag in facts["card"] for tag in ("<script", "<img", "<a "))
    assert [one["name"] for one in facts["classes"]] == list(EVIL_NAMES)


def test_a_model_that_cannot_be_opened_is_said_by_name(export: Path, tmp_path: Path) -> None:
    copy = another(tmp_path / "copy", export, "changed")
    (copy / "model.onnx").write_bytes(b"changed")
    answer = client([copy]).get("/models/0")
    assert answer.status_code == 422 and "model.onnx" in answer.json()["message"]


def test_a_few_networks_are_in_memory_at_a_time(export: Path) -> None:
    choices = Choices(given([str(export)] * 5), Limits())
    first = choices.open(0)
    assert choices.open(0) is first
    for place in range(1, 5):
        choices.open(place)
    assert len(choices._opened) == 3 and choices.open(0) is not first


# Models ---------------------------------------------------------------------------------------------------------------


def test_versions_of_the_registry_are_offered_champions_first(registry: ModelRegistry, export: Path, tmp_path: Path):
    for note in ("one", "two", "three"):
        folder = another(tmp_path / note, export, note)
        run_id = registry.client.create_run("0").info.run_id
        registry.register(folder, name="offered", run_id=run_id, origin={}, measured={})
    registry.set_aliases("offered", {"champion": 1})
    labels = [choice.label for choice in registered() if choice.label.startswith("offered")]
    assert labels == ["offered version 1 (champion)", "offered version 3 (challenger)", "offered version 2"]
    (choice,) = [one for one in registered() if one.label.startswith("offered version 3")]
    answer = Client(Choices([choice], Limits()), Settings())
    assert answer.get("/models/0").json()["variant"] == load_detector(export).metadata.variant
    assert answer.post("/models/0/detect", content=image_bytes(), headers=PNG).json()["detections"]


def test_without_a_registry_and_a_model_there_is_nothing_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert registered() == [] and not (tmp_path / "mlflow.db").exists()
    assert try_model.main([]) == 2 and "error: no model to try" in capsys.readouterr().err
    assert try_model.main(["--model", "nothing.onnx"]) == 2 and "nothing.onnx: no such model" in capsys.readouterr().err
    with pytest.raises(ModelError, match="no such model"):
        given([str(tmp_path / "nothing")])


def test_a_port_that_is_taken(export: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--port"):
        try_model._listening("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="--host"):
        try_model._listening("192.0.2.1", 0)


# The command and the page ---------------------------------------------------------------------------------------------


class Running:
    """`python -m stages.try_model` on a free port."""

    def __init__(self, folder: Path, *options: str):
        command = [sys.executable, "-m", "stages.try_model", "--port", "0", *options]
        env = {**loopback_environment(), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._told = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._told.wait(120) and self.lines, "it printed no address"
        self.address = next(word for word in self.lines[0].split() if word.startswith("http://"))

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append(line)
            self._told.set()
        self._told.set()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.mark.slow
def test_the_command_tells_its_address_and_warns_of_others(export: Path, tmp_path: Path) -> None:
    with Running(tmp_path, "--model", str(export)) as server:
        assert server.address.startswith("http://127.0.0.1:") and len(server.lines) == 1
        assert server.lines[0].startswith("1 model at")
    with Running(tmp_path, "--model", str(export), "--host", "0.0.0.0") as server:
        for _ in range(100):
            if len(server.lines) > 1:
                break
            threading.Event().wait(0.1)
        assert "no sign-in" in server.lines[1]


@pytest.fixture(scope="module")
def devtools() -> types.ModuleType:
    """docs/make_screenshots.py, whose browser this is."""
    spec = importlib.util.spec_from_file_location("make_screenshots", ROOT / "docs/make_screenshots.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_screenshots"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser(devtools: types.ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium to look at the page with")
    with devtools.chromium(BROWSER, "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as tab:
        tab.downloads = tmp_path_factory.mktemp("downloads")
        tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tab.downloads))
        yield tab


@pytest.fixture(scope="module")
def server(evil: Path, export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("server"), "--model", str(export), str(evil)) as running:
        yield running


@pytest.fixture
def tried(browser: Any, devtools: types.ModuleType, server: Running) -> Any:
    """The page in a browser, with an honest model chosen and a hostile one to choose."""
    browser.open(server.address, 1280, 900)
    devtools.wait("the model", lambda: "3 classes" in browser.text())
    return browser


def shown(tab: Any) -> list[str]:
    """Scores in the table."""
    return tab.value("[...document.querySelectorAll('#found tr')].map(row => row.cells[1].textContent)")


def move(tab: Any, slider: str, value: float) -> None:
    event = "dispatchEvent(new Event('input'))"
    tab.value(f"(() => {{ const it = document.getElementById('{slider}'); it.value = {value}; it.{event}; }})()")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "noise.png"
    file.write_bytes(image_bytes())
    return file


@pytest.mark.slow
def test_an_image_its_boxes_and_the_thresholds(tried: Any, devtools: Any, image: Path, export: Path) -> None:
    blank = tried.picture()
    tried.upload("#file", image)
    devtools.wait("detections", lambda: "in the detector" in tried.text())
    (found,) = load_detector(export).predict(sample_image())
    assert shown(tried) == [f"{score:.3f}" for score in found.scores.tolist()] and len(found) > 3
    assert tried.picture() != blank
    # The drawn canvas differs from the picture alone just where there are boxes.
    drawn = tried.value("document.getElementById('picture').toDataURL()")
    move(tried, "confidence", 0.95)
    alone = tried.value("document.getElementById('picture').toDataURL()")
    (sure,) = load_detector(export, confidence=0.95).predict(sample_image())
    assert drawn != alone and shown(tried) == [f"{score:.3f}" for score in sure.scores.tolist()]
    move(tried, "confidence", 0.3)
    assert tried.value("document.getElementById('picture').toDataURL()") == drawn
    (open_,) = load_detector(export, iou=0.9).predict(sample_image())
    move(tried, "iou", 0.9)
    devtools.wait("the other IoU", lambda: shown(tried) == [f"{score:.3f}" for score in open_.scores.tolist()])
    assert len(open_) > len(found) and "0.90" in tried.text()


@pytest.mark.slow
def test_a_bad_file_is_refused_with_its_message(tried: Any, devtools: Any, image: Path, tmp_path: Path) -> None:
    bad = tmp_path / "<b>notes.png"
    bad.write_text("no image at all")
    tried.upload("#file", bad)
    devtools.wait("the refusal", lambda: "<b>notes.png: not an image of a known format" in tried.text())
    assert tried.value("document.getElementById('save').disabled")
    tried.upload("#file", image)
    devtools.wait("detections", lambda: "in the detector" in tried.text())
    assert "not an image" not in tried.text()


@pytest.mark.slow
def test_a_format_that_only_the_model_reads(tried: Any, devtools: Any, tmp_path: Path, export: Path) -> None:
    file = tmp_path / "noise.tiff"
    cv2.imwrite(str(file), sample_image()[..., ::-1])
    tried.upload("#file", file)
    devtools.wait("detections", lambda: "cannot show files of this format" in tried.text())
    assert len(shown(tried)) == len(load_detector(export).predict(sample_image())[0])
    assert tried.value("document.getElementById('save').disabled"), "the picture's size is unknown"


@pytest.mark.slow
def test_the_downloaded_file_is_coco(tried: Any, devtools: Any, image: Path, export: Path) -> None:
    tried.upload("#file", image)
    devtools.wait("detections", lambda: "in the detector" in tried.text())
    tried.value("document.getElementById('save').click()")
    file = tried.downloads / "noise.json"
    devtools.wait("the download", file.is_file)
    document = read_coco(file)
    (found,) = load_detector(export).predict(sample_image())
    assert document.images == [{"id": 1, "file_name": "noise.png", "width": 48, "height": 64}]
    assert document.categories == [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    ours = found.to_coco(1, category_ids=CATEGORY_IDS)
    assert [one["category_id"] for one in document.annotations] == [one["category_id"] for one in ours]
    for theirs, one in zip(document.annotations, ours, strict=True):
        assert theirs["bbox"] == pytest.approx(one["bbox"], abs=2e-3)
        assert theirs["score"] == pytest.approx(one["score"], abs=2e-5)
    file.unlink()


@pytest.mark.slow
def test_names_and_cards_of_a_hostile_model_are_text(tried: Any, devtools: Any, image: Path) -> None:
    tried.upload("#file", image)
    devtools.wait("detections", lambda: "in the detector" in tried.text())
    choose = "it.value = 1; it.dispatchEvent(new Event('change'))"
    tried.value(f"(() => {{ const it = document.getElementById('model'); {choose}; }})()")
    devtools.wait("the card", lambda: "<script>" in tried.text())
    names = "[...document.querySelectorAll('#found tr')].map(row => row.cells[0].textContent)"
    devtools.wait("names", lambda: set(tried.value(names)) & set(EVIL_NAMES))
    assert set(tried.value(names)) <= set(EVIL_NAMES)
    assert tried.value("document.querySelectorAll('main img, main a, main script, td b').length") == 0
    assert tried.value("document.title") == "Try a model"


@pytest.mark.slow
def test_an_answer_of_the_model_before_is_dropped(tried: Any, devtools: Any, image: Path) -> None:
    tried.upload("#file", image)
    devtools.wait("detections", lambda: "in the detector" in tried.text())
    # Answers wait until they are let go, as they do on a slow network.
    tried.value("""(() => {
        const real = window.fetch;
        window.held = [];
        window.fetch = async (...request) => {
            const answer = await real(...request);
            await new Promise(go => window.held.push(go));
            return answer;
        };
    })()""")
    move(tried, "iou", 0.9)
    devtools.wait("the answer", lambda: tried.value("held.length === 1"))
    choose = "it.value = 1; it.dispatchEvent(new Event('change'))"
    tried.value(f"(() => {{ const it = document.getElementById('model'); {choose}; }})()")
    assert tried.value("document.getElementById('model').ariaBusy") == "true"
    devtools.wait("the facts", lambda: tried.value("held.length === 2"))
    assert tried.value("held[0](), new Promise(done => setTimeout(() => done(answer === null), 300))")
    assert tried.value("document.getElementById('save').disabled") and shown(tried) == []
    tried.value("held[1]()")
    devtools.wait("the next question", lambda: tried.value("held.length === 3"))
    tried.value("held[2]()")
    devtools.wait("detections", lambda: "in the detector" in tried.text() and shown(tried))
    assert tried.value("document.getElementById('model').ariaBusy") is None


@pytest.mark.slow
def test_a_picture_from_the_camera(tried: Any, devtools: Any) -> None:
    tried.value("document.getElementById('camera').click()")
    devtools.wait("the camera", lambda: tried.value("document.getElementById('video').videoWidth > 0"))
    assert "Take the picture" in tried.text() and "Choose a file" not in tried.text()
    tried.value("document.getElementById('shoot').click()")
    devtools.wait("detections", lambda: "in the detector" in tried.text())
    assert tried.value("document.getElementById('video').srcObject === null"), "the camera is switched off"
    assert tried.value("document.getElementById('picture').width > 0") and "Choose a file" in tried.text()


@pytest.mark.slow
def test_a_pasted_and_a_dropped_image(tried: Any, devtools: Any) -> None:
    events = {
        "paste": "new ClipboardEvent('paste', {clipboardData: files})",
        "drop": "new DragEvent('drop', {dataTransfer: files, cancelable: true})",
    }
    for number, (kind, event) in enumerate(events.items()):
        script = """new Promise(done => {
            const still = Object.assign(document.createElement('canvas'), {width: WIDTH, height: 30});
            still.getContext('2d').fillRect(0, 0, 20, 20);
            still.toBlob(blob => {
                const files = new DataTransfer();
                files.items.add(new File([blob], 'it.png', {type: 'image/png'}));
                document.dispatchEvent(EVENT);
                done(1);
            });
        })"""
        tried.value(script.replace("WIDTH", str(40 + number)).replace("EVENT", event))
        size = f"picture && picture.bitmap && picture.bitmap.width === {40 + number} && answer !== null"
        devtools.wait(f"the {kind} image", lambda size=size: tried.value(size))


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_width_of_a_window(tried: Any, devtools: Any, image: Path, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    tried.call("Emulation.setDeviceMetricsOverride", **size)
    tried.upload("#file", image)
    devtools.wait("detections", lambda: "in the detector" in tried.text())
    assert tried.value("document.documentElement.scrollWidth <= innerWidth")
