"""Latency of a served model under load: `python benchmarks/serving.py`.

Exports yolov7-tiny with random weights (`--export` takes a folder instead), registers it in a temporary MLflow, serves
it with `mlflow models serve` and the project's limits on loopback, and asks from several clients at once.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import cv2
import httpx
import numpy as np

from stages.registry.server import ensure_database
from tests.pipeline.served_model import Served, serving, split, text
from yolov7.export.onnx import export_onnx
from yolov7.files import sha256_file, write_json
from yolov7.model import ModelMetadata, create_model, save_checkpoint


def make_export(folder: Path, size: int) -> Path:
    model = create_model("yolov7-tiny", seed=0).eval().reparameterize()
    names = tuple(f"class {number}" for number in range(80))
    metadata = ModelMetadata.of(model, class_names=names, category_ids=tuple(range(80)), image_size=size, extra={})
    folder.mkdir()
    save_checkpoint(folder / "model.safetensors", model, metadata)
    export_onnx(model, folder / "model.onnx", metadata=metadata)
    write_json(folder / "model.json", {"files": {p.name: {"sha256": sha256_file(p)} for p in folder.glob("model.*")}})
    return folder


def photographs(count: int) -> list[bytes]:
    """JPEGs of 640x480 with some structure, about 45 kB each."""
    draw = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = draw.integers(0, 256, (40, 54, 3), np.uint8)
        image = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
        images.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
    return images


def load(server: Served, body: dict, clients: int, requests: int) -> tuple[list[float], float]:
    """Milliseconds of each request, and seconds of the whole."""
    times: list[float] = []
    failed: list[str] = []

    def work() -> None:
        with server.client() as client:
            for _ in range(requests):
                start = time.perf_counter()
                answer: httpx.Response = client.post("/invocations", json=body)
                times.append(1e3 * (time.perf_counter() - start))
                if answer.status_code != 200:
                    failed.append(answer.text)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    return times, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", type=Path, help="an export folder (default: yolov7-tiny with random weights)")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=12, help="of every client")
    arguments = parser.parse_args()
    images = [text(image) for image in photographs(4)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        address = f"sqlite:///{folder / 'mlflow.db'}"
        ensure_database(address)
        export = arguments.export or make_export(folder / "export", arguments.size)
        with serving(export.resolve(), address, folder) as server:
            print(f"{os.cpu_count()} cores; milliseconds")
            print(f"{'clients':>8} {'images':>7} {'p50':>8} {'p95':>8} {'images/s':>9}")
            for clients, count in ((1, 1), (arguments.clients, 1), (arguments.clients, 4)):
                body = split(*images[:count])
                load(server, body, clients, 1)
                times, seconds = load(server, body, clients, arguments.requests)
                p50, p95 = np.percentile(times, [50, 95])
                print(f"{clients:8d} {count:7d} {p50:8.0f} {p95:8.0f} {count * len(times) / seconds:9.1f}", flush=True)
            print(f"resident: {sum(one.memory_info().rss for one in server.family()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
