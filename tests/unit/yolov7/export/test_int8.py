"""Int8: which convolutions go to eight bits, ranges by smallest error, decoding in float, and the way back."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import onnx
import onnxruntime
import pytest
from small_detector import metadata_of, pictures, small_index

from yolov7.artefact import check_folder
from yolov7.config import train_parameters
from yolov7.errors import ConfigError, DataError, ModelError
from yolov7.export import INT8, export_folder, verify
from yolov7.export.calibrate import calibrate
from yolov7.export.int8 import Int8Exporter, Int8Settings, _counts, first_refused
from yolov7.export.quantize import quantizable, quantized
from yolov7.export.samples import augmented_like, evenly_spaced
from yolov7.predict import load_detector
from yolov7.ranges import Histogram, range_of, steps


@pytest.fixture(scope="module")
def graph(exported):
    return onnx.load(exported / "model.onnx")


@pytest.fixture(scope="module")
def exporter(graph, exported, index):
    def make(**settings):
        made = Int8Exporter(
            graph,
            exported / "model.onnx",
            calibration=index,
            validation=index,
            settings=Int8Settings.model_construct(**{"calibration_images": 4, **settings}),  # a limit of -1 too
        )
        made.__dict__["ranges"] = measured.ranges if measured else made.ranges
        return made

    measured = None
    measured = make()
    return make


def images(count=2):
    return [np.random.default_rng(seed).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8) for seed in range(count)]


def run(graph, batch):
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(None, {"images": batch.astype(np.float32) / 255})[0]


def test_all_but_the_last_convolutions_may_go_to_eight_bits(graph):
    names = quantizable(graph)
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    assert len(names) == len(convolutions) - 2  # two levels, each with its prediction
    left = [node for node in convolutions if node.name not in names]
    weights = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    assert [weights[node.input[1]][0] for node in left] == [24, 24]  # 3 anchors x (5 + 3)


@pytest.mark.parametrize("placement", ["onnx", "openvino"])
def test_decoding_stays_in_float(graph, placement):
    ranges = calibrate(graph, images)
    result = quantized(graph, quantizable(graph), ranges, placement=placement)
    onnx.checker.check_model(result)
    names = set(quantizable(graph))
    made_by = {value: node for node in result.graph.node for value in node.output}
    decoding: set[str] = set()  # values behind the last convolutions
    for node in result.graph.node:
        sources = {made_by[value].op_type for value in node.input if value in made_by}
        if node.op_type == "Conv" and node.name in names:
            assert sources == {"DequantizeLinear"}
        elif node.op_type == "Conv" or decoding.intersection(node.input):
            decoding.update(node.output)
            assert node.op_type not in ("QuantizeLinear", "DequantizeLinear")
    assert "detections" in decoding
    batch = images(1)[0]
    difference = np.abs(run(result, batch)[..., 4:] - run(graph, batch)[..., 4:])
    assert 1e-4 < difference.mean() < 0.05
    weights = [tensor for tensor in result.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    weights = [np.abs(onnx.numpy_helper.to_array(t).astype(int)) for t in weights if len(t.dims) == 4]
    assert len(weights) == len(names) and max(weight.max() for weight in weights) > 64
    for weight in weights:  # two products of neighbours fit in sixteen bits
        for order in (weight, np.moveaxis(weight, 1, -1)):
            flat = order.reshape(len(order), -1)
            assert (255 * (flat[:, 1:] + flat[:, :-1]) < 1 << 15).all()


def test_no_layer_in_eight_bits_is_the_float_graph(graph):
    ranges = calibrate(graph, images)
    same = quantized(graph, [], ranges)
    assert not {node.op_type for node in same.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    one = quantized(graph, quantizable(graph)[1:2], ranges, placement="openvino")
    assert sum(node.op_type == "QuantizeLinear" for node in one.graph.node) == 1


def histogram_of(values):
    histogram = Histogram()
    for part in np.array_split(values, 64):
        histogram.add(part)
    return histogram


def test_ranges_leave_out_what_is_too_rare_to_matter(graph):
    values = np.append(np.random.default_rng(0).normal(0, 1, 1_000_000), 100.0)
    low, high = range_of(histogram_of(values), "mse")
    assert -6 < low <= -0.5 and 4 < high < 75  # one value in a million is not worth coarser steps for all others
    low, high = range_of(histogram_of(values[:-1]), "mse")
    assert low < -3 and high > 3
    # Bytes of an image are 256 steps already: the whole range has no error.
    first = next(node for node in graph.graph.node if node.name == quantizable(graph)[0])
    assert calibrate(graph, images)[first.input[0]] == (0.0, 1.0)


def test_what_cannot_be_calibrated_is_refused(graph):
    with pytest.raises(DataError, match="no images to calibrate with"):
        calibrate(graph, list)
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    bias = next(node for node in broken.graph.node if node.op_type == "Conv").input[2]
    tensor = next(t for t in broken.graph.initializer if t.name == bias)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tensor.dims, np.nan, np.float32), bias))
    with pytest.raises(ModelError, match="not finite"):
        calibrate(broken, images)


def test_both_runtimes_within_the_limit_at_once(exporter, index, exported, trained, tmp_path):
    made = exporter(max_ap_drop=0.5)
    files = {}
    for name, placement in (("m.onnx", "onnx"), ("m.xml", "openvino")):
        report = made.export(tmp_path / name, placement)
        assert report.kept_in_float == [] and report.sensitivity == {}
        assert report.steps == [{"in_float": 0, "AP": report.ap}] and report.layers == 6
        assert 0.1 < report.float_ap < 0.9 and abs(report.float_ap - report.ap) < 0.5
        files[name] = (tmp_path / name, INT8)
        detector = load_detector(tmp_path / name)
        assert detector.runtime.file.about.contract["precision"] == "int8"
        assert detector.metadata.class_names == metadata_of(trained).class_names
        json.dumps(asdict(report))
    assert (tmp_path / "m.onnx").stat().st_size < (exported / "model.onnx").stat().st_size
    names = (exported / "model.safetensors", exported / "model.onnx", exported / "model-nms.onnx")
    verified = verify(trained, *names, index, metadata=metadata_of(trained), more=files)
    figures = {form.name: form for form in verified.forms}
    assert figures["m.onnx"].mean_raw_difference > figures["onnx"].mean_raw_difference * 10
    assert figures["m.onnx"].limits == INT8 and figures["onnx"].limits != INT8


def test_the_layer_that_costs_most_goes_back_to_float_first(exporter, graph, tmp_path):
    made = exporter(max_ap_drop=0.1)
    read = [value for node in graph.graph.node if node.op_type == "Conv" for value in node.input[:1]]
    node = next(n for n in graph.graph.node if n.name in quantizable(graph)[1:] and read.count(n.input[0]) == 1)
    worst = node.name
    ruined = dict(made.ranges)
    low, high = ruined[node.input[0]]
    ruined[node.input[0]] = (low / 50, high / 50)
    made.__dict__["ranges"] = ruined
    report = made.export(tmp_path / "m.xml", "openvino")
    assert report.kept_in_float[0] == worst
    assert report.sensitivity[worst] == max(report.sensitivity.values()) > 0
    assert [step["in_float"] for step in report.steps] == [0, 1, 3][: len(report.steps)] and len(report.steps) > 1
    assert report.float_ap - report.steps[0]["AP"] > 0.1 >= report.float_ap - report.ap


def test_convolutions_of_boxes_alone_have_a_sensitivity(exported_aligned, index, monkeypatch):
    """No score depends on them. The last ones, whose outputs are bins and logits, stay in float."""
    monkeypatch.setattr("yolov7.export.int8._SENSITIVITY_IMAGES", 1)
    file = exported_aligned / "model.onnx"
    graph, settings = onnx.load(file), Int8Settings(calibration_images=2)
    weight_of = {node.name: node.input[1] for node in graph.graph.node if node.op_type == "Conv"}
    layers = quantizable(graph)
    left = [weight for name, weight in weight_of.items() if name not in layers]
    assert [weight.removeprefix("head/head.lead.") for weight in left] == [
        f"{level}.{branch}.2.conv.weight" for level in (0, 1) for branch in ("box", "classes")
    ]
    boxes = [name for name in layers if ".box.1." in weight_of[name]]
    made = Int8Exporter(graph, file, calibration=index, validation=index, settings=settings)
    found = made.sensitivity(boxes, "openvino")
    assert len(found) == 2 and 0 < max(found.values()) < 1
    batch = images(1)[0]
    eight_bits = quantized(graph, boxes, made.ranges, placement="openvino")
    np.testing.assert_array_equal(run(eight_bits, batch)[..., 4:], run(graph, batch)[..., 4:])


def test_an_unreachable_limit_leaves_no_file(exporter, tmp_path):
    made = exporter(max_ap_drop=-1.0)  # cannot be reached
    with pytest.raises(
        ModelError, match=r"even with the least sensitive of 6 layers alone .*raise export\.int8\.max_ap_drop"
    ):
        made.export(tmp_path / "m.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_ever_fewer_layers_are_tried_down_to_one():
    assert [_counts(layers) for layers in (0, 1, 2, 3, 6)] == [[], [], [1], [1, 2], [1, 3, 5]]
    assert _counts(55) == [1, 3, 7, 15, 28, 42, 49, 52, 54]
    for layers in range(2, 200):
        counts = _counts(layers)
        assert counts == sorted(set(counts)) and counts[0] == 1 and counts[-1] == layers - 1


def test_a_single_layer_that_may_go_to_eight_bits_is_found(exporter, tmp_path, monkeypatch):
    made = exporter(max_ap_drop=0.1)
    measured = iter([0.5, 0.2, 0.2, 0.2, 0.45])  # of the float file, then with 0, 1, 3 and 5 of 6 layers in float
    monkeypatch.setattr(made._samples, "ap", lambda runtime: next(measured))
    report = made.export(tmp_path / "m.onnx", "onnx")
    assert [step["in_float"] for step in report.steps] == [0, 1, 3, 5]
    assert len(report.kept_in_float) == 5 and report.ap == 0.45 and (tmp_path / "m.onnx").is_file()


def test_positions_are_spread_over_the_whole_set():
    assert evenly_spaced(9, 3) == [0, 4, 8]
    assert evenly_spaced(3, 10) == [0, 1, 2]


def test_mosaic_needs_the_augmentation_of_a_training(graph, exported, index):
    settings = Int8Settings(images="mosaic", calibration_images=2)
    given = {"calibration": index, "validation": index, "settings": settings}
    with pytest.raises(ConfigError, match=r"export\.int8\.images: mosaic needs the training's augmentation"):
        Int8Exporter(graph, exported / "model.onnx", **given)
    train = train_parameters({"image_size": 64}, where="train")
    made = Int8Exporter(graph, exported / "model.onnx", **given, augmented=augmented_like(train, index))
    assert [batch.shape for batch in made._batches(2)] == [(1, 3, 64, 64)] * 2
    assert all(low <= 0 < high for low, high in made.ranges.values())


def test_a_calibration_image_that_is_missing_is_named(graph, exported, trained, tmp_path):
    images, nothing = pictures(2), load_detector(exported, confidence=1.0)
    index = small_index(tmp_path, nothing.predict(images), images, metadata_of(trained))
    (tmp_path / "1.png").unlink()
    made = Int8Exporter(graph, exported / "model.onnx", calibration=index, validation=index, settings=Int8Settings())
    with pytest.raises(DataError, match=r"1\.png") as caught:
        _ = made.ranges
    assert "\n" not in str(caught.value)


def test_learnt_ranges_are_in_the_files(graph, exported, index, tmp_path):
    convolution = next(node for node in graph.graph.node if node.name == quantizable(graph)[2])
    name = convolution.input[1].removeprefix("model.")
    settings = Int8Settings(calibration_images=2, max_ap_drop=1.0)
    given = {"calibration": index, "validation": index, "settings": settings}
    made = Int8Exporter(graph, exported / "model.onnx", **given, learnt={name: (-0.7, 3.1)})
    assert made.ranges[convolution.input[0]] == (-0.7, 3.1)
    report = made.export(tmp_path / "m.onnx", "onnx")
    assert report.trained and not made.settings.share_ranges
    written = onnx.load(tmp_path / "m.onnx")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    made_by = {value: node for node in written.graph.node for value in node.output}
    reader = next(node for node in written.graph.node if node.name == convolution.name)
    _, scale, zero = made_by[reader.input[0]].input
    assert (constants[scale], constants[zero]) == steps(-0.7, 3.1)


def test_shared_ranges_by_the_settings(exporter, graph):
    joined = exporter(share_ranges=True)
    joined.__dict__.pop("ranges")
    for node in graph.graph.node:
        if node.op_type == "Concat" and node.output[0] in joined.ranges:
            assert len({joined.ranges[name] for name in (*node.input, *node.output)}) == 1


@pytest.mark.parametrize("placement", ["onnx", "openvino"])
def test_a_runtime_that_refuses_a_layer_gives_one_line(exporter, graph, tmp_path, monkeypatch, placement):
    """As if one layer were not implemented."""
    made = exporter(max_ap_drop=1.0)
    refused = quantizable(graph)[3]
    original = Int8Exporter._write

    def spoilt(self, path, layers, placement):
        if refused in layers:
            path.write_bytes(b"not a graph")
        else:
            original(self, path, layers, placement)

    monkeypatch.setattr(Int8Exporter, "_write", spoilt)
    target = tmp_path / ("m.xml" if placement == "openvino" else "m.onnx")
    layer = next(node.input[1] for node in graph.graph.node if node.name == refused).removeprefix("model.")
    with pytest.raises(ModelError) as caught:
        made.export(target, placement)
    told = str(caught.value)
    assert told.startswith(f"{target}: {layer.removesuffix('.weight')} in eight bits: ") and "\n" not in told
    assert told.endswith("; update the runtime, or leave this format out of export.formats") and not target.exists()


def test_the_first_refused_layer_is_found_by_halves():
    layers = [f"conv{i}" for i in range(13)]
    for bad in layers:
        tries = []
        found = first_refused(layers, lambda part, bad=bad, tries=tries: tries.append(part) or bad not in part)
        assert found == bad and len(tries) <= 4


@pytest.fixture
def traced_already(traced, monkeypatch):
    monkeypatch.setattr("yolov7.export.folder.export_onnx", traced)


@pytest.mark.usefixtures("traced_already")
def test_a_failed_int8_file_leaves_a_folder_that_can_be_used(trained, index, tmp_path):
    settings = Int8Settings.model_construct(calibration_images=2, max_ap_drop=-1.0, metric="shift")

    def exporter(graph, float_model):
        return Int8Exporter(graph, float_model, calibration=index, validation=index, settings=settings)

    formats = ("onnx-int8", "openvino")
    with pytest.raises(ModelError, match=r"model-int8\.onnx: AP falls by more than"):
        export_folder(trained, tmp_path, metadata=metadata_of(trained), formats=formats, int8=exporter)
    names = check_folder(tmp_path)
    assert "optional/openvino.bin" in names and "optional/model-int8.onnx" not in names
    assert not (tmp_path / "optional/model-int8.onnx").exists()
    document = json.loads((tmp_path / "optional/formats.json").read_text())
    assert document["formats"] == ["openvino"] and document["int8"] == {}
    assert load_detector(tmp_path).predict(np.zeros((64, 64, 3), np.uint8)) is not None


@pytest.mark.usefixtures("traced_already")
def test_all_int8_files_of_a_folder(trained, index, tmp_path):
    settings = Int8Settings(calibration_images=2, max_ap_drop=1.0, sensitivity=True)

    def exporter(graph, float_model):
        return Int8Exporter(graph, float_model, calibration=index, validation=index, settings=settings)

    formats = ("onnx-int8-tensorrt", "onnx-int8")
    export_folder(trained, tmp_path, metadata=metadata_of(trained), formats=formats, int8=exporter)
    names = check_folder(tmp_path)
    assert {"optional/sensitivity.csv", "optional/model-int8-tensorrt.onnx", "optional/model-int8.onnx"} <= set(names)
    document = json.loads((tmp_path / "optional/formats.json").read_text())
    assert document["tensorrt"]["optional/model-int8-tensorrt.onnx"]["passed"]
    assert {name: len(report["layer_sensitivity"]) for name, report in document["int8"].items()} == dict.fromkeys(
        formats, 6
    )
    lines = (tmp_path / "optional/sensitivity.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 6
    assert load_detector(tmp_path / "optional/model-int8-tensorrt.onnx").metadata.num_classes == trained.num_classes
