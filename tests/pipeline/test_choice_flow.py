"""The flow choose-model from data to champion: real stages, exports, MLflow and Prefect, on tiny networks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.choice import ChoiceError, choose_model
from stages.registry.versions import ModelRegistry
from tests.pipeline.servers import PrefectServer, loopback_environment
from yolov7.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(1200)]

NETWORKS = """
from yolov7.model.scaling import scale
from yolov7.model.variants import find_variant


def narrow():
    return scale(find_variant("yolov7-tiny"), width=0.125)


def wide():
    return scale(find_variant("yolov7-tiny"), width=0.25)
"""
CANDIDATES = {"narrow": {"network": "networks:narrow"}, "wide": {"network": "networks:wide"}}


@pytest.fixture
def here(project: Path, prefect_server: PrefectServer, mlflow_file: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_file)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("YOLOV7_DEVICE", "cpu")
    shutil.copytree(ROOT / "validation", project / "validation")
    (project / "networks.py").write_text(NETWORKS)
    document = yaml.safe_load((project / "dvc.yaml").read_text())
    document["stages"]["ingest"] = {"cmd": "python -m stages.ingest", "deps": ["source.txt"], "outs": ["data/ingested"]}
    document["stages"]["validate"] = {
        "cmd": "python -m stages.validate",
        "deps": ["data/ingested"],
        "outs": ["data/index", "reports/validation"],
    }
    (project / "dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    write_params(project)
    return project


def write_params(folder: Path, candidates: tuple[str, ...] = ("narrow", "wide"), **choice: object) -> None:
    digits = {"image_size": 64, "train_images": 8, "val_images": 4, "test_images": 6, "digits_per_image": [1, 2]}
    train = {"preset": "small", "epochs": 2, "batch_size": 4, "image_size": 64, "anchor_scale": 0.2}
    values = {
        "variants": ["narrow"],
        "per_variant": CANDIDATES,
        "data": {"source": "digits", "digits": digits},
        "validation": {"sample_pictures": 0},
        "train": train,
        "export": {"formats": [], "verify_images": 2},
        "evaluate": {"resamples": 20},
        "flow": {"retries": 0, "push": False},
        "choice": {"candidates": list(candidates), "rungs": [1, 2], "keep": 1.0, "prefer": "accuracy", **choice},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


def trained(folder: Path) -> dict[str, int]:
    return {
        path.parent.parent.name + "/" + path.parent.name: path.stat().st_mtime_ns
        for path in (folder / ".state/trials").glob("*/*/result.json")
    }


def test_from_data_to_champion_and_to_one_of_another_variant(here: Path, prefect_server: PrefectServer) -> None:
    report = choose_model()
    found = report.figures
    assert {each["variant"] for each in found["measured"]} == {"narrow", "wide"}
    assert [each["epochs"] for each in found["standings"]] == [1, 1, 2, 2]
    assert report.decision is not None and report.decision.outcome == "promoted"
    registry = ModelRegistry()
    champion = registry.resolve("models:/detector@champion")
    assert champion.tags["variant"] == found["recommended"] and champion.tags["chosen_from"] == "narrow, wide"
    kept = [one.path for one in registry.client.list_artifacts(champion.run_id, "reports")]
    assert kept == ["reports/index.html"]
    page = prefect_server.page("choose-model")
    assert report.summary in page and found["reasons"][0].partition(" (")[0] in page
    before, exported = trained(here), (here / "models/choice/narrow/export/model.json").stat().st_mtime_ns
    assert len(before) == 4

    again = choose_model()
    assert trained(here) == before, "nothing is trained again"
    assert (here / "models/choice/narrow/export/model.json").stat().st_mtime_ns == exported
    assert again.decision is not None and again.decision.outcome == "unchanged"

    other = "wide" if champion.tags["variant"] == "narrow" else "narrow"
    write_params(here, candidates=(other,))
    changed = choose_model()
    assert trained(here) == before and changed.figures["recommended"] == other
    challenger = registry.resolve("models:/detector@challenger")
    assert challenger.number == 2 and challenger.tags["variant"] == other
    decision = changed.decision
    assert decision is not None and (decision.challenger, decision.champion) == (2, 1)
    assert "AP_difference" in decision.evidence, "both were measured side by side, across variants"


def test_limits_leave_out_and_may_leave_nothing(here: Path) -> None:
    write_params(here, budget={"size_mb": 0.001})
    with pytest.raises(ChoiceError, match=r"no candidate is left: narrow: size, .* MB, 0.001 MB allowed; wide: size"):
        choose_model(promote_challenger=False)
    assert len(trained(here)) == 2, "the second rung was not trained"


def test_latencies_of_another_machine_decide_before_any_training(here: Path) -> None:
    (here / "jetson.yaml").write_text("{narrow: 9.0, wide: 90.0}")
    write_params(here, budget={"latency_ms": 10, "latencies": "jetson.yaml"}, rungs=[1])
    report = choose_model(promote_challenger=False)
    assert report.figures["recommended"] == "narrow" and report.decision is None
    assert report.figures["measured"][0]["latency_ms"] == 9.0
    assert [name.partition("/")[0] for name in trained(here)] == ["narrow"]
    assert report.figures["ruled_out"][0]["finding"] == "90.0 ms an image by jetson.yaml, 10 ms allowed"
    assert json.loads((here / "reports/choice/choice.json").read_text())["registered"]["name"] == "detector"


def test_mistakes_are_told_before_anything_runs(here: Path) -> None:
    write_params(here, budget={"latencies": "missing.yaml"})
    with pytest.raises(ConfigError, match=r"choice.budget.latencies: missing.yaml: no such file"):
        choose_model()
    command = [sys.executable, "-m", "flows.choose_model"]
    environment = loopback_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (here / "data").exists()
