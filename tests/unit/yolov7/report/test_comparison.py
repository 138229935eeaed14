"""The page that compares variants: every figure in its place, nothing from elsewhere, charts that hold every dot."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolov7.catalogue import listed_infos
from yolov7.evaluate.bootstrap import Interval
from yolov7.report.charts import Dot, scatter
from yolov7.report.choice import ChoiceDocument, Finalist, render_choice
from yolov7.report.comparison import Compared, Int8Compared, render_comparison
from yolov7.report.int8 import EightBits, FileFigures, Int8Figures

FIGURES = {"AP": 0.512, "AP_low": 0.49, "AP_high": 0.53, "AP50": 0.7, "AP75": 0.55}
FIGURES |= {"APs": -1.0, "APm": 0.4, "APl": 0.6}


def compared(variant: str, **changes: object) -> Compared:
    one = Compared(variant, FIGURES, {"cat <tom>": 0.25, "owl": -1.0}, 6_014_038, 13.25, 640, 12.5, 11.0, 19.0, 24.2)
    return replace(one, notes={"Version": "3"}, **changes)


def test_the_page_tells_what_was_measured_and_what_was_published():
    slow = compared("mine & yours", latency_ms=99.5, metrics={**FIGURES, "AP": 0.6}, per_class={"owl": 0.1})
    page = render_comparison({"Test data": "a1<b2"}, [compared("yolov7-tiny"), slow], listed_infos(["yolov7"]))
    text = re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]*>", " ", page)
    row = text.split("yolov7-tiny", 4)[-1]
    for cell in (
        "0.512",
        "0.512 (0.490–0.530)",
        "12.5",
        "12.5 (11.0–19.0)",
        "6.01",
        "13.2",
        "24.2",
        "a1&lt;b2",
        "99.5",
    ):
        assert cell in text, cell
    assert "cat &lt;tom&gt; 0.250 –" in " ".join(text.split()), "a class that only one of them knows"
    assert "51.4 69.7 55.9 test-dev, 640 px 161 V100 fp16" in " ".join(row.split())
    assert "FPS: one V100, fp16, batch 1, without suppression." in text
    assert "latency on one V100, fp16, ms" in text
    assert not re.search(r"https?://|<link|src=", page), "it opens without a network"
    assert page.count("<svg") == 6 and page.count('class="sorts"') == 3


def test_each_family_has_its_section_and_its_own_conditions():
    names, (row, six) = ["yolov7", "gelan-t", "yolov9-t"], listed_infos(["yolov7", "yolov6-n"])
    others = [replace(row, variant=name, family="yolov9", published=None) for name in names[1:]]
    mine = [compared(name) for name in ("yolov9-t", "yolov7", "yolov6-n", "mine")]
    page = render_comparison({}, mine, [row, *others, six])
    measured, published = re.split(r"<h2>As published</h2>", re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page))
    families = re.findall(r"<td>(yolov9-t|yolov7|yolov6-n|mine)</td><td>(.*?)</td>", measured)
    assert families == [
        ("yolov9-t", "YOLOv9 and GELAN"),
        ("yolov7", "YOLOv7"),
        ("yolov6-n", "YOLOv6"),
        ("mine", "–"),
    ]
    sections = {text.split("</h3>")[0]: text for text in published.split("<h3>")[1:]}
    assert list(sections) == ["YOLOv7", "YOLOv9 and GELAN", "YOLOv6"]
    rows = {"YOLOv7": names[:1], "YOLOv9 and GELAN": names[1:], "YOLOv6": ["yolov6-n"]}
    for title, text in sections.items():
        assert [name for name in re.findall(r"<td>([\w-]+)</td>", text) if name in [*names, "yolov6-n"]] == rows[title]
        assert ("FPS: one V100" in text) == (title == "YOLOv7"), "no speed of YOLOv9 is published"
    assert "FPS: one T4" in sections["YOLOv6"]


def test_a_page_without_published_figures_says_so():
    page = render_comparison({}, [compared("one")], [])
    assert page.count("Nothing to show") == 3


NUMBERS = st.floats(0, 1e9, allow_nan=False) | st.sampled_from([0.0, 0.5, 0.5000001])


@given(st.lists(st.tuples(st.text(min_size=1, max_size=30), NUMBERS, NUMBERS), min_size=1, max_size=12))
def test_every_dot_lies_inside_its_chart(points: list[tuple[str, float, float]]):
    points = [("".join(c for c in name if c.isprintable()) or "x", x, y) for name, x, y in points]
    root = ElementTree.fromstring(scatter([Dot(name, x, y, y * 0.9, y * 1.1) for name, x, y in points], "x", "y"))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    dots = root.findall("circle")
    assert len(dots) == len(points)
    for dot in dots:
        assert 0 <= float(dot.attrib["cx"]) <= width and 0 <= float(dot.attrib["cy"]) <= height
    for line in root.findall("line"):
        assert all(-0.1 <= float(line.attrib[name]) <= max(width, height) for name in ("x1", "x2", "y1", "y2"))


def test_names_do_not_cover_each_other():
    root = ElementTree.fromstring(scatter([Dot(f"network {i}", 10.0, 0.5) for i in range(5)], "x", "y"))
    places = [(text.attrib["x"], float(text.attrib["y"])) for text in root.findall("text") if "network" in text.text]
    heights = sorted(y for _, y in places)
    assert len(places) == 5 and min(b - a for a, b in pairwise(heights)) >= 13


def test_names_without_room_are_left_to_their_dots():
    """Thirty networks as published: most have few parameters, and AP hardly differs among the large ones."""
    dots = [Dot(f"network-{i:02}", 2.0 * 1.15**i, 57 - 22 * 0.9**i) for i in range(30)]
    root = ElementTree.fromstring(scatter(dots, "parameters", "AP"))
    shown = [text for text in root.findall("text") if text.text.startswith("network")]
    assert len(root.findall("circle/title")) == len(dots) > len(shown) > 10
    spans = [(float(t.attrib["x"]), 6.5 * len(t.text), float(t.attrib["y"])) for t in shown]
    for number, (left, width, y) in enumerate(spans):
        assert left >= 58 and left + width <= 58 + 320 and 10 < y < 10 + 320 + 5
        for start, other, height in spans[:number]:
            assert abs(y - height) >= 13 or left + width < start or start + other < left


@pytest.mark.parametrize(
    ("values", "ticks"), [((0.0, 5.0), "0 1 2 3 4 5"), ((0.0, 0.09), "0.00 0.02 0.04 0.06 0.08 0.10")]
)
def test_axes_have_round_numbers(values, ticks):
    root = ElementTree.fromstring(scatter([Dot("a", x, 1.0) for x in values], "x", "y"))
    bottom = max(
        float(t.attrib["y"])
        for t in root.findall("text")
        if t.attrib.get("text-anchor") == "middle" and t.text != "x" and "y" in t.attrib
    )
    shown = [t.text for t in root.findall("text") if t.attrib.get("y") and float(t.attrib["y"]) == bottom]
    assert " ".join(shown) == ticks


def int8_of(file: str, ap: float, latency: float) -> Int8Compared:
    return Int8Compared(file, {**FIGURES, "AP": ap}, (ap - FIGURES["AP"], -0.02, -0.001), latency, 6.4)


def test_int8_files_stand_beside_their_float_file_and_are_joined_with_it():
    plain, both = compared("plain"), compared("tiny", int8=(int8_of("a<b.onnx", 0.5, 5.0), int8_of("c.xml", 0.51, 4.0)))
    page = render_comparison({}, [plain, both], [])
    part = page[page.index("<h2>Eight bits</h2>") : page.index("<h2>Classes</h2>")]
    rows = [re.findall(r"<td.*?>(.*?)</td>", row) for row in part.split("<tr>")[2:]]
    interval, last = "(-0.0200 to -0.0010)", ["0.700", "0.550"]
    assert rows == [
        ["tiny", "model.onnx", "ONNX Runtime", "0.512", "–", *last, "12.5", "1.00", "24.2"],
        ["tiny", "a&lt;b.onnx", "ONNX Runtime", "0.500", f"-0.0120 {interval}", *last, "5.0", "2.50", "6.4"],
        ["tiny", "c.xml", "OpenVINO", "0.510", f"-0.0020 {interval}", *last, "4.0", "3.12", "6.4"],
    ]
    charts = page[: page.index("<h2>Eight bits</h2>")].split("<svg")[1:]
    assert [chart.count("<circle") for chart in charts] == [4, 2, 2, 4], "latency and size have the int8 files"
    assert [chart.count("fill-opacity:0;") for chart in charts] == [2, 0, 0, 2], "hollow"
    assert "Eight bits" not in render_comparison({}, [plain], [])


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=6))
def test_joins_lead_from_dot_to_dot(points: list[tuple[float, float, float, float]]):
    dots = [Dot(f"float {place}", x, y) for place, (x, y, _, _) in enumerate(points)]
    dots += [Dot(f"int8 {place}", u, v, beside=(x, y)) for place, (x, y, u, v) in enumerate(points)]
    root = ElementTree.fromstring(scatter(dots, "x", "y"))
    centres = {c.find("title").text.split(":")[0]: (c.attrib["cx"], c.attrib["cy"]) for c in root.findall("circle")}
    ends = [
        ((line.attrib["x1"], line.attrib["y1"]), (line.attrib["x2"], line.attrib["y2"]))
        for line in root.findall("line")
        if line.attrib["class"] == "thin"
    ]
    assert ends == [(centres[f"float {place}"], centres[f"int8 {place}"]) for place in range(len(points))]
    named = {text.text for text in root.findall("text")}
    assert not any(name.startswith("int8") for name in named if name), "their names are hover texts"


def test_names_do_not_cover_joins():
    dots = [Dot("network", 90.0, 0.5), Dot("network, int8", 50.0, 0.501, beside=(90.0, 0.5)), Dot("other", 100.0, 0.9)]
    root = ElementTree.fromstring(scatter(dots, "x", "y"))
    (name,) = [text for text in root.findall("text") if text.text == "network"]
    (join,) = [line for line in root.findall("line") if line.attrib["class"] == "thin"]
    assert abs(float(name.attrib["y"]) - 4 - float(join.attrib["y1"])) >= 13, "above or below the line"


def test_a_choice_shows_the_int8_files_of_its_finalists():
    floats = FileFigures("model.onnx", FIGURES, {}, 24.0, 20.0)
    int8 = FileFigures("model-int8.onnx", {**FIGURES, "AP": 0.5}, {}, 6.0, 10.0)
    found = EightBits(floats, [Int8Figures(int8, Interval(-0.012, -0.02, -0.001), "f" * 64)])
    finalist = Finalist("tiny", 0.512, 0.49, 0.53, 5.0, 24.0, 3.0, on_front=True)
    plain = ChoiceDocument("tiny", ["why"], [finalist], [("tiny", 3, 0.4, 3.0)])
    page = render_choice({}, replace(plain, int8={"tiny": found}))
    assert "tiny, model-int8.onnx: latency of an image, ms 2.5, test AP 0.5" in page, "of the machine it is for: half"
    assert "tiny, model-int8.onnx: size of the ONNX file, MB 6" in page
    row = "<td>tiny</td><td>model-int8.onnx</td><td>ONNX Runtime</td>"
    assert row in page and "-0.0120 (-0.0200 to -0.0010)" in page
    assert "Eight bits" not in render_choice({}, plain)
