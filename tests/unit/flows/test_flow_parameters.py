"""Parameters of all deployments are checked before anything is touched: no git, no DVC, no lock, no folder."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prefect.exceptions import ParameterTypeError

from flows import evaluate_champion, promote, train_variant, train_variants, validate_data
from flows.promotion.models import variant_of
from flows.runner import worktree
from flows.runner.pipeline import Pipeline
from stages.project import params as params_module
from yolov7.errors import ConfigError, YoloError

ROOT = Path(__file__).resolve().parents[3]
HASH = "0123456789abcdef0123456789abcdef.dir"
NAMES = ["--help", "-h", "../../x", "a;touch x", "$(touch x)", "a\nb", "a\0b", "", "a/b", "a@{u}"]


@pytest.fixture(autouse=True)
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with params.yaml, in which no process may start; it looks the same at the end."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    for name in ("Popen", "run"):
        monkeypatch.setattr(subprocess, name, lambda *args, **more: pytest.fail(f"started {args}"))
    for module in (train_variant, train_variants, validate_data, promote, evaluate_champion):
        monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("test"))
    yield
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml"]


@pytest.mark.parametrize("variant", NAMES, ids=ascii)
def test_train_variant_refuses_a_variant_that_is_no_name(variant):
    with pytest.raises(ConfigError, match=r"^variant: "):
        train_variant.train_variant.fn(variant)


@pytest.mark.parametrize("revision", ["--upload-pack=touch x", "@{u}", "a..b", "a\0b", "HEAD:params.yaml", "-x", ""])
def test_train_variant_refuses_a_revision_that_is_none(revision):
    with pytest.raises(ConfigError, match=r"^revision: "):
        train_variant.train_variant.fn("yolov7-tiny", revision=revision)
    with pytest.raises(ConfigError, match=r"^revision: "):
        worktree.commit_of(Path.cwd(), revision, fetch=True)


@pytest.mark.parametrize(
    "data",
    [
        {"--cprofile-dump=x": {"data/ingested": HASH}},
        {"train@yolov7-tiny": {"data/ingested": HASH}},
        {"ingest": {"../x": HASH}},
        {"ingest": {"data/ingested": "../../x"}},
        {"ingest": {"data/ingested": f"{HASH}\n"}},
    ],
)
def test_train_variant_refuses_data_that_dvc_would_take_for_options(data):
    with pytest.raises(ConfigError, match=r"^data"):
        train_variant.train_variant.fn("yolov7-tiny", data=data)
    with Pipeline(Path.cwd()) as pipeline, pytest.raises(ConfigError, match=r"^data"):
        worktree.bring(pipeline, {name: data[name] for name in data if name == "ingest"}, logging.getLogger("x"))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_the_other_flows_refuse_names_that_are_none(name):
    for flow, parameter in (
        (train_variants.train_variants, "variants"),
        (promote.promote, "models"),
        (evaluate_champion.evaluate_champion, "models"),
    ):
        with pytest.raises(ConfigError, match=f"^{parameter}: "):
            flow.fn([name])
    assert promote.main(["--rollback", f"x{name}/"]) == 2


@pytest.mark.parametrize(
    ("flow", "values"),
    [
        (train_variant.train_variant, {"variant": 5}),
        (train_variant.train_variant, {"variant": ["a"]}),
        (train_variant.train_variant, {"variant": "a", "timeout_hours": float("inf")}),
        (train_variant.train_variant, {"variant": "a", "timeout_hours": float("nan")}),
        (train_variant.train_variant, {"variant": "a", "timeout_hours": 0}),
        (train_variant.train_variant, {"variant": "a", "data": {"ingest": "x"}}),
        (train_variant.train_variant, {"variant": "a", "data": {"ingest": {"data": 10**5000}}}),
        (train_variant.train_variant, {"variant": "a", "other": 1}),
        (train_variants.train_variants, {"variants": "yolov7-tiny"}),
        (validate_data.validate_data, {"timeout_hours": 1e300}),
        (promote.promote, {"models": [["a"]]}),
        (evaluate_champion.evaluate_champion, {"max_ap_drop": float("nan")}),
        (evaluate_champion.evaluate_champion, {"on_drop": "rm"}),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "values",
)
def test_prefect_refuses_values_of_a_wrong_type(flow, values):
    with pytest.raises((ParameterTypeError, TypeError, ValueError)):
        flow.validate_parameters(values)


def test_every_parameter_of_a_deployment_exists():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    for one in deployments:
        module, _, name = one["entrypoint"].rpartition(".")
        flow = getattr(__import__(module, fromlist=[name]), name)
        assert set(one.get("parameters", {})) == set(flow.parameters.properties), one["name"]


def test_tags_of_a_foreign_registry_are_no_options():
    params = params_module.load()
    version = SimpleNamespace(tags={"variant": "--help"}, name="x")
    with pytest.raises(YoloError, match="is not a name"):
        variant_of(version, params)
