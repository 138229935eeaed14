"""Registration, fetching and promotion on real MLflow: a SQLite file, and a server over HTTP."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import promote
from flows.promote import main
from flows.promotion.judge import LOCK, judge, roll_back
from stages.project.command import EXIT_RESUMABLE, run_stage
from stages.project.params import Promotion
from stages.registry.errors import RegistryUnavailableError, reported
from stages.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    ModelRegistry,
    Version,
    download_model,
)
from stages.serving.model import COLUMNS
from tests.pipeline.export_folder import CATEGORY_IDS, CLASSES, another, image_bytes, sample_image
from tests.pipeline.servers import free_port, wait_for
from yolov7.errors import ModelError
from yolov7.files import sha256_file
from yolov7.predict import load_detector

pytestmark = pytest.mark.slow

MARGIN = Promotion(margin=0.01)


@pytest.fixture
def tracking(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A SQLite file shared by the tests, or with the parameter `http` the server."""
    monkeypatch.chdir(tmp_path)
    uri = request.getfixturevalue("mlflow_server" if getattr(request, "param", "") == "http" else "mlflow_file")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    yield
    import mlflow

    mlflow.set_tracking_uri(None)


@pytest.fixture
def registry(tracking: None) -> ModelRegistry:
    return ModelRegistry()


either = pytest.mark.parametrize(
    "tracking", ["sqlite", pytest.param("http", marks=pytest.mark.thorough)], indirect=True
)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of the test's own: the server is shared."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


def tags(ap: float, data: str = "d1") -> dict[str, str]:
    figures = {"AP": f"{ap:.6f}", "AP50": "0.9", "test_data_sha256": data, "evaluation": "confidence=0.001"}
    return {**figures, "artefact_verification": "passed", "data_validation": "passed"}


def register(
    registry: ModelRegistry, name: str, export: Path, ap: float, data: str = "d1", example: bytes | None = None
) -> tuple[Version, bool]:
    run_id = registry.run_for({"run_id": None, "fingerprint": name}, experiment="tests", name=name)
    origin = {"git_revision": "abc", "variant": "yolov7-tiny"}
    return registry.register(export, name=name, run_id=run_id, origin=origin, measured=tags(ap, data), example=example)


def records(registry: ModelRegistry, version: Version, what: str) -> list[dict[str, Any]]:
    """The documents of promotions and rollbacks of that kind which the version's run keeps."""
    found = [one.path for one in registry.client.list_artifacts(version.run_id, "promotion")]
    chosen = [path for path in found if path.startswith(f"promotion/{what}-")]
    return [document for path in chosen if (document := registry.recorded(version, path)) is not None]


def never(challenger: Version, champion: Version) -> Mapping[str, Any]:
    raise AssertionError(f"{challenger} was measured against {champion}")


def measured(ours: float, theirs: float, data: str = "d1") -> Mapping[str, Any]:
    """The result of a comparison of two versions."""
    difference = {"value": ours - theirs, "low": ours - theirs - 0.01, "high": ours - theirs + 0.01}
    sides = {
        role: {"AP": ap, "per_class": {"cat": ap}, "latency_ms": 5.0, "size_mb": 1.0, "tags": tags(ap, data)}
        for role, ap in (("challenger", ours), ("champion", theirs))
    }
    return {"AP_difference": difference, "objects": {"cat": 90}, "test_data_sha256": data, **sides}


def by_tags(challenger: Version, champion: Version) -> Mapping[str, Any]:
    """A comparison in which both are as good as they were when they were registered."""
    return measured(float(challenger.tags["AP"]), float(champion.tags["AP"]))


@either
def test_versions_aliases_and_fetching(registry: ModelRegistry, name: str, export: Path, tmp_path: Path) -> None:
    first, new = register(registry, name, export, 0.5)
    assert new and first.number == 1 and first.run_id
    assert first.tags["artefact_sha256"] == sha256_file(export / "model.onnx")
    assert registry.aliases(name) == {CHALLENGER: 1}
    run = registry.client.get_run(first.run_id)
    assert run.info.status == "FINISHED"

    same, new = register(registry, name, export, 0.6)
    assert not new and same.number == 1, "the same artefact makes no second version"
    assert same.tags["AP"] == "0.600000", "what was measured since is brought up to date"
    assert registry.client.get_run(first.run_id).info.end_time == run.info.end_time

    second, new = register(registry, name, another(tmp_path / "other", export, "second"), 0.7)
    assert new and second.number == 2 and registry.aliases(name) == {CHALLENGER: 2}
    back, new = register(registry, name, export, 0.6)
    assert not new and back.number == 1 and registry.aliases(name) == {CHALLENGER: 1}

    fetched = download_model(f"models:/{name}@{CHALLENGER}")
    assert sha256_file(fetched / "model.onnx") == first.tags["artefact_sha256"]
    assert load_detector(f"models:/{name}/2").metadata.class_names == CLASSES, "the library finds the resolver itself"

    damaged = fetched / "model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    assert sha256_file(download_model(f"models:/{name}/1") / "model.onnx") == first.tags["artefact_sha256"]


def test_a_model_says_what_it_takes_and_works_without_this_checkout(
    registry: ModelRegistry, name: str, export: Path
) -> None:
    import mlflow
    import pandas as pd

    version, _ = register(registry, name, export, 0.5, example=image_bytes())
    model = mlflow.pyfunc.load_model(version.uri)
    signature = model.metadata.signature
    assert [column.name for column in signature.inputs] == ["image"]
    assert [column.name for column in signature.outputs] == list(COLUMNS)
    defaults = {param.name: param.default for param in signature.params}
    assert defaults == {"confidence": 0.3, "iou": 0.5}, "those of the export"
    assert model.input_example["image"][0] == image_bytes()
    folder = Path(mlflow.artifacts.download_artifacts(version.uri))
    assert (folder / "code/yolov7/predict/predictor.py").is_file() and not list(folder.rglob("*.pkl"))
    needs = (folder / "requirements.txt").read_text().split()
    assert any(line.startswith("onnxruntime==") for line in needs) and len(needs) < 20
    assert not any(line.startswith("orjson") for line in needs), "it reads annotations, and a served model has none"

    pixels = sample_image()
    by_bytes = model.predict(pd.DataFrame({"image": [image_bytes()]}), params={"confidence": 0.1})
    by_array = model.predict({"image": [pixels]}, params={"confidence": 0.1})
    assert len(by_array) > 0 and set(by_array["image"]) == {0}
    pd.testing.assert_frame_equal(by_bytes, by_array)
    (truth,) = load_detector(export, confidence=0.1, iou=0.5).predict(pixels)
    np.testing.assert_allclose(by_array[["x1", "y1", "x2", "y2"]], truth.boxes.numpy(), atol=1e-4)
    assert list(by_array["name"]) == [CLASSES[label] for label in truth.labels]
    assert list(by_array["category_id"]) == [CATEGORY_IDS[label] for label in truth.labels]
    none = model.predict({"image": [pixels]}, params={"confidence": 1.0})
    assert len(none) == 0 and list(none.columns) == list(COLUMNS)


@either
def test_missing_models_aliases_and_versions_are_named(registry: ModelRegistry, name: str, export: Path) -> None:
    with pytest.raises(ModelError, match=f"no model '{name}' with the alias 'champion'"):
        download_model(f"models:/{name}@champion")
    register(registry, name, export, 0.5)
    with pytest.raises(ModelError, match=r"no alias 'champion'; it has challenger \(version 1\)"):
        download_model(f"models:/{name}@champion")
    with pytest.raises(ModelError, match="no version 9"):
        download_model(f"models:/{name}/9")
    with pytest.raises(ModelError, match="write models:/NAME@ALIAS"):
        download_model(f"models:/{name}")


def test_a_changed_byte_in_the_registry_is_refused(registry: ModelRegistry, name: str, export: Path) -> None:
    import mlflow

    version, _ = register(registry, name, export, 0.5)
    stored = Path(mlflow.artifacts.download_artifacts(version.uri)) / "artifacts/export"
    with (stored / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ModelError, match=r"model\.onnx: its bytes are not those"):
        download_model(version.uri)
    manifest = json.loads((stored / "model.json").read_text())
    manifest["files"]["model.onnx"]["sha256"] = sha256_file(stored / "model.onnx")
    (stored / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="not the manifest that was registered"):
        download_model(version.uri)


def test_two_fetches_at_once_download_once(
    registry: ModelRegistry, name: str, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    version, _ = register(registry, name, export, 0.5)
    real, both, fetched = mlflow.artifacts.download_artifacts, threading.Barrier(2), []

    def slow(*args: Any, **options: Any) -> str:
        fetched.append(real(*args, **options))
        with suppress(threading.BrokenBarrierError):
            both.wait(2)  # for the other one, who would now hold a copy too
        return fetched[-1]

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", slow)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(download_model, [version.uri] * 2))
    assert len(fetched) == 1 and found[0] == found[1]
    assert sha256_file(found[0] / "model.onnx") == version.tags["artefact_sha256"]


def test_promotion_and_rollback(registry: ModelRegistry, name: str, export: Path, tmp_path: Path) -> None:
    def challenge(note: str, ap: float, **options: Any) -> Any:
        register(registry, name, another(tmp_path / note, export, note), ap)
        return judge(registry, name, **{"rules": MARGIN, "compare": by_tags, **options})

    trial = challenge("one", 0.5, dry_run=True)
    assert (trial.outcome, trial.champion_now) == ("promoted", None)
    assert registry.aliases(name) == {CHALLENGER: 1}, "a dry run changes nothing"
    assert "promotion" not in registry.resolve(f"models:/{name}/1").tags

    assert challenge("one-again", 0.5).outcome == "promoted"  # version 2
    assert registry.aliases(name) == {CHALLENGER: 2, CHAMPION: 2}
    assert judge(registry, name, rules=MARGIN, compare=never).outcome == "unchanged"

    kept = challenge("within-margin", 0.51)  # version 3
    assert (kept.outcome, kept.champion_now) == ("kept", 2)
    assert kept.reason.startswith("test AP 0.5100 does not exceed the champion's 0.5000 by more than 0.01")
    loser = registry.resolve(f"models:/{name}/3")
    assert (loser.tags["promotion"], loser.tags["promotion_reason"]) == ("kept", kept.reason)
    assert len(records(registry, loser, "v3-against-v2")) == 1

    won = challenge("better", 0.52)  # version 4
    assert (won.outcome, won.champion_now) == ("promoted", 4)
    assert registry.aliases(name) == {CHALLENGER: 4, CHAMPION: 4, PREVIOUS: 2}

    now, before = roll_back(registry, name)
    assert (now.number, before.number) == (2, 4)
    assert registry.aliases(name) == {CHALLENGER: 4, CHAMPION: 2, PREVIOUS: 4}
    again = judge(registry, name, rules=MARGIN, compare=never)
    assert again.outcome == "kept" and "was rolled back on" in again.reason
    taken_down = registry.resolve(f"models:/{name}/4")
    assert (taken_down.tags["promotion"], taken_down.tags["promotion_reason"]) == ("promoted", won.reason)
    (evidence,) = records(registry, taken_down, "v4-against-v2")
    assert evidence["outcome"] == "promoted", "what was promoted once, and why, is still there"
    (back,) = records(registry, taken_down, "v4-rolled-back-to-v2")
    assert (back["champion"], back["champion_now"]) == (4, 2) and back["time"] == taken_down.tags["rolled_back"]
    roll_back(registry, name)
    assert registry.aliases(name) == {CHALLENGER: 4, CHAMPION: 4, PREVIOUS: 2}
    assert "rolled_back" not in registry.resolve(f"models:/{name}/4").tags


def test_what_was_measured_for_a_decision_is_remembered(
    registry: ModelRegistry, name: str, export: Path, tmp_path: Path
) -> None:
    register(registry, name, export, 0.8, "old data")
    assert judge(registry, name, rules=Promotion(), compare=never).outcome == "promoted"
    register(registry, name, another(tmp_path / "two", export, "two"), 0.6, "new data")

    def on_new_data(challenger: Version, champion: Version) -> Mapping[str, Any]:
        assert (challenger.number, champion.number) == (2, 1)
        return measured(0.6, 0.55, "new data")

    trial = judge(registry, name, rules=Promotion(), compare=on_new_data, dry_run=True)
    assert trial.outcome == "promoted" and trial.champion_ap == 0.55
    assert registry.resolve(f"models:/{name}/1").tags["AP"] == "0.800000", "a dry run changes nothing"
    decision = judge(registry, name, rules=Promotion(), compare=on_new_data)
    assert [check.rule for check in decision.checks] == ["AP", "classes", "artefact", "data"]
    assert registry.resolve(f"models:/{name}/1").tags["AP"] == "0.550000"
    assert registry.resolve(f"models:/{name}/1").tags["test_data_sha256"] == "new data"


def test_the_first_champion_keeps_to_the_budgets_and_has_its_checks_on_record(
    registry: ModelRegistry, name: str, export: Path
) -> None:
    register(registry, name, export, 0.5)
    slow = judge(registry, name, rules=Promotion(max_latency_ms=4.0), compare=by_tags)
    assert (slow.outcome, slow.reason) == ("kept", "there was no champion; 5.0 ms an image, 4 ms allowed")
    assert registry.aliases(name) == {CHALLENGER: 1}
    version = registry.resolve(f"models:/{name}/1")
    registry.set_tags(version, {"data_validation": "failed", "artefact_verification": None})
    doubtful = judge(registry, name, rules=Promotion(), compare=never)
    assert doubtful.outcome == "kept"
    assert doubtful.reason.endswith("trained: not on record; validation of the training data: failed")
    registry.set_tags(version, tags(0.5))
    fast = judge(registry, name, rules=Promotion(max_latency_ms=5.0, max_size_mb=2.0), compare=by_tags)
    assert (fast.outcome, fast.champion_now, fast.reason) == ("promoted", 1, "there was no champion")
    assert [check.rule for check in fast.checks] == ["latency", "size", "artefact", "data"]
    assert fast.evidence["challenger"]["latency_ms"] == 5.0


def unlike(challenger: Version, champion: Version) -> Mapping[str, Any]:
    """The comparison of two versions with different classes; the challenger by itself can be measured."""
    if challenger.number == champion.number:
        return measured(0.6, 0.6)
    return {"test_data_sha256": "d1", "class_names": {"challenger": ["cat", "owl"], "champion": ["cat"]}}


def test_other_classes_are_kept_until_somebody_accepts_them(
    registry: ModelRegistry, name: str, export: Path, tmp_path: Path
) -> None:
    register(registry, name, export, 0.5)
    judge(registry, name, rules=MARGIN, compare=never)
    register(registry, name, another(tmp_path / "two", export, "two"), 0.4)
    kept = judge(registry, name, rules=MARGIN, compare=unlike)
    assert (kept.outcome, kept.champion_now) == ("kept", 1)
    assert kept.reason.startswith("the champion knows other classes (1, the challenger 2; new: 'owl'): nothing to")
    assert (kept.checks[0].rule, kept.checks[0].passed) == ("classes", False)
    two = registry.resolve(f"models:/{name}/2")
    (evidence,) = records(registry, two, "v2-against-v1")
    assert evidence["evidence"]["class_names"] == {"challenger": ["cat", "owl"], "champion": ["cat"]}

    slow = judge(registry, name, rules=Promotion(max_latency_ms=4.0), compare=unlike, new_classes=True)
    assert slow.outcome == "kept" and slow.reason.endswith("5.0 ms an image, 4 ms allowed")
    assert registry.aliases(name) == {CHALLENGER: 2, CHAMPION: 1}
    won = judge(registry, name, rules=MARGIN, compare=unlike, new_classes=True)
    assert (won.outcome, won.champion_now) == ("promoted", 2)
    assert won.reason.endswith("new: 'owl'), which was accepted")
    assert registry.aliases(name) == {CHALLENGER: 2, CHAMPION: 2, PREVIOUS: 1}

    register(registry, name, another(tmp_path / "three", export, "three"), 0.3)
    worse = judge(registry, name, rules=MARGIN, compare=by_tags, new_classes=True)
    assert worse.outcome == "kept", "where both can be measured, they are"


def test_a_rollback_does_not_wait_for_a_measurement_which_is_then_made_again(
    registry: ModelRegistry, name: str, export: Path, tmp_path: Path
) -> None:
    for number, note in enumerate(("one", "two", "three")):
        register(registry, name, another(tmp_path / note, export, note), 0.5 + number / 10)
        if note != "three":
            judge(registry, name, rules=MARGIN, compare=by_tags)
    asked: list[tuple[int, int]] = []

    def compare(challenger: Version, champion: Version) -> Mapping[str, Any]:
        asked.append((challenger.number, champion.number))
        if len(asked) == 1:
            with LOCK.open("a") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            roll_back(registry, name)
        return by_tags(challenger, champion)

    decision = judge(registry, name, rules=MARGIN, compare=compare)
    assert asked == [(3, 2), (3, 1)] and (decision.outcome, decision.champion) == ("promoted", 1)
    assert registry.aliases(name) == {CHALLENGER: 3, CHAMPION: 3, PREVIOUS: 1}
    (overtaken,) = records(registry, registry.resolve(f"models:/{name}/3"), "v3-against-v2")
    assert overtaken["outcome"] == "overtaken" and overtaken["reason"].startswith("overtaken: now the challenger is")


def test_a_gate_whose_models_change_all_the_time_gives_up(registry: ModelRegistry, name: str, export: Path) -> None:
    registry.client.create_registered_model(name)
    for number in (1, 2):
        registry.client.create_model_version(name, "file:///nowhere", tags=tags(0.5 + number / 10))
    registry.set_aliases(name, {CHALLENGER: 2, CHAMPION: 1})

    def compare(challenger: Version, champion: Version) -> Mapping[str, Any]:
        registry.client.create_model_version(name, "file:///nowhere", tags=tags(0.9))
        registry.set_aliases(name, {CHALLENGER: challenger.number + 1})
        return by_tags(challenger, champion)

    with pytest.raises(ModelError, match="changed during each of 3 measurements"):
        judge(registry, name, rules=MARGIN, compare=compare)
    assert registry.aliases(name) == {CHALLENGER: 5, CHAMPION: 1}


GATE = """
import json, sys, time
from pathlib import Path
from flows.promotion.judge import judge
from stages.project.params import Promotion
from stages.registry.versions import ModelRegistry
from tests.pipeline.test_registry_mlflow import by_tags

def compare(challenger, champion):
    Path("measuring").touch()
    while not Path("go").exists():
        time.sleep(0.05)
    return by_tags(challenger, champion)

decision = judge(ModelRegistry(), sys.argv[1], rules=Promotion(), compare=compare)
print(json.dumps([decision.outcome, decision.challenger, decision.champion]))
"""


def test_gates_of_two_folders_at_once_end_in_one_winner(
    registry: ModelRegistry, name: str, export: Path, tmp_path: Path
) -> None:
    register(registry, name, export, 0.5)
    judge(registry, name, rules=MARGIN, compare=never)
    second, _ = register(registry, name, another(tmp_path / "two", export, "two"), 0.6)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    log = folder / "log"
    with log.open("w") as said:
        gate = subprocess.Popen([sys.executable, "-c", GATE, name], cwd=folder, env=env, stdout=said, stderr=said)
    try:
        wait_for("the other gate measures", (folder / "measuring").exists, 120, log, gate)
        # While it measures version 2 against 1, a better one is registered and promoted from this folder.
        third, _ = register(registry, name, another(tmp_path / "three", export, "three"), 0.7)
        assert judge(registry, name, rules=MARGIN, compare=by_tags).outcome == "promoted"
        (folder / "go").touch()
        assert gate.wait(120) == 0, log.read_text()
    finally:
        gate.kill()
    assert json.loads(log.read_text().splitlines()[-1]) == ["unchanged", 3, 3]
    assert registry.aliases(name) == {CHALLENGER: 3, CHAMPION: 3, PREVIOUS: 1}
    (overtaken,) = records(registry, second, "v2-against-v1")
    (promoted,) = records(registry, third, "v3-against-v1")
    assert (overtaken["outcome"], promoted["outcome"]) == ("overtaken", "promoted")


def test_the_command_line_keeps_the_test_images_in_their_place(
    registry: ModelRegistry, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "params.yaml").write_text("variants: [yolov7-tiny]\nper_variant: {yolov7-tiny: {}}\n")
    registry.client.create_registered_model(name)
    for number in (1, 2):
        registry.client.create_model_version(name, "file:///nowhere", tags=tags(0.5 + number / 10))
    registry.set_aliases(name, {CHALLENGER: 2, CHAMPION: 1})

    def compare(challenger: Version, champion: Version) -> Mapping[str, Any]:
        with (tmp_path / ".state/run.lock").open("a") as handle, pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return unlike(challenger, champion)

    monkeypatch.setattr(promote, "compared_now", lambda pipeline: compare)
    assert main([name]) == 0 and "version 2 kept: the champion knows" in capsys.readouterr().out
    assert main([name, "--new-classes"]) == 0 and "version 2 promoted" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--new-classes"])


def test_no_previous_champion(registry: ModelRegistry, name: str, export: Path, capsys: Any) -> None:
    register(registry, name, export, 0.5)
    assert main(["--rollback", name]) == 2
    assert "has no alias 'champion'" in capsys.readouterr().err
    judge(registry, name, rules=Promotion(), compare=never)
    assert main(["--rollback", name]) == 2
    assert "there is no previous champion" in capsys.readouterr().err


def test_an_unavailable_server_is_not_taken_for_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnavailableError, match=r"127\.0\.0\.1"):
        download_model("models:/any@champion")


def test_a_restarting_database_is_not_a_mistake_of_ours() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    said = "(psycopg2.errors.AdminShutdown) terminating connection due to administrator command"
    with pytest.raises(RegistryUnavailableError, match="terminating connection"), reported():
        raise MlflowException(said, error_code=BAD_REQUEST)


def test_a_stage_whose_registry_is_away_may_be_started_again(tmp_path: Path, capsys: Any) -> None:
    def main(params: Any, args: Any) -> None:
        raise RegistryUnavailableError("MLflow at http://mlflow cannot be reached")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.chdir(tmp_path)
        (tmp_path / "params.yaml").write_text("variants: [yolov7-tiny]\nper_variant: {yolov7-tiny: {}}\n")
        run_stage(main, arguments=[])
    assert caught.value.code == EXIT_RESUMABLE
    assert capsys.readouterr().err.splitlines()[-1] == "error: MLflow at http://mlflow cannot be reached"


def test_two_registrations_at_once_make_one_version(export: Path, tmp_path: Path, mlflow_server: str) -> None:
    code = (
        "import sys; from pathlib import Path; from stages.registry.versions import ModelRegistry; r = ModelRegistry();"
        "run = r.run_for({'fingerprint': sys.argv[2]}, experiment='tests', name='twice');"
        "print(r.register(Path(sys.argv[1]), name='twice', run_id=run, origin={}, measured={'AP': 1})[0].number)"
    )
    env = {**os.environ, "MLFLOW_TRACKING_URI": mlflow_server}
    commands = [[sys.executable, "-c", code, str(export), mark] for mark in ("one", "two")]
    both = [
        subprocess.Popen(c, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for c in commands
    ]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert [out.split()[-1] for out, _ in answers] == ["1", "1"]
