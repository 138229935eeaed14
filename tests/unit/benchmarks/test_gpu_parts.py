"""Pieces of the GPU kit: the table of cards, unions of time, the order of work, and processes that die."""

from __future__ import annotations

import itertools
import os
import time

import pytest
import torch
from aligned_cases import random_batch
from assign_cases import head, random_targets, raw_maps
from gpu_kit import correctness, runner
from gpu_kit.card import peak_tflops
from gpu_kit.clock import median_ms, total_ms
from gpu_kit.parts import Part
from gpu_kit.reference import PerImageAligned, PerImageOta
from gpu_kit.settings import Expectations, FailedItem, Item, Settings, SkipItem
from gpu_kit.step import OURS, PLAIN, ladder
from hypothesis import given
from hypothesis import strategies as st

from yolov7.assign import COARSE, FINE, AlignedAssigner, Geometry, OtaAssigner, Targets


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("Tesla T4", 65.0),
        ("Tesla V100-SXM2-16GB", 125.0),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_limits_of_cards(name, expected):
    assert peak_tflops(name) == expected


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12))
def test_the_union_of_intervals_counts_each_moment_once(pairs):
    intervals = [(float(start), float(start + length)) for start, length in pairs]
    moments = {moment for start, length in pairs for moment in range(start, start + length)}
    assert total_ms(intervals) == pytest.approx(len(moments) / 1e3)


def test_the_median_of_a_call():
    assert 1.5 < median_ms(lambda: time.sleep(0.002), torch.device("cpu"), seconds=0.02) < 50


def test_each_option_is_switched_on_in_turn():
    ways = [way for _, way in ladder()]
    assert ways[0] == PLAIN and OURS in ways
    for before, after in itertools.pairwise(ways):
        assert len(set(after.names()) - set(before.names())) == 1 and set(before.names()) < set(after.names())


@pytest.mark.parametrize("regions", [(FINE,), (FINE, COARSE)])
def test_the_plain_reference_of_ota_matches_alike(regions):
    model = head(classes=5)
    total, different = 0, 0
    for seed in range(8):
        maps = raw_maps(model, 3, 96, 128, seed=seed, spread=1.0)
        targets = Targets.of(random_targets(3, 6, 96, 128, 5, seed=seed), torch.device("cpu"))
        rule = OtaAssigner(Geometry(model.anchors, model.strides), regions=regions)
        ours, plain = rule(maps, targets), PerImageOta(rule)(maps, targets)
        assert len(plain.counts) == len(ours.counts) and sum(plain.counts) == len(plain)
        found, expected = (set(map(tuple, one.cells.T.tolist())) for one in (plain, ours))
        total, different = total + len(expected), different + len(found ^ expected)
    assert total > 100 and different <= 0.02 * total  # where costs differ in the last digit, either may win


@pytest.mark.parametrize("heads", [1, 2])
def test_the_plain_reference_of_aligned_assignment_matches_alike(heads):
    for seed in range(4):
        predicted, rows = random_batch(seed, heads=heads)
        targets, rule = Targets.of(rows, torch.device("cpu")), AlignedAssigner()
        ours, plain = rule(predicted, targets), PerImageAligned(rule)(predicted, targets)
        assert plain.counts == ours.counts and torch.equal(plain.cells, ours.cells)
        torch.testing.assert_close(plain.weight, ours.weight, rtol=1e-4, atol=1e-5)


def test_the_longest_of_a_kind_is_the_expectation_for_the_next():
    expectations, first = Expectations(), Item("a", dict, 5.0, kind="network")
    assert expectations.of(first) == 5.0
    for seconds in (2.0, 9.0, 3.0):
        expectations.saw(first, seconds)
    assert expectations.of(Item("b", dict, 5.0, kind="network")) == 9.0
    assert expectations.of(Item("c", dict, 5.0)) == 5.0


# Parts whose items misbehave: functions of this module, found by name in the process of the part ------------------


def good():
    return {"value": 1}


def died():
    os._exit(9)


def refused():
    raise SkipItem("not here")


def wrong():
    raise ValueError("no\nsense")


def endless():
    time.sleep(600)


def misbehaving(_settings: Settings) -> list[Item]:
    calls = {"first": good, "died": died, "refused": refused, "wrong": wrong, "last": good}
    return [Item(name, call) for name, call in calls.items()]


def hanging(_settings: Settings) -> list[Item]:
    return [Item("first", good), Item("endless", endless), Item("never", good)]


def results_of(tmp_path, monkeypatch, items, minutes):
    part = Part("inference", 1.0, __name__, items)
    # The process of the part finds it by name among all parts.
    monkeypatch.setattr("gpu_kit.parts.PARTS", (part,))
    made = runner.Runner(Settings(folder=tmp_path, device="cpu", tiny=True), minutes, (part,))
    made.context = runner.multiprocessing.get_context("fork")
    made.results["missing"] = {}
    made._part(part, 1.0)
    return made.results["parts"]["inference"]


def test_items_fail_alone_even_if_the_process_dies(tmp_path, monkeypatch):
    found = results_of(tmp_path, monkeypatch, "misbehaving", 1.0)
    statuses = {row["item"]: row["status"] for row in found["rows"]}
    assert statuses == {"first": "ok", "died": "failed", "refused": "skipped", "wrong": "failed", "last": "ok"}
    reasons = {row["item"]: row["why"] for row in found["rows"]}
    assert reasons["died"] == "the process died (exit status 9)" and reasons["refused"] == "not here"
    assert reasons["wrong"].startswith("ValueError: no sense (tests/unit/benchmarks/test_gpu_parts.py:")
    assert found["status"] == "failed"


def test_an_item_without_end_is_stopped(tmp_path, monkeypatch):
    started = time.monotonic()
    found = results_of(tmp_path, monkeypatch, "hanging", 0.1)
    assert time.monotonic() - started < 30
    statuses = [(row["item"], row["status"]) for row in found["rows"]]
    assert statuses == [("first", "ok"), ("endless", "stopped"), ("never", "skipped")]
    assert found["status"] == "ok"


# The tests of tests/gpu as items --------------------------------------------------------------------------------------


def correctness_of(tmp_path, monkeypatch, text):
    (tmp_path / "test_some.py").write_text(text)
    monkeypatch.setattr(correctness, "FOLDER", tmp_path)
    monkeypatch.setenv("YOLOV7_TEST_DEVICE", "cpu")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (item,) = correctness.items(Settings(folder=tmp_path, device="cpu"))
    assert item.name == "test_some: test_it"
    return item.measure()


def test_tests_are_counted(tmp_path, monkeypatch):
    text = (
        "import pytest\n\n@pytest.mark.parametrize('n', [1, 2, 3])\ndef test_it(n):\n    n < 3 or pytest.skip('big')\n"
    )
    found = correctness_of(tmp_path, monkeypatch, text)
    assert (found["passed"], found["failed"], found["skipped"]) == (2, 0, 1)
    assert found["reasons"] == {"test_it[3]": "Skipped: big"}


def test_a_test_that_fails_is_named_with_its_reason(tmp_path, monkeypatch):
    with pytest.raises(
        FailedItem, match=r"1 of 1 tests failed, first test_it: AssertionError: no\sassert 1 == 2"
    ) as caught:
        correctness_of(tmp_path, monkeypatch, "def test_it():\n    assert 1 == 2, 'no'\n")
    assert caught.value.figures["failed"] == 1


def test_a_file_that_cannot_be_imported_fails_and_a_skipped_one_is_skipped(tmp_path, monkeypatch):
    body = "\n\ndef test_it():\n    pass\n"
    with pytest.raises(FailedItem, match="no_such_module"):
        correctness_of(tmp_path, monkeypatch, f"import no_such_module{body}")
    with pytest.raises(SkipItem, match="no_other_module"):
        correctness_of(tmp_path, monkeypatch, f"import pytest\npytest.importorskip('no_other_module'){body}")
    with pytest.raises(SkipItem, match="no_other_module"):  # nor does another function of it fail
        correctness_of(tmp_path, monkeypatch, f"import pytest\npytest.importorskip('no_other_module'){body}")
