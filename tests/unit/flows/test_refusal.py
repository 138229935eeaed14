"""A run that has something to train asks first what the training would refuse; one that has not asks nothing."""

from __future__ import annotations

from flows.train_variants import _refusal
from stages.project.params import Params


def test_a_run_is_refused_before_its_data_stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    refused = _refusal(Params(), ["yolov7-tiny"], set())
    assert str(refused).startswith("preflight: MLFLOW_TRACKING_URI=mlruns")
    assert _refusal(Params(), ["yolov7-tiny"], {"train@yolov7-tiny"}) is None
