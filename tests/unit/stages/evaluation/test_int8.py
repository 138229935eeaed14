"""The evaluation measures the int8 files of an export beside its float file, and says nothing where there are none."""

from __future__ import annotations

import json
import math
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_detector import metadata_of
from small_int8 import int8_export, project_with_test_split, write_coco

import yolov7
from flows.promotion.rules import budgets
from stages import choose, compare, compare_variants
from stages import evaluate as stage
from stages.evaluation.int8 import measure_int8
from stages.project.params import Evaluate, Params, Promotion
from stages.project.workspace import measured
from stages.register import _check_one_export, record_of
from stages.registry.server import metric_name
from stages.registry.tags import evaluation_tags, int8_figures
from stages.registry.versions import Version
from yolov7.artefact import check_folder
from yolov7.cli import main
from yolov7.config import parse
from yolov7.errors import DataError, ModelError
from yolov7.evaluate.bootstrap import ap_difference_interval
from yolov7.files import sha256_file
from yolov7.model import save_checkpoint
from yolov7.predict import load_detector

FILES = ["model-int8.onnx", "openvino-int8.xml"]
SETTINGS = {"resamples": 20, "pictures": 2, "batch_size": 2}


def params() -> Params:
    return parse(Params, {"variants": ["small"], "per_variant": {"small": {}}, "evaluate": SETTINGS}, where="params")


def evaluate() -> dict:
    stage.main(params(), Namespace(variant="small", model=None, output=None))
    return json.loads(Path("reports/small/metrics.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory, trained, traced):
    """A project, exported and evaluated once."""
    root = tmp_path_factory.mktemp("int8")
    index = project_with_test_split(root, trained)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolov7.export.folder.export_onnx", traced)
        export = int8_export(trained, root / "models/small/export", index)
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


def test_the_gate_measures_the_int8_files_of_both_models(here, tmp_path):
    _, _, export, figures = here
    output = tmp_path / "comparison.json"
    plain = shutil.copytree(export, tmp_path / "plain")
    for file in FILES:
        (plain / "optional" / file).unlink()
    description = json.loads((plain / "model.json").read_text())
    description["files"] = {name: each for name, each in description["files"].items() if "int8" not in name}
    (plain / "model.json").write_text(json.dumps(description))
    compare.main(params(), Namespace(challenger=str(export), champion=str(plain), output=output))
    found = json.loads(output.read_text())
    assert "int8" not in found["champion"] and list(found["challenger"]["int8"]) == FILES
    for file in FILES:
        measured, before = found["challenger"]["int8"][file], figures["int8"][file]
        assert measured["AP"] == before["AP"] and measured["AP_difference"] == before["AP_difference"]
        assert found["challenger"]["tags"][f"int8.{file}.AP"] == f"{before['AP']:.6f}"
    assert set(found["champion"]["tags"]) == {"AP", "AP50", "test_data_sha256", "evaluation"}
    loss = max(figures["AP"] - figures["int8"][file]["AP"] for file in FILES)
    assert loss > 0, "or the limit below could not be passed"
    judged = budgets(found["challenger"], Promotion(max_int8_loss=loss / 2))
    assert [check.rule for check in judged] == ["int8", "int8"] and not all(check.passed for check in judged)
    assert all(check.passed for check in budgets(found["challenger"], Promotion(max_int8_loss=loss + 0.001)))


def test_a_version_carries_the_ap_of_its_int8_files(here):
    _, _, _, figures = here
    tags = evaluation_tags(figures, Evaluate())
    assert tags["int8.model-int8.onnx.AP50"] == f"{figures['int8']['model-int8.onnx']['AP50']:.6f}"
    assert set(tags) - set(evaluation_tags({**figures, "int8": {}}, Evaluate())) == {
        f"int8.{file}.{name}" for file in FILES for name in ("AP", "AP50")
    }
    numbers = int8_figures(figures)
    assert numbers["int8.openvino-int8.xml.times_as_fast"] > 0 and all(map(math.isfinite, numbers.values()))
    assert [metric_name(f"test/{name}") for name in numbers] == [f"test/{name}" for name in numbers]
    version = Version("small", 1, "run", dict.fromkeys(("artefact_sha256", "manifest_sha256", "git_revision"), "x"))
    assert record_of(version, figures)["int8"] == {file: figures["int8"][file]["AP"] for file in FILES}
    assert "int8" not in record_of(version, {key: figures[key] for key in ("AP", "AP50", "test_data_sha256")})


def test_int8_figures_of_another_export_are_refused(here):
    _, _, export, figures = here
    (export / "verify.json").write_text("{}")
    _check_one_export(export, figures, "small")
    other = {**figures, "int8": {FILES[0]: {**figures["int8"][FILES[0]], "artefact_sha256": "0" * 64}}}
    with pytest.raises(DataError, match=r"measured on another model-int8\.onnx; run `dvc repro evaluate@small` again"):
        _check_one_export(export, other, "small")


@pytest.mark.parametrize("int8", [3, {"a.onnx": {}}, {"a.onnx": {"AP": "high"}}])
def test_damaged_int8_figures_are_named(tmp_path, int8):
    document = {"AP": 0.5, "AP50": 0.7, "test_data_sha256": "0" * 64, "int8": int8}
    (tmp_path / "reports/small").mkdir(parents=True)
    (tmp_path / "reports/small/metrics.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"`int8` lacks figures of a file; run `dvc repro evaluate@small` again"):
        measured("small", tmp_path)


def test_the_comparison_of_variants_shows_them_too(here, caplog):
    _, _, export, figures = here
    compare_variants.main(params(), Namespace(rounds=1))
    page = Path("reports/comparison.html").read_text()
    part = page[page.index("<h2>Eight bits</h2>") : page.index("<h2>Classes</h2>")]
    for file in FILES:
        assert f"<td>small</td><td>{file}</td>" in part and f">small, {file}: " in page
        assert f"{figures['int8'][file]['AP_difference']['value']:+.4f} (" in part
    assert page[: page.index("<h2>As published</h2>")].count("<svg") == 4, "size too"
    assert not caplog.messages or "not the file" not in caplog.text
    file = export / "optional/model-int8.onnx"
    bytes_before = file.read_bytes()
    file.write_bytes(bytes_before + b" ")
    try:
        assert list(compare_variants._int8_measured("small", figures)) == FILES[1:]
    finally:
        file.write_bytes(bytes_before)
    assert "model-int8.onnx: not the file that was evaluated: run `dvc repro evaluate@small`" in caplog.text


def test_a_choice_measures_and_registers_the_int8_files_of_its_finalists(here, tmp_path, monkeypatch):
    _, index, export, figures = here
    floats = stage.run_evaluation(load_detector(export / "model.onnx"), index, Evaluate(**SETTINGS))
    plain = tmp_path / "plain"
    plain.mkdir()
    found = choose._int8(params(), {"small": export, "other": plain}, {"small": floats, "other": floats}, index)
    assert list(found) == ["small"], "the other has no int8 files"
    measured = found["small"].figures()
    assert {file: measured[file]["AP"] for file in FILES} == {file: figures["int8"][file]["AP"] for file in FILES}
    kept = {}
    monkeypatch.setattr(choose, "register_export", lambda *_, metrics, **__: kept.update(metrics))
    monkeypatch.setattr(choose, "record_of", lambda _, metrics: dict(metrics))
    chosen = {"variant": "small", "ap_low": 0.1, "ap_high": 0.2}
    document = {"measured": [chosen], "test_data_sha256": "b" * 64, "model": "m", "reasons": ["why"], "epochs": 3}
    trial = SimpleNamespace(variant="small", key="k")
    choose._register(params(), trial, floats, {**document, "int8": {"small": measured}})
    assert kept["int8"] == measured
    kept.clear()
    choose._register(params(), trial, floats, document)
    assert kept["AP"] == floats.metrics["AP"] and "int8" not in kept


def test_the_library_measures_and_times_an_int8_file_without_the_pipeline(here, tmp_path, capsys):
    _, index, export, figures = here
    truth = {"annotations": str(write_coco(index, tmp_path / "truth.json")), "images": str(index.image_root)}
    for file in FILES:
        out = tmp_path / file
        found = yolov7.evaluate_model(
            export / "optional" / file, data={"train": truth, "val": truth}, out=out, resamples=20
        )
        assert found.metrics["AP"] == pytest.approx(figures["int8"][file]["AP"], abs=1e-9)
        assert "3 classes, 96 px, int8" in (out / "report.html").read_text()
    options = ["--compare", "--rounds", "1", "--warmup", "0", "--network", "small_detector:small_network"]
    assert main(["benchmark", "--model", str(export), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, file in zip(("onnx int8", "openvino int8"), FILES, strict=True):
        line = [line for line in lines if name in line][-1]  # a narrow terminal has the last columns below
        assert f"{figures['int8'][file]['size_mb']:.1f}" in line


def test_the_library_leaves_a_page_on_the_layers(here, tmp_path, trained):
    _, index, _, _ = here
    truth = {"annotations": str(write_coco(index, tmp_path / "truth.json")), "images": str(index.image_root)}
    save_checkpoint(tmp_path / "small.safetensors", trained, metadata_of(trained))
    done = yolov7.export_weights(
        tmp_path / "small.safetensors",
        out=tmp_path / "out",
        formats=["onnx-int8"],
        data={"train": truth, "val": truth},
        int8={"sensitivity": True, "calibration_images": 4, "keep_in_float": 4},
        network="small_detector:small_network",
    )
    page = (tmp_path / "out/optional/sensitivity.html").read_text()
    assert page.count(">float</td>") == 4 and "backbone.P2" in page and "4 in float: AP" in page
    description = json.loads((tmp_path / "out/model.json").read_text())
    assert description["files"]["optional/sensitivity.html"]["sha256"] == sha256_file(
        tmp_path / "out/optional/sensitivity.html"
    )
    check_folder(done.folder)


def test_without_int8_files_nothing_is_said_of_them(here, tmp_path, trained, traced, monkeypatch):
    monkeypatch.setattr("yolov7.export.folder.export_onnx", traced)
    root, index, _, figures = here
    shutil.copytree(root / "data", tmp_path / "data")
    export = int8_export(trained, tmp_path / "models/small/export", index, formats=())
    monkeypatch.chdir(tmp_path)
    plain = evaluate()
    # Of the same graph every other figure is the same, too.
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
