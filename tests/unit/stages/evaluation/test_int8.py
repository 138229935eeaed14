"""The evaluation measures the int8 files of an export beside its float file, and says nothing where there are none."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
from small_int8 import int8_export, project_with_test_split

from stages import evaluate as stage
from stages.evaluation.int8 import measure_int8
from stages.project.params import Evaluate, Params
from yolov7.config import parse
from yolov7.errors import ModelError
from yolov7.evaluate.bootstrap import ap_difference_interval
from yolov7.files import sha256_file
from yolov7.predict import load_detector

FILES = ["model-int8.onnx", "openvino-int8.xml"]
SETTINGS = {"resamples": 20, "pictures": 2, "batch_size": 2}


def params() -> Params:
    return parse(Params, {"variants": ["small"], "per_variant": {"small": {}}, "evaluate": SETTINGS}, where="params")


def evaluate() -> dict:
    stage.main(params(), Namespace(variant="small", model=None, output=None))
    return json.loads(Path("reports/small/metrics.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory, trained):
    """A project, exported and evaluated once."""
    root = tmp_path_factory.mktemp("int8")
    index = project_with_test_split(root, trained)
    export = int8_export(trained, root / "models/small/export", index)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(stage, "check_chosen", lambda *_: None)  # a network of the tests
        figures = evaluate()
    return root, index, export, figures


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made[0])
    monkeypatch.setattr(stage, "check_chosen", lambda *_: None)
    return made


def test_every_int8_file_is_measured_as_the_float_file_is(here):
    _, index, export, figures = here
    assert list(figures["int8"]) == FILES
    settings = Evaluate(**SETTINGS)
    floats = stage.run_evaluation(load_detector(export / "model.onnx"), index, settings)
    assert floats.metrics["AP"] == figures["AP"]
    for name in FILES:
        found = figures["int8"][name]
        result = stage.run_evaluation(load_detector(export / "optional" / name), index, settings)
        assert {key: found[key] for key in result.metrics} == result.metrics
        assert found["per_class"] == result.per_class
        wanted = ap_difference_interval(result.matches, floats.matches, resamples=20)
        assert found["AP_difference"] == {"value": wanted.value, "low": wanted.low, "high": wanted.high}
        assert found["AP_difference"]["value"] == pytest.approx(found["AP"] - figures["AP"])
        assert found["artefact_sha256"] == sha256_file(export / "optional" / name)
        ratio = found["float_latency_ms"] / found["latency_ms"]
        assert found["times_as_fast"] == pytest.approx(ratio, abs=0.05 * ratio) and found["latency_ms"] > 0
    assert figures["int8"][FILES[0]]["AP"] != figures["AP"], "another file was measured"


def test_an_openvino_file_weighs_its_weights_too(here):
    _, _, export, figures = here
    parts = [export / "optional/openvino-int8.xml", export / "optional/openvino-int8.bin"]
    assert figures["int8"]["openvino-int8.xml"]["size_mb"] == sum(part.stat().st_size for part in parts) / 1e6
    assert figures["int8"]["model-int8.onnx"]["float_size_mb"] == (export / "model.onnx").stat().st_size / 1e6


def test_dvc_sees_the_same_keys_and_the_int8_ones_below(here):
    _, _, _, figures = here
    summary = json.loads(Path("reports/small/summary.json").read_text())
    assert list(summary)[:3] == ["AP", "AP_low", "AP_high"] and list(summary)[-1] == "int8"
    for name in FILES:
        assert list(summary["int8"][name]) == ["AP", "AP50", "AP75", "AP_difference", "size_mb"]
        assert summary["int8"][name]["AP"] == figures["int8"][name]["AP"]


def test_the_report_shows_float_and_int8_beside_each_other(here):
    _, _, _, figures = here
    page = Path("reports/small/report.html").read_text()
    part = page[page.index("<h2>Eight bits</h2>") : page.index("<h2>Precision and recall</h2>")]
    for text in ("model.onnx", *FILES, "OpenVINO", "post-training, ranges", "on 4 training images", "Kept in float"):
        assert text in part, text
    assert f"{figures['int8'][FILES[0]]['AP_difference']['value']:+.4f} (" in part
    assert "AP on validation images" in part and "0 in float: AP" in part


def test_without_int8_files_nothing_is_said_of_them(here, tmp_path, trained, monkeypatch):
    root, index, _, figures = here
    shutil.copytree(root / "data", tmp_path / "data")
    export = int8_export(trained, tmp_path / "models/small/export", index, formats=())
    monkeypatch.chdir(tmp_path)
    plain = evaluate()
    # Two exports of one network hold the same graph; every other figure is the same, too.
    assert plain == {key: value for key, value in figures.items() if key != "int8"}
    assert "int8" not in json.loads(Path("reports/small/summary.json").read_text())
    page = Path("reports/small/report.html").read_text()
    assert "Eight bits" not in page
    other = (root / "reports/small/report.html").read_text()
    start, end = other.index("<h2>Eight bits</h2>"), other.index("<h2>Precision and recall</h2>")
    assert page == other[:start] + other[end:], "the rest of the page is the same to the byte"
    (export / "model.json").unlink()
    assert measure_int8(export, None, index, Evaluate()) is None, "a file measured alone"


def test_an_int8_file_that_is_gone_or_changed_is_refused(here, tmp_path):
    _, index, export, _ = here
    copy = shutil.copytree(export, tmp_path / "export")
    file = copy / "optional/model-int8.onnx"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ModelError, match=r"model-int8\.onnx: its bytes are not those"):
        measure_int8(copy, None, index, Evaluate(**SETTINGS))
    file.unlink()
    with pytest.raises(ModelError, match=r"model-int8\.onnx: no such model"):
        measure_int8(copy, None, index, Evaluate(**SETTINGS))
