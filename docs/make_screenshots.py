"""Pictures of Prefect's and MLflow's pages, and of ours, for docs/images, taken by a headless Chromium after a run.

    python docs/make_screenshots.py [PROJECT] [--out docs/images] [--browser chromium]

PROJECT is a folder in which `make demo` has run. The servers are started on free ports of loopback, on the databases
of that folder, and stopped afterwards. Every picture waits until the expected content is on the page.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from websockets.sync.client import connect

WIDTH = 1280
LARGEST = 200_000
"""Bytes of a picture."""
_SECONDS = 300.0
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy


@dataclass(frozen=True)
class Page:
    """A picture: the address, the text that must have appeared, and the height in pixels."""

    name: str
    url: str
    text: str
    height: int
    press: str = ""
    """Name of a tab that is pressed first."""
    upload: Path | None = None
    """An image that is given to the page first."""


class Browser:
    """One tab of a headless Chromium, driven by its DevTools protocol."""

    def __init__(self, address: str):
        self._socket = connect(address, max_size=None, proxy=None)
        self._number = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=_SECONDS))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def take(self, page: Page) -> bytes:
        """The page as a PNG."""
        self.open(page.url, WIDTH, page.height)
        if page.press:
            named = f"e.children.length === 0 && e.textContent.trim() === '{page.press}'"
            press = f"[...document.querySelectorAll('body *')].find(e => {named})"
            wait(f"{page.press} of {page.url}", lambda: self.value(f"!!{press}"))
            self.value(f"{press}.click()")
        if page.upload:
            wait(f"a model on {page.url}", lambda: "classes" in self.text())
            self.upload("#file", page.upload)
        wait(f"{page.text!r} on {page.url}", lambda: page.text in self.text())
        time.sleep(8)  # curves are drawn after the text has appeared
        return self.picture()

    def open(self, url: str, width: int, height: int) -> None:
        """Load an address in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url="about:blank")  # a mere change of the fragment would load nothing
        self.call("Page.navigate", url=url)

    def upload(self, selector: str, file: Path) -> None:
        """Choose a file in an input of the page."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve())])

    def picture(self) -> bytes:
        """The window as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def text(self) -> str:
        """What the page shows as text."""
        return str(self.value("document.body.innerText"))

    def value(self, expression: str) -> Any:
        """Value of an expression on the page; a promise is waited for."""
        how = {"returnByValue": True, "awaitPromise": True}
        return self.call("Runtime.evaluate", expression=expression, **how)["result"].get("value")


def wait(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"error: {what}: not there within {_SECONDS:g} s")
        time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with _OPEN.open(request, timeout=60) as answer:
        return json.load(answer)


def answers(url: str) -> bool:
    try:
        with _OPEN.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def running(command: list[str], folder: Path, **env: str) -> Iterator[None]:
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def prefect(project: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    home = project.resolve() / ".local/prefect"
    with running(command, project, PREFECT_HOME=str(home), PREFECT_API_URL=f"http://127.0.0.1:{port}/api"):
        wait("Prefect's server", lambda: answers(f"http://127.0.0.1:{port}/api/health"))
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def mlflow(project: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db", "--workers", "1"]
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running([*command, "--host", "127.0.0.1", "--port", str(port)], project, **env):
        wait("MLflow's server", lambda: answers(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def try_model(project: Path, *options: str) -> Iterator[str]:
    port = free_port()
    with running([sys.executable, "-m", "stages.try_model", "--port", str(port), *options], project):
        wait("the page of models", lambda: answers(f"http://127.0.0.1:{port}/"))
        yield f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def chromium(program: str, *options: str) -> Iterator[Browser]:
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless", "--hide-scrollbars", f"--remote-debugging-port={port}"]
        command += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # Prefect draws its timeline by WebGL
        command += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += ["--no-proxy-server", f"--user-data-dir={profile}", "about:blank"]
        # As root, in a container, Chromium has no sandbox; it visits only our own servers.
        command += [*options, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        with running(command, Path(profile)):
            wait("Chromium", lambda: answers(f"http://127.0.0.1:{port}/json/version"))
            tab = next(one for one in ask(f"http://127.0.0.1:{port}/json") if one["type"] == "page")
            yield Browser(tab["webSocketDebuggerUrl"])


def prefect_pages(base: str) -> list[Page]:
    wanted = {"flows": {"name": {"any_": ["train-variants"]}}, "sort": "START_TIME_DESC", "limit": 20}
    runs = ask(f"{base}/api/flow_runs/filter", wanted)
    if not runs:
        sys.exit("error: Prefect's database holds no run of train-variants; run `make demo` there first")
    longest = max(runs, key=lambda run: run["total_run_time"])
    run = f"{base}/runs/flow-run/{longest['id']}"
    return [
        Page("prefect-run", run, "train@yolov7-tiny", 900),
        Page("prefect-task-runs", run, "evaluate@yolov7-tiny", 900, press="Task Runs"),
    ]


def mlflow_pages(base: str) -> list[Page]:
    found = ask(f"{base}/api/2.0/mlflow/registered-models/search").get("registered_models", [])
    if not found:
        sys.exit("error: MLflow's database holds no registered model; run `make demo` there first")
    version = found[0]["latest_versions"][0]
    run = ask(f"{base}/api/2.0/mlflow/runs/get?run_id={version['run_id']}")["run"]["info"]
    experiment = f"{base}/#/experiments/{run['experiment_id']}"
    return [
        Page("mlflow-run", f"{experiment}/runs/{run['run_id']}", "test/AP50", 900),
        Page("mlflow-version", f"{base}/#/models/{version['name']}/versions/{version['version']}", "champion", 900),
    ]


def model_pages(project: Path, base: str) -> list[Page]:
    images = sorted((project / "data/ingested/test/images").iterdir())
    return [Page("try-model", base, "in the detector", 760, upload=images[0])]


def save(picture: bytes, path: Path) -> None:
    """With 128 colours, which pages hardly exceed; with fewer, if that is not small enough."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    for colours in (128, 64, 32):
        image.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < LARGEST:
            break
    print(f"{path}: {path.stat().st_size // 1000} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", nargs="?", type=Path, default=Path(), help="where `make demo` has run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--browser", default="chromium")
    arguments = parser.parse_args()
    program = shutil.which(arguments.browser)
    if program is None:
        sys.exit(f"error: {arguments.browser}: no such browser; install Chromium or name one with --browser")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with chromium(program) as browser:
        for server, pages in ((prefect, prefect_pages), (mlflow, mlflow_pages)):
            with server(arguments.project) as base:
                for page in pages(base):
                    save(browser.take(page), arguments.out / f"{page.name}.png")
        with try_model(arguments.project) as base:
            for page in model_pages(arguments.project, base):
                save(browser.take(page), arguments.out / f"{page.name}.png")


if __name__ == "__main__":
    main()
