"""Sensitivity of layers: the metrics, the order they give, what stays in float by it, and the table."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict

import numpy as np
import onnx
import pytest
from graph_maker import GraphMaker
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.artefact import Int8Settings
from yolov7.errors import ConfigError
from yolov7.export import sensitivity
from yolov7.export.int8 import Int8Exporter
from yolov7.export.quantize import layer_names, quantizable
from yolov7.export.sensitivity import SNR_MOST, Sensitivity, distances, last_maps, write_sensitivities

METRICS = ("shift", "mse", "snr", "cosine")


@pytest.fixture(scope="module")
def graph(exported):
    return onnx.load(exported / "model.onnx")


@pytest.fixture(scope="module")
def exporter(graph, exported, index):
    def make(**given):
        values = Int8Settings(**{"calibration_images": 3, "max_ap_drop": 1.0, **given})
        made = Int8Exporter(graph, exported / "model.onnx", calibration=index, validation=index, settings=values)
        made.__dict__["ranges"] = ranges or made.ranges
        return made

    ranges = None
    ranges = make().ranges
    return make


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(0.01, 10))
@settings(max_examples=40, deadline=None)
def test_distances_are_those_of_their_definitions(values, factor):
    signal = np.array(values)
    assert distances(signal, signal) == pytest.approx((0.0, SNR_MOST, 1.0))
    if np.abs(signal).max() > 1e-3:
        mse, snr, cosine = distances(signal, signal * (1 + factor))
        assert mse == pytest.approx(factor**2 * (signal**2).mean())
        assert snr == pytest.approx(-20 * math.log10(factor)) and cosine == pytest.approx(1)
        assert distances(signal, -signal)[2] == pytest.approx(-1)


def test_maps_without_signal_have_distances():
    nothing, something = np.zeros(4), np.ones(4)
    assert distances(nothing, nothing) == (0.0, SNR_MOST, 1.0)
    assert distances(nothing, something) == (1.0, -SNR_MOST, 0.0)


def test_the_maps_are_the_outputs_of_the_last_convolutions(graph):
    chosen = set(quantizable(graph))
    left = [node.output[0] for node in graph.graph.node if node.op_type == "Conv" and node.name not in chosen]
    assert last_maps(graph) == left and len(left) == 2
    maker = GraphMaker()
    features = maker.add("Relu", maker.conv("images", inputs=3))
    logits = maker.conv(features)
    expectation = maker.conv(maker.add("Softmax", logits, axis=1), channels=1)  # decodes: not a map
    assert last_maps(maker.model(expectation)) == [logits]


def test_every_metric_finds_the_layer_whose_range_is_ruined(exporter, graph):
    made = exporter()
    read = [value for node in graph.graph.node if node.op_type == "Conv" for value in node.input[:1]]
    worst = next(n for n in graph.graph.node if n.name in quantizable(graph)[1:] and read.count(n.input[0]) == 1)
    low, high = made.ranges[worst.input[0]]
    made.__dict__["ranges"] = {**made.ranges, worst.input[0]: (low / 50, high / 50)}
    layers = quantizable(graph)
    found = made.sensitivities(layers, "openvino")
    assert [row.node for row in found] == layers and [row.layer for row in found] == list(
        map(layer_names(graph).__getitem__, layers)
    )
    for metric in METRICS:
        assert max(found, key=lambda row: row.badness(metric)).node == worst.name, metric
    weights = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    row = next(row for row in found if row.node == worst.name)
    assert (row.kind, row.channels, row.ap) == ("Conv", weights[worst.input[1]][0], None)
    assert row.mse > 0 and row.shift > 0 and row.cosine < 1 and row.snr < 60


def test_a_number_of_layers_stays_in_float_without_asking_ap(exporter, tmp_path):
    made = exporter(keep_in_float=2, metric="mse", max_ap_drop=0.0)
    report = made.export(tmp_path / "m.onnx", "onnx")
    rows = report.layer_sensitivity
    assert report.kept_in_float == [row["node"] for row in rows[:2]] and len(rows) == report.layers == 6
    assert [row["mse"] for row in rows] == sorted((row["mse"] for row in rows), reverse=True)
    assert report.sensitivity == {row["node"]: row["mse"] for row in rows} and report.metric == "mse"
    assert [step["in_float"] for step in report.steps] == [2]
    report = exporter(keep_in_float=0).export(tmp_path / "none.onnx", "onnx")
    assert report.kept_in_float == [] and report.layer_sensitivity == []
    with pytest.raises(ConfigError, match=r"keep_in_float: 6 would leave no layer in eight bits; small has 6 that"):
        exporter(keep_in_float=6).export(tmp_path / "all.onnx", "onnx")
    assert not (tmp_path / "all.onnx").exists()


def test_ap_ranks_layers_by_an_evaluation_each(exporter, graph, tmp_path, monkeypatch):
    made = exporter(metric="ap", sensitivity=True)
    layers = quantizable(graph)
    given = dict(zip(layers, (0.5, 0.2, 0.4, 0.1, 0.6, 0.3), strict=True))
    monkeypatch.setattr(made, "_ap_alone", lambda name, placement: given[name])
    report = made.export(tmp_path / "m.xml", "openvino")
    assert [row["ap"] for row in report.layer_sensitivity] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert report.sensitivity == given and report.kept_in_float == []
    monkeypatch.undo()
    assert 0 <= made._ap_alone(layers[0], "openvino") <= 1


def test_sensitivity_is_recorded_where_it_is_asked_for(exporter, tmp_path):
    report = exporter(sensitivity=True, metric="snr").export(tmp_path / "m.onnx", "onnx")
    assert report.kept_in_float == [] and len(report.layer_sensitivity) == 6
    snr = [row["snr"] for row in report.layer_sensitivity]
    assert snr == sorted(snr)
    json.dumps(asdict(report), allow_nan=False)


def test_the_table_has_a_line_per_format_and_layer(tmp_path):
    rows = [
        asdict(Sensitivity(f"neck.{i}", f"conv_{i}", "Conv", 8, 0.1, 20.0, 0.9, 0.2, ap))
        for i, ap in ((0, None), (1, 0.5))
    ]
    reports = {
        "onnx-int8": {"layer_sensitivity": rows, "kept_in_float": ["conv_1"]},
        "openvino-int8": {"layer_sensitivity": [], "kept_in_float": []},
    }
    write_sensitivities(tmp_path / "s.csv", reports)
    read = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [(row["format"], row["layer"], row["ap"], row["kept_in_float"]) for row in read] == [
        ("onnx-int8", "neck.0", "", "false"),
        ("onnx-int8", "neck.1", "0.5", "true"),
    ]
    assert list(read[0])[1:4] == ["layer", "node", "kind"]


@pytest.mark.parametrize("placement", ["onnx", "openvino"])
def test_a_layer_is_measured_with_its_learnt_range_as_the_file_has_it(graph, exported, index, monkeypatch, placement):
    name, exacts = quantizable(graph)[1], []
    weight = next(node.input[1] for node in graph.graph.node if node.name == name)
    value = next(node.input[0] for node in graph.graph.node if node.name == name)
    given_ = {"calibration": index, "validation": index, "settings": Int8Settings(calibration_images=2)}
    made = Int8Exporter(graph, exported / "model.onnx", **given_, learnt={weight: (-0.7, 3.1)})
    plain = sensitivity.quantized

    def quantized(*arguments, exact=(), **how):
        exacts.append(set(exact))
        return plain(*arguments, exact=exact, **how)

    monkeypatch.setattr(sensitivity, "quantized", quantized)
    (row,) = made.sensitivities([name], placement)
    assert row.node == name and exacts == [{value}]
