"""Real stages with connections that fail: no secret of an address on stdout, on stderr or in a file they leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from loopback import Served, serving

from stages import ingest
from stages.project import command
from stages.sources import http, s3
from stages.sources.http import TOKEN

ROOT = Path(__file__).resolve().parents[2]
SECRET = "Pl4nted9x"
DEAD = "http://127.0.0.1:9"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv(TOKEN, f"{SECRET}/token==")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"AKIA{SECRET}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET}/aws+secret")
    monkeypatch.setattr(http, "_ATTEMPTS", 2)
    monkeypatch.setattr(http, "_LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(s3, "_ATTEMPTS", 1)
    return tmp_path


def ingested(project: Path, capfd: pytest.CaptureFixture[str], **source: object) -> str:
    """All that a failing ingest says and leaves; params.yaml, which names the address, apart."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    sets = {"all": {"images": "images", "labels": "labels"}, "names": ["a"]}
    values["data"] |= {"source": next(iter(source)), "yolo": sets, **source}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    assert command._run(lambda params, args: ingest.main(params, args), False, (), []) == 2
    said = capfd.readouterr()
    left = [path for path in project.rglob("*") if path.is_file() and path.name != "params.yaml"]
    text = said.out + said.err + "".join(path.read_text(errors="replace") for path in left)
    assert "error: " in text
    return text


QUERIES = [f"?sig={SECRET}", f"?{SECRET}", f"#{SECRET}", f"?X-Amz-Credential=a%2F{SECRET}&X-Amz-Signature={SECRET}"]


@pytest.mark.parametrize("query", QUERIES)
def test_ingest_from_a_server_that_is_away(query, project, capfd):
    text = ingested(project, capfd, http={"url": f"{DEAD}/set.zip{query}", "format": "yolo"})
    assert "connection failed" in text and "127.0.0.1" in text and SECRET not in text


@pytest.mark.parametrize("status", [302, 404, 403, 503])
@pytest.mark.parametrize(
    "location",
    [f"{DEAD}/other.zip?token={SECRET}", f"http://u:{SECRET}@127.0.0.1:9/x", f"/x?{SECRET}", f"ftp://u:{SECRET}@h/x"],
)
def test_ingest_from_a_server_that_redirects_or_refuses(status, location, project, capfd):
    with serving() as server:
        server.files["/set.zip"] = Served(b"", statuses=[status] * 5, location=location)
        text = ingested(project, capfd, http={"url": f"{server.url}/set.zip?sig={SECRET}", "format": "yolo"})
    assert SECRET not in text


def test_ingest_from_a_bucket_that_is_away(project, capfd, monkeypatch):
    text = ingested(project, capfd, s3={"url": "s3://bucket/set", "endpoint": f"{DEAD}/?x={SECRET}", "format": "yolo"})
    assert SECRET not in text


URIS = [
    f"{DEAD}/?token={SECRET}",
    f"http://user:a/{SECRET}@127.0.0.1:9",
    f"http://user:a@{SECRET}@127.0.0.1:9",
    f"http://user:a?{SECRET}@127.0.0.1:9",
    f"foo://user:{SECRET}@host/x",
    f"http:/user:{SECRET}@127.0.0.1:9",
    f"http:user:{SECRET}@127.0.0.1:9",
    f"user:{SECRET}@127.0.0.1:9",
]


@pytest.mark.parametrize("uri", URIS)
def test_a_tracking_server_that_is_away(uri, project, capfd, monkeypatch):
    from stages.registry.errors import reported
    from stages.registry.versions import ModelRegistry
    from stages.training.outputs import record_outputs
    from yolov7.errors import YoloError

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(YoloError) as caught, reported():
        ModelRegistry().by_alias("any", "champion")
    said = str(caught.value)
    assert ("MLflow at " in said or "MLFLOW_TRACKING_URI=" in said) and SECRET not in said
    assert "'a'" not in said  # the beginning of a password, which a library takes for the port
    journal = type("Journal", (), {"ended": True, "run_id": "1", "experiment": "e"})()
    record_outputs(project, journal, variant="v", key="k", seed=0)
    assert SECRET not in (project / "run.json").read_text()


def test_a_traceback_of_an_uncaught_error_and_a_warning_are_redacted(project):
    script = project / "script.py"
    script.write_text(
        "import os, threading, warnings\n"
        "from stages.project.redaction import log_to_stderr\n"
        "log_to_stderr()\n"
        "address = os.environ['PLACE']\n"
        "warnings.warn(f'cannot reach {address}')\n"
        "thread = threading.Thread(target=lambda: {}[address])\n"
        "thread.start(); thread.join()\n"
        "raise RuntimeError(address) from ValueError(address)\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PLACE": f"postgresql://u:a/{SECRET}@host/db"}
    done = subprocess.run([sys.executable, script], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "RuntimeError: postgresql://***@host/db" in done.stderr
    assert "cannot reach" in done.stderr and "KeyError" in done.stderr and SECRET not in done.stdout + done.stderr
