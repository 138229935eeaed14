"""The border of `evaluate` in params.yaml: read, resolved for a variant, measured with, recorded, checked before."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
from small_detector import SIDE, metadata_of, pictures, small_index
from small_efficient import small_efficient, trained_efficient

from stages import compare_variants
from stages import evaluate as stage
from stages.preflight.findings import Findings
from stages.preflight.outputs import check_evaluation
from stages.project.params import Evaluate, Params
from yolov7.config import parse
from yolov7.errors import ConfigError
from yolov7.evaluate import evaluate
from yolov7.export import export_onnx
from yolov7.letterbox import Border
from yolov7.model import save_checkpoint
from yolov7.predict import Predictor, TorchRuntime, load_detector


def read(**border: object) -> Evaluate:
    return parse(Evaluate, {"border": border}, where="params.yaml: evaluate")


def predictor_of(trained, variant="small") -> Predictor:
    return Predictor(TorchRuntime(trained.reparameterize(), replace(metadata_of(trained), variant=variant)))


def test_without_a_border_all_is_as_before(trained):
    assert Evaluate().conditions == "confidence=0.001 iou=0.65 max_detections=300"
    assert read(pixels=0).conditions == Evaluate().conditions
    predictor = predictor_of(trained, "yolov6-n")
    assert stage.border_of(predictor, Evaluate()) == Border()
    assert stage._framing(predictor, Evaluate()) == {} and stage._border_words(Border()) == ""


def test_the_published_border_is_that_of_the_model(trained):
    settings = read(pixels="published")
    assert stage.border_of(predictor_of(trained, "yolov6-m"), settings) == Border(12)
    assert stage.border_of(predictor_of(trained, "yolov6v3-n6"), settings) == Border(17)
    assert stage.border_of(predictor_of(trained), settings) == Border()
    assert settings.conditions.endswith(" max_detections=300 border.pixels=published")


def test_figures_are_measured_with_it_and_say_so(trained, tmp_path):
    predictor, images = predictor_of(trained), pictures(4)
    sure = Predictor(predictor.runtime, confidence=0.3, iou=0.5, max_detections=12)
    index = small_index(tmp_path, sure.predict(images), images, predictor.metadata)
    settings = read(pixels=8, integer_offset=False, exact_scale=False, spare=0)
    border = Border(8, integer_offset=False, exact_scale=False, spare=0)
    found = stage.run_evaluation(predictor, index, settings)
    assert found.results == evaluate(predictor, index, border=border).results
    assert found.results != stage.run_evaluation(predictor, index, Evaluate()).results
    written = {"pixels": 8, "integer_offset": False, "exact_scale": False, "spare": 0}
    assert stage._framing(predictor, settings) == {"border": written}
    assert settings.conditions.endswith(
        " border.pixels=8 border.integer_offset=False border.exact_scale=False border.spare=0.0"
    )
    assert stage._border_words(border) == (
        ", border of 8 pixels, offset in halves, scale of the height for both axes, 0 strides to spare"
    )


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A project with an export called yolov6-n and a test split of the objects that it finds."""
    monkeypatch.chdir(tmp_path)
    model = trained_efficient(replace(small_efficient(), name="yolov6-n", image_size=SIDE))
    metadata, images = replace(metadata_of(model), form="deploy"), pictures(4)
    export = Path("models/yolov6-n/export")
    export.mkdir(parents=True)
    deploy = model.reparameterize()
    save_checkpoint(export / "model.safetensors", deploy, metadata)
    export_onnx(deploy, export / "model.onnx", metadata=metadata)
    found = load_detector(export / "model.onnx", confidence=0.2).predict(images)
    folder = Path("data/ingested/test/images")
    folder.mkdir(parents=True)
    small_index(folder, found, images, metadata)
    Path("data/index").mkdir()
    (folder / "index").rename("data/index/test")
    document = {"sha256": "a" * 64, "splits": {"test": {"sha256": "b" * 64}}, "test_is_val": False}
    Path("data/ingested/dataset.json").write_text(json.dumps(document))
    return tmp_path


def test_the_stage_measures_reports_and_compares_a_yolov6_with_its_published_border(workspace):
    settings = {"border": {"pixels": "published"}, "resamples": 20, "pictures": 2, "batch_size": 2}
    values = {"variants": ["yolov6-n"], "per_variant": {"yolov6-n": {}}, "evaluate": settings}
    params = parse(Params, values, where="params.yaml")
    stage.main(params, Namespace(variant="yolov6-n", model=None, output=None))
    figures = json.loads(Path("reports/yolov6-n/metrics.json").read_text())
    assert figures["border"] == {"pixels": 2, "integer_offset": True, "exact_scale": True, "spare": 0.5}
    predictor = load_detector(Path("models/yolov6-n/export/model.onnx"))
    index = stage.open_index("test")
    wanted = evaluate(predictor, index, batch_size=2, border=Border(2)).metrics["AP"]
    assert figures["AP"] == wanted != evaluate(predictor, index, batch_size=2).metrics["AP"]
    report = Path("reports/yolov6-n/report.html").read_text()
    assert "yolov6-n, 3 classes, 96 px" in report and "300 detections, border of 2 pixels" in report
    compare_variants.main(params, Namespace(rounds=1))
    page = Path("reports/comparison.html").read_text()
    assert "yolov6-n 2 pixels" in page and "<td>yolov6-n</td><td>YOLOv6</td>" in page


@pytest.mark.parametrize(
    ("border", "message"),
    [
        ({"pixel": 2}, "evaluate.border.pixel: unknown key .did you mean 'pixels'"),
        ({"pixels": "publish"}, "border.pixels: a whole number of pixels, or `published`, is expected"),
        ({"pixels": -1}, "border.pixels: a whole number"),
        ({"pixels": True}, "border.pixels: a whole number"),
        ({"spare": 2}, "spare"),
    ],
)
def test_mistakes(border, message):
    with pytest.raises(ConfigError, match=message):
        read(**border)


@pytest.mark.parametrize(("pixels", "fault"), [(159, ""), (160, "160 leave no room in yolov7-tiny's input of 160")])
def test_a_border_without_room_is_found_before_the_training(pixels, fault):
    values = {"variants": ["yolov7-tiny"], "per_variant": {"yolov7-tiny": {}}, "train": {"image_size": 160}}
    params = parse(Params, {**values, "evaluate": {"border": {"pixels": pixels}}}, where="params.yaml")
    found = Findings()
    check_evaluation(params, found)
    assert fault in " ".join(found.problems) and bool(found.problems) is bool(fault)
