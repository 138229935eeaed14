"""What later stages would refuse is found before the first epoch: names, packages, settings, keys, folders, disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest
import yaml

from stages.preflight import environment, machine, outputs
from stages.preflight.check import demand, look_ahead
from stages.preflight.findings import Findings
from stages.project import params as params_module
from stages.project.params import Params
from yolov7.errors import ConfigError

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("YOLOV7_", "MLFLOW_", "AWS_")) and not name.endswith("TELEMETRY"):
            monkeypatch.delenv(name)
    return tmp_path


def params(**groups: object) -> Params:
    values = {"variants": ["yolov7-tiny"], "per_variant": {"yolov7-tiny": {}}, **groups}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    return params_module.load()


def problems(**groups: object) -> str:
    return " / ".join(look_ahead(params(**groups)).problems)


def test_the_shipped_settings_pass(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = look_ahead(params_module.load())
    assert (found.problems, found.warnings) == ([], [])


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("MLFLOW_TRACKING_URL", "MLFLOW_TRACKING_URI"),
        ("MLFLOW_TRACKING_UR", "MLFLOW_TRACKING_URI"),
        ("MLFLOW_TRACKING_USER", "MLFLOW_TRACKING_USERNAME"),
        ("MLFLOW-TRACKING-URI", "MLFLOW_TRACKING_URI"),
        ("YOLOV7_STATEREMOTE", "YOLOV7_STATE_REMOTE"),
        ("YOLOV7_DEVISE", "YOLOV7_DEVICE"),
        ("YOLO7_DEVICE", "YOLOV7_DEVICE"),
        ("YOLOV7_PROCESES", "YOLOV7_PROCESSES"),
        ("yolov7_workers", "YOLOV7_WORKERS"),
    ],
)
def test_a_misspelt_variable_is_a_problem_unless_the_right_one_is_set(monkeypatch, wrong, right):
    monkeypatch.setenv(wrong, "1")
    assert f"{wrong}, which nothing reads: {right} is meant" in problems()
    monkeypatch.setenv(right, "sqlite:////srv/mlflow.db" if right.endswith("URI") else "1")
    assert wrong not in problems()


def test_other_variables_are_left_alone(monkeypatch):
    for name in ("AWS_REGION", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_TRACKING_DIR", "PREFECT_UI_API_URL", "HOME"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("YOLOV7_BATCH_SIZE", "32")
    monkeypatch.setenv("AWS_SECRET_KEY", "a-secret")
    found = look_ahead(params())
    assert found.problems == []
    assert [line.split()[3] for line in found.warnings] == ["AWS_SECRET_KEY,", "YOLOV7_BATCH_SIZE,"]


def test_every_variable_of_the_code_is_known():
    """A new variable would otherwise be reported as a misspelt one."""
    sources = [*ROOT.glob("stages/**/*.py"), *ROOT.glob("flows/**/*.py"), *ROOT.glob("yolov7/**/*.py")]
    used = {name for file in sources for name in re.findall(r"\bYOLOV7_[A-Z_]*[A-Z]\b", file.read_text())}
    assert used - set(environment._OF_TESTS) <= set(environment.OURS)


def test_every_variable_of_the_documents_is_known():
    """Names that the code composes, those of the server's limits, stand in full in the documents alone."""
    documents = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    named = {name for file in documents for name in re.findall(r"\bYOLOV7_[A-Z_]*[A-Z]\b", file.read_text())}
    assert named - {"YOLOV7_DEVISE"} <= set(environment.OURS)
    assert "YOLOV7_SERVE_MAX_CONNECTIONS" in named


@pytest.mark.parametrize("prefix", ["team/", "a:b-", "me@", "it's-", ' "', "x" * 250, "50%-", "tab\t"])
def test_a_name_that_cannot_be_registered(prefix):
    """Refused where params.yaml is read, before anything is looked at."""
    with pytest.raises(ConfigError, match=r"registry\.model_prefix"):
        problems(registry={"model_prefix": prefix})


def test_a_name_that_can():
    assert problems(registry={"model_prefix": "team.a_b-1 "}) == ""


@pytest.mark.parametrize("name", ["", "  ", "x" * 501])
def test_an_experiment_without_a_name(name):
    with pytest.raises(ConfigError, match=r"registry\.experiment"):
        problems(registry={"experiment": name})


def test_a_format_whose_package_is_missing(monkeypatch):
    monkeypatch.setattr(outputs, "find_spec", lambda name: None if name == "openvino" else object())
    assert "export.formats: openvino-int8 needs the package openvino" in problems(export={"formats": ["openvino-int8"]})
    assert problems(export={"formats": ["onnx-int8"]}) == ""


@pytest.mark.parametrize(("opset", "fault"), [(18, ""), (21, ""), (27, "does not read 27"), (99, "cannot be written")])
def test_the_operator_set(opset, fault):
    found = Findings()
    outputs.check_opset(params(export={"opset": opset}).export, found)
    assert found.problems == [] if not fault else fault in found.problems[0]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"rectangular": True}, "evaluate.rectangular"),
        ({"augment": True}, "evaluate.augment"),
        ({"augment": "scales"}, "evaluate.augment"),
        ({"augment": "flip"}, ""),
    ],
)
def test_evaluation_that_fixed_sides_cannot_serve(settings, fault):
    assert fault in problems(export={"dynamic": False}, evaluate=settings)
    assert problems(export={"dynamic": True}, evaluate=settings) == ""


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("one", "two"):
        private = str(folder / f"{name}.pem")
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
        public = ["openssl", "pkey", "-in", private, "-pubout", "-out", str(folder / f"{name}.pub")]
        subprocess.run(public, check=True)
    return folder


@pytest.mark.parametrize(
    ("signing", "verify", "fault"),
    [
        ("missing.pem", None, "YOLOV7_SIGNING_KEY: neither PEM text nor a PEM file"),
        ("one.pub", None, "YOLOV7_SIGNING_KEY: an Ed25519 private key"),
        ("one.pem", "missing.pub", "YOLOV7_VERIFY_KEY: neither"),
        ("one.pem", "one.pem", "YOLOV7_VERIFY_KEY: one or more Ed25519 public keys"),
        ("one.pem", "two.pub", "does not hold the public key"),
        ("one.pem", "one.pub", ""),
        ("one.pem", None, ""),
        (None, "one.pub", ""),
    ],
)
def test_keys(keys, monkeypatch, signing, verify, fault):
    for variable, name in (("YOLOV7_SIGNING_KEY", signing), ("YOLOV7_VERIFY_KEY", verify)):
        if name is not None:
            monkeypatch.setenv(variable, str(keys / name))
    found = Findings()
    machine.check_keys(found)
    assert found.problems == [] if not fault else fault in found.problems[0]
    assert bool(found.warnings) == (signing is None)


def test_all_problems_are_in_one_line(monkeypatch):
    monkeypatch.setenv("YOLOV7_SIGNING_KEY", "missing.pem")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    monkeypatch.setenv("YOLOV7_DEVISE", "cpu")
    found = look_ahead(params(export={"dynamic": False}, evaluate={"augment": True}))
    with pytest.raises(ConfigError) as caught:
        demand(found)
    text = str(caught.value)
    assert text.startswith("4 things") and "\n" not in text
    for part in ("MLFLOW_TRACKING_URI=mlruns", "YOLOV7_DEVISE", "evaluate.augment", "YOLOV7_SIGNING_KEY"):
        assert part in text


def test_a_place_that_is_no_folder(workspace):
    (workspace / "models").write_text("")
    found = Findings()
    machine.check_folders(["yolov7-tiny"], found)
    assert len(found.problems) == 1 and "models: not a folder that can be written to" in found.problems[0]


@pytest.mark.parametrize("place", ["models/yolov7-tiny", "models/yolov7-tiny/export", "reports/yolov7-tiny"])
def test_a_file_where_a_variant_writes(workspace, place):
    (workspace / place).parent.mkdir(parents=True)
    (workspace / place).write_text("")
    found = Findings()
    machine.check_folders(["yolov7", "yolov7-tiny"], found)
    assert len(found.problems) == 1 and f"{place}: not a folder that can be written to" in found.problems[0]


def test_a_disk_that_is_too_small(monkeypatch):
    Path("data/ingested").mkdir(parents=True)
    Path("data/ingested/dataset.json").write_text('{"classes": ["a", "b"]}')
    usage = namedtuple("usage", "total used free")
    found = Findings()
    machine.check_space(params(), "yolov7-tiny", found)
    assert found.problems == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**8))
    machine.check_space(params(), "yolov7-tiny", found)
    assert re.search(r"yolov7-tiny needs \d+\.\d [GM]B of disk space; 0\.1 GB are free", found.problems[0])


@pytest.mark.parametrize("address", ["gs://bucket/x", "http://host/x", "s3:/bucket/x", "file:///x"])
def test_a_place_for_states_of_an_unknown_kind(monkeypatch, address):
    monkeypatch.setenv("YOLOV7_STATE_REMOTE", address)
    found = Findings()
    machine.check_state_remote(params().flow, found)
    assert "a folder or s3://BUCKET/PREFIX is expected" in found.problems[0]


def test_a_place_for_states_is_tried(monkeypatch, workspace):
    (workspace / "file").write_text("")
    for address, fault in (("copies", ""), ("", ""), ("file/below", "no copy of a training state can be written")):
        monkeypatch.setenv("YOLOV7_STATE_REMOTE", address)
        found = Findings()
        machine.check_state_remote(params().flow, found)
        assert fault in " ".join(found.problems + found.warnings) if fault else not found.problems + found.warnings
    assert list((workspace / "copies").iterdir()) == []


def test_a_bucket_without_credentials(monkeypatch):
    for name, value in {
        "YOLOV7_STATE_REMOTE": "s3://bucket/x",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)
    found = Findings()
    machine.check_state_remote(params().flow, found)
    assert "no credentials" in found.problems[0]
