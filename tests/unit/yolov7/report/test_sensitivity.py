"""The page on the sensitivity of layers: each layer in table and chart, those in float marked, the worst on top."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolov7.int8_files import Int8Making
from yolov7.report.sensitivity import _ranked, render_sensitivity, write_sensitivity_page

NAMES = ("layer", "kind", "channels", "mse", "snr", "cosine", "shift", "ap")
VALUES = (
    ("stem <a>", "Conv", 16, 0.5, 10.0, 0.99, 0.2, 0.40),
    ("neck", "ConvTranspose", 8, 0.2, 20.0, 0.999991, 0.1, 0.45),
    ("head", "Conv", 4, 0.1, 40.0, 1.0, 0.0, 0.50),
)
ROWS = tuple(dict(zip(NAMES, values, strict=True)) for values in VALUES)


def making(**changes: object) -> Int8Making:
    base = {"file": "model-int8.onnx", "layers": 3, "kept_in_float": ("stem <a>",), "float_ap": 0.5, "ap": 0.49}
    return Int8Making(**{**base, "sensitivity": ROWS, "metric": "snr", **changes})


def cells(page: str) -> list[list[str]]:
    body = page.split("<tbody>")[-1].split("</tbody>")[0]
    return [re.findall(r"<td.*?>(.*?)</td>", row) for row in body.split("<tr>")[1:]]


def test_every_layer_with_every_figure():
    page = render_sensitivity("small", [making()])
    assert page is not None and "<title>small: layers in eight bits</title>" in page
    assert cells(page) == [
        ["1", "stem &lt;a&gt;", "Conv", "16", "0.500", "10.0", "0.99000000", "0.200", "0.400", "float"],
        ["2", "neck", "ConvTranspose", "8", "0.200", "20.0", "0.99999100", "0.100", "0.450", "int8"],
        ["3", "head", "Conv", "4", "0.100", "40.0", "1.00", "0.00", "0.500", "int8"],
    ]
    assert not re.search(r"https?://|<link|src=", page), "it opens without a network"
    assert "3 of 3 layers, the most sensitive by SNR, dB first" in page
    assert page.count("stroke:var(--accent)") == 1, "one layer stayed in float"
    assert "stem &lt;a&gt;: 10.0, kept in float" in page


def test_a_record_of_an_earlier_revision_has_the_shift_alone():
    old = making(sensitivity=({"layer": "b", "shift": 0.2}, {"layer": "a", "shift": 0.1}), kept_in_float=())
    page = render_sensitivity("small", [old])
    assert cells(page) == [["1", "b", "–", "–", "0.200", "int8"], ["2", "a", "–", "–", "0.100", "int8"]]
    assert "by Shift first" in page and "MSE" not in page


@pytest.mark.parametrize("metric", ["mse", "snr", "cosine", "shift", "ap"])
def test_the_worst_layer_has_the_longest_bar(metric):
    bars = _ranked(making(metric=metric, sensitivity=ROWS[::-1]), metric)
    assert [bar.layer for bar in bars] == ["stem <a>", "neck", "head"]
    assert bars[0].length == 1.0 and bars[-1].length == pytest.approx(0.2 if metric == "mse" else 0.0)


@given(
    st.lists(st.floats(-200, 200), min_size=1, max_size=60), st.sampled_from(["mse", "snr", "cosine", "shift", "ap"])
)
def test_bars_lie_between_nothing_and_one(values, metric):
    rows = tuple({"layer": f"layer {place}", metric: value} for place, value in enumerate(values))
    bars = _ranked(making(metric=metric, sensitivity=rows), metric)
    assert len(bars) == len(values) and all(0 <= bar.length <= 1 for bar in bars)
    page = render_sensitivity("x", [making(metric=metric, sensitivity=rows)])
    assert page.count("<rect") == min(len(values), 40) and len(cells(page)) == len(values)


def test_no_page_where_nothing_was_measured(tmp_path):
    assert render_sensitivity("small", [making(sensitivity=())]) is None
    (tmp_path / "optional").mkdir()
    page = tmp_path / "optional/sensitivity.html"
    assert not write_sensitivity_page(tmp_path, title="small") and not page.exists()
    report = {"layers": 2, "kept_in_float": [], "sensitivity": {"node_1": 0.1, "node_2": 0.3}}
    (tmp_path / "optional/formats.json").write_text(json.dumps({"int8": {"onnx-int8": report}}))
    assert write_sensitivity_page(tmp_path, title="small")
    assert [row[1] for row in cells(page.read_text())] == ["node_2", "node_1"]
