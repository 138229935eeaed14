"""A real PostgreSQL server on loopback that asks for a password, in a folder of its own."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.pipeline.servers import free_port

USER, PASSWORD = "pipeline", "password-of-the-database"


class Cluster:
    """A server, stopped and started at will, and its tools (`createdb`, `pg_dump`, ...)."""

    def __init__(self, folder: Path, programs: Path, account: str | None):
        self.folder, self.port = folder, free_port()
        self._programs, self._account = programs, account

    def address(self, database: str, driver: str = "postgresql+psycopg2") -> str:
        """URL of a database. With the driver: SQLAlchemy 2.1 takes plain `postgresql:` for psycopg 3."""
        return f"{driver}://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if self._account:
            for path in (self.folder, secret):
                shutil.chown(path, self._account)
        self._server(
            "initdb",
            *("--pgdata", str(self._data), "--username", USER, "--pwfile", str(secret), "--auth", "scram-sha-256"),
            *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
        )
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F"
        log = str(self.folder / "server.log")
        self._server("pg_ctl", "--pgdata", str(self._data), "--log", log, "--wait", "-t", "120", "-o", options, "start")

    def stop(self) -> None:
        """Stop as in a crash: clients get no notice, and the next start has to recover."""
        self._server("pg_ctl", "--pgdata", str(self._data), "--mode", "immediate", "stop")

    def tool(self, name: str, *arguments: str) -> str:
        """Output of one of the client programs."""
        env = {**os.environ, "PGPASSWORD": PASSWORD, "PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": USER}
        command = [str(self._programs / name), *arguments]
        done = subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _server(self, name: str, *arguments: str) -> None:
        # The server refuses to run as root, and keeps the output of who started it open.
        with (self.folder / f"{name}.log").open("wb") as log:
            done = subprocess.run(
                [str(self._programs / name), *arguments],
                cwd=self.folder,
                user=self._account,
                group=self._account,
                extra_groups=[] if self._account else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=200,
            )
        assert done.returncode == 0, (self.folder / f"{name}.log").read_text(errors="replace")


@contextmanager
def postgresql() -> Iterator[Cluster]:
    """A fresh server; the test is skipped where PostgreSQL is not installed."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    # Not pytest's folder: that is closed to the account the server runs under.
    with tempfile.TemporaryDirectory(prefix="postgresql-of-test-", ignore_cleanup_errors=True) as name:
        cluster = Cluster(Path(name), programs, _account())
        cluster.create()
        try:
            yield cluster
        finally:
            cluster.stop()


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    named = shutil.which("initdb")
    places = [path.parent for path in found[-1:]] + ([Path(named).resolve().parent] if named else [])
    return next((place for place in places if (place / "postgres").exists()), None)


def _account() -> str | None:
    """Another account than root, where this is root."""
    if getpass.getuser() != "root" and os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no account postgres")
