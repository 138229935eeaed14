"""Credentials do not reach logs, error messages or files, whichever library prints them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.runner.pipeline import LOGS, Pipeline, StageError
from stages.project.redaction import RedactingFormatter, in_one_line, redacted
from stages.registry.errors import RegistryUnavailableError
from stages.registry.journal import RunJournal
from stages.registry.versions import download_model
from stages.sources.http import Download

PLANTED = "planted-9f2c"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": f"{PLANTED}-aws",
    "MLFLOW_TRACKING_PASSWORD": f"{PLANTED}-mlflow",
    "PREFECT_API_AUTH_STRING": f"somebody:{PLANTED}-prefect",
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://prefect:pa55@db/prefect failed", "postgresql://***@db/prefect failed"),
        ("at 'https://token@host:1/x?y' and s3://bucket/a@b", "at 'https://***@host:1/x?***' and s3://bucket/a@b"),
        ("postgresql+asyncpg://u:p@ss@db:5432/x", "postgresql+asyncpg://***@db:5432/x"),
        ("http://127.0.0.1:5000/a, mail a@b.example", "http://127.0.0.1:5000/a, mail a@b.example"),
        ("models:/yolov7-tiny@champion", "models:/yolov7-tiny@champion"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
    ],
)
def test_addresses_lose_user_and_password(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_values_of_secret_variables_are_hidden_wherever_they_appear(
    planted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(f"<{value}>" for value in SECRETS.values())
    assert redacted(text) == "<***> <***> <***>"
    assert redacted(f"Authorization of {PLANTED}-prefect") == "Authorization of ***", "the password of a sign-in alone"
    monkeypatch.setenv("SOME_TOKEN", "abc")
    assert redacted("abc") == "abc", "too short to be told from a word"
    monkeypatch.setenv("YOLOV7_SIGNING_KEY", "/secrets/signing.pem")
    assert redacted("/secrets/signing.pem is not there") == "/secrets/signing.pem is not there"
    line = "MC4CAQAwBQYDK2VwBCIEIPlantedPlantedPlantedPlantedPlantedPlanted0"
    monkeypatch.setenv("YOLOV7_SIGNING_KEY", f"-----BEGIN PRIVATE KEY-----\n{line}\n-----END PRIVATE KEY-----")
    assert redacted(f"key {line}") == "key ***"
    assert in_one_line("x" * 7 + f"http://u:{PLANTED}@host\nb", 12) == "xxxxxxxhttp:", "hidden before it is cut"


def test_tracebacks_are_logged_without_credentials(planted: None) -> None:
    try:
        raise RuntimeError(f"connection to postgresql://u:{PLANTED}@db failed")
    except RuntimeError:
        record = logging.LogRecord(
            "x", logging.ERROR, "f", 1, "it %s", (SECRETS["AWS_SECRET_ACCESS_KEY"],), sys.exc_info()
        )
    text = RedactingFormatter("%(message)s").format(record)
    assert "RuntimeError: connection to postgresql://***@db failed" in text and PLANTED not in text


def test_the_output_of_a_stage_reaches_the_logs_without_credentials(
    planted: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import os, sys; print(os.environ['AWS_SECRET_ACCESS_KEY'], flush=True);"
        f"sys.exit('error: remote https://u:{PLANTED}@host/x refuses')"
    )
    caplog.set_level(logging.INFO)
    log = logging.getLogger("test")
    with Pipeline(tmp_path) as pipeline, pytest.raises(StageError) as caught:
        pipeline.run("push", [sys.executable, "-c", code], log)
    assert "remote https://***@host/x refuses" in str(caught.value)
    written = (tmp_path / LOGS / "push.log").read_text()
    assert written.splitlines() == ["***", "error: remote https://***@host/x refuses"]
    assert PLANTED not in written + str(caught.value) + caplog.text


def test_an_mlflow_that_is_away_is_named_without_its_password(
    planted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:{PLANTED}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnavailableError, match=r"MLflow at http://\*\*\*@127\.0\.0\.1:9") as caught:
        download_model("models:/any@champion")
    assert PLANTED not in str(caught.value) and caught.value.__suppress_context__
    journal = RunJournal(Path(".state/mlflow/a.jsonl"), experiment="e", run_name="r")
    journal.metrics({"loss": 1.0}, step=1)
    assert "MLflow cannot be reached" in caplog.text and PLANTED not in caplog.text
    done = subprocess.run(
        [sys.executable, "-m", "stages.deliver"], capture_output=True, text=True, env=dict(os.environ), timeout=200
    )
    assert done.returncode == 1 and "could not be delivered to http://***@127.0.0.1:9" in done.stderr
    kept = "".join(path.read_text() for path in (tmp_path / ".state").rglob("*.json*"))
    assert json.loads((tmp_path / ".state/mlflow/a.json").read_text())["delivered"] == 0
    assert PLANTED not in done.stdout + done.stderr + kept
    import mlflow

    mlflow.set_tracking_uri(None)


def test_the_origin_of_data_is_noted_without_the_password() -> None:
    one = Download(f"https://somebody:{PLANTED}@data.example/set.zip?signature={PLANTED}")
    assert one.shown == "https://***@data.example/set.zip" and one.name == "set.zip"
