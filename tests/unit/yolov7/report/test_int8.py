"""Float and int8 beside each other: every figure in its place, and the classes that lose most."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from yolov7.evaluate.bootstrap import Interval
from yolov7.evaluate.coco import METRICS
from yolov7.report.int8 import HEAD, EightBits, FileFigures, Int8Figures, figure_rows, section, signed


def figures_of(file: str, ap: float, per_class: dict[str, float], size: float, latency: float) -> FileFigures:
    return FileFigures(file, dict.fromkeys(METRICS, ap), per_class, size, latency)


def eight_bits(before: dict[str, float], *after: dict[str, float]) -> EightBits:
    files = [
        Int8Figures(
            figures_of(f"file-{place}.onnx", 0.45, per_class, 6.4, 10.0), Interval(-0.05, -0.06, -0.01), "f" * 64
        )
        for place, per_class in enumerate(after)
    ]
    return EightBits(figures_of("model.onnx", 0.5, before, 24.2, 25.0), files)


def test_the_table_has_the_float_file_first():
    rows = figure_rows(eight_bits({"cat": 0.5}, {"cat": 0.45}))
    first, second = (dict(zip(HEAD, row, strict=True)) for row in rows)
    assert first["File"] == "model.onnx" and first["#Difference (95 %)"] == "–" and first["#Times as fast"] == "1.00"
    assert second["#AP"] == "0.450" and second["#MB"] == "6.4" and second["#Times as fast"] == "2.50"
    assert second["#Difference (95 %)"] == "-0.0500 (-0.0600 to -0.0100)" and second["Runtime"] == "ONNX Runtime"


def test_figures_for_metrics_json():
    found = eight_bits({"cat": 0.5}, {"cat": 0.45}).figures()["file-0.onnx"]
    assert {name: found[name] for name in METRICS} == dict.fromkeys(METRICS, 0.45)
    assert found["AP_difference"] == {"value": -0.05, "low": -0.06, "high": -0.01}
    assert found["times_as_fast"] == 2.5 and found["float_size_mb"] == 24.2 and found["per_class"] == {"cat": 0.45}


def test_no_section_without_int8_files():
    assert section(None, {"cat": 3}) is None


def test_signs_are_always_shown():
    assert signed(Interval(0.0012, -0.0, 0.003)) == "+0.0012 (-0.0000 to +0.0030)"


APS = st.floats(0, 1) | st.just(-1.0)


@given(st.lists(st.tuples(APS, APS, APS), max_size=30))
def test_the_classes_that_lose_most_come_first(values):
    names = [f"class {place}" for place in range(len(values))]
    before, *after = ({name: value[place] for name, value in zip(names, values, strict=True)} for place in range(3))
    rows = section(eight_bits(before, *after), dict.fromkeys(names, 7))["class_rows"]
    known = [name for name in names if before[name] >= 0]
    assert len(rows) == min(len(known), 10)
    falls = {name: max(before[name] - one[name] for one in after) for name in known}
    shown = [falls[row[0]] for row in rows]
    assert shown == sorted(shown, reverse=True)
    assert all(falls[name] <= min(shown) for name in known if name not in [row[0] for row in rows])
    assert all(row[1] == "7" and float(row[-1]) == round(-falls[row[0]], 3) for row in rows)
