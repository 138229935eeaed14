"""A small registered model under `mlflow models serve`, with this project's limits before it."""

from __future__ import annotations

import base64
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from stages.registry.versions import ModelRegistry
from tests.pipeline.export_folder import image_bytes
from tests.pipeline.servers import answers, free_port, loopback_environment, running, wait_for


@dataclass(frozen=True)
class Served:
    url: str
    export: Path
    """The registered export folder."""
    pid: int
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300, trust_env=False)

    def family(self) -> list[psutil.Process]:
        """The server's processes, the first one first."""
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]


@contextmanager
def serving(export: Path, mlflow_file: str, folder: Path, **environment: str) -> Iterator[Served]:
    """Register the export folder, and serve it for the length of a block; `environment` sets limits."""
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
    env = loopback_environment(
        MLFLOW_TRACKING_URI=mlflow_file, UVICORN_HTTP="stages.serving.request_limits:LimitedProtocol", **environment
    )
    url, log = f"http://127.0.0.1:{port}", folder / "serve.log"
    with running([*command, "--timeout", "300"], log, env=env, cwd=folder) as process:
        wait_for("the served model", answers(f"{url}/ping"), 150, log, process)
        yield Served(url, export, process.pid, log)


def split(*images: str, **params: Any) -> dict[str, Any]:
    """A request in MLflow's form `dataframe_split`."""
    return {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}, "params": params}


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def png_bomb(width: int = 40_000, height: int = 25_000) -> bytes:
    """The head of a PNG that claims a billion pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
