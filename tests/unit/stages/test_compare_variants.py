"""Measurements of the comparison of variants."""

from __future__ import annotations

import shutil

import pytest
from small_detector import pictures

from stages import compare_variants
from stages.compare_variants import _timed
from stages.project.params import Evaluate
from stages.registry import server
from yolov7.files import write_json
from yolov7.predict.runtimes import OnnxRuntime


@pytest.mark.parametrize(
    ("folder", "augment", "views"),
    [("exported", False, 1), ("exported", "flip", 2), ("exported", True, 3), ("exported_yolov6", True, 3)],
)
def test_latency_is_of_the_views_that_ap_was_measured_with(folder, request, tmp_path, monkeypatch, augment, views):
    shutil.copytree(request.getfixturevalue(folder), tmp_path / "models/small/export")
    monkeypatch.chdir(tmp_path)
    seen, decoded = [], OnnxRuntime.decoded
    monkeypatch.setattr(OnnxRuntime, "decoded", lambda self, images: seen.append(1) or decoded(self, images))
    timed = _timed(["small"], pictures(2), 2, Evaluate(augment=augment))
    assert len(seen) == views * (2 + 3), "two rounds, and three before them that do not count"
    assert timed["small"].rounds == 2


def test_the_page_names_the_borders_that_ap_was_measured_with():
    with_border = {"AP": 0.5, "border": {"pixels": 6}}
    assert compare_variants._borders({"a": {"AP": 0.4}}) == ""
    assert compare_variants._borders({"a": {"AP": 0.4}, "b": with_border}) == "a 0 pixels, b 6 pixels"


def test_the_page_goes_to_the_runs_of_its_variants(tmp_path, monkeypatch, caplog, new_database):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/comparison.html").write_text("<p>AP</p>")
    compare_variants._keep(["a", "b"])
    assert not caplog.messages, "nothing registered, nothing to say"
    client = server.connect()
    experiment = server.experiment_id(client, "yolov7")
    runs = {name: client.create_run(experiment).info.run_id for name in ("a", "b")}
    for name, run_id in runs.items():
        write_json(tmp_path / "models" / name / "registered.json", {"run_id": run_id})
    write_json(tmp_path / "models/d/registered.json", {"run_id": None})  # a version without a run
    compare_variants._keep(["a", "b", "c", "d"])
    for run_id in runs.values():
        assert [one.path for one in client.list_artifacts(run_id, "reports")] == ["reports/comparison.html"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write_json(tmp_path / "models/a/registered.json", {"run_id": "0" * 32})
    compare_variants._keep(["a"])
    assert "comparison.html is not in MLflow" in caplog.text
