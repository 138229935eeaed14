"""The rules of promotion, each by itself."""

from __future__ import annotations

from typing import Any

import pytest

from flows.promotion.rules import checks, evidence, other_classes
from stages.project.params import Promotion


def comparison(ours: float = 0.6, theirs: float = 0.5, *, spread: float = 0.05, **challenger: Any) -> dict[str, Any]:
    """Two models, the challenger better by 0.1 unless said otherwise."""
    difference = ours - theirs
    side = {"per_class": {"cat": 0.5, "dog": 0.5, "emu": -1.0}, "latency_ms": 20.0, "size_mb": 24.0}
    return {
        "AP_difference": {"value": difference, "low": difference - spread, "high": difference + spread},
        "objects": {"cat": 100, "dog": 10, "emu": 0},
        "challenger": {"AP": ours, **side, **challenger},
        "champion": {"AP": theirs, **side},
    }


def failed(document: dict[str, Any], **rules: Any) -> list[str]:
    return [check.rule for check in checks(document, Promotion(**rules)) if not check.passed]


@pytest.mark.parametrize(
    ("ours", "theirs", "rules", "expected"),
    [
        (0.6, 0.5, {}, []),
        (0.5, 0.5, {}, ["AP"]),
        (0.5000004, 0.5, {}, ["AP"]),  # rounding is no progress
        (0.6, 0.5, {"margin": 0.1}, ["AP"]),
        (0.6, 0.5, {"margin": 0.09}, []),
        (0.6, 0.5, {"margin": 0.04, "certain": True}, []),
        (0.6, 0.5, {"margin": 0.06, "certain": True}, ["AP"]),
        (0.54, 0.5, {"certain": True}, ["AP"]),
    ],
)
def test_ap_must_exceed_by_the_margin_and_if_asked_for_with_certainty(ours, theirs, rules, expected):
    assert failed(comparison(ours, theirs), **rules) == expected


def test_no_class_with_enough_objects_may_lose_too_much():
    cat_worse = comparison(per_class={"cat": 0.25, "dog": 0.5, "emu": -1.0})
    assert failed(cat_worse) == ["classes"]
    assert failed(cat_worse, max_class_loss=0.25) == []
    finding = next(check.finding for check in checks(cat_worse, Promotion()) if check.rule == "classes")
    assert finding == "at worst, class 'cat' falls by 0.2500; 0.2 allowed"
    dog_worse = comparison(per_class={"cat": 0.5, "dog": 0.0, "emu": -1.0})
    assert failed(dog_worse) == [], "ten objects are too few to judge by"
    assert failed(dog_worse, min_class_objects=10) == ["classes"]
    assert failed(dog_worse, min_class_objects=1000) == []


def test_budgets_hold_only_where_they_are_set():
    slow = comparison(latency_ms=31.0, size_mb=25.0)
    assert failed(slow) == []
    assert failed(slow, max_latency_ms=30.0, max_size_mb=24.5) == ["latency", "size"]
    assert failed(slow, max_latency_ms=31.0, max_size_mb=25.0) == []
    assert failed(comparison(size_mb=None), max_size_mb=1.0) == ["size"]


def with_int8(**aps: float) -> dict[str, Any]:
    return comparison(0.6, 0.5, int8={file: {"AP": ap} for file, ap in aps.items()})


def test_int8_files_may_lose_as_much_as_is_allowed_where_that_is_limited():
    good, bad = with_int8(onnx=0.595, openvino=0.6), with_int8(onnx=0.595, openvino=0.58)
    assert failed(bad) == [] and failed(bad, max_int8_loss=0.02) == []
    assert failed(bad, max_int8_loss=0.01) == ["int8"] and failed(good, max_int8_loss=0.01) == []
    assert failed(comparison(), max_int8_loss=0.001) == [], "a model without int8 files"
    better = with_int8(onnx=0.61)
    assert failed(better, max_int8_loss=0.001) == []
    findings = [check.finding for check in checks(bad, Promotion(max_int8_loss=0.01)) if check.rule == "int8"]
    assert findings == [
        "onnx: test AP 0.5950, 0.0050 below the float file's 0.6000; 0.01 allowed",
        "openvino: test AP 0.5800, 0.0200 below the float file's 0.6000; 0.01 allowed",
    ]
    (above,) = [check.finding for check in checks(better, Promotion(max_int8_loss=0.01)) if check.rule == "int8"]
    assert above == "onnx: test AP 0.6100, 0.0100 above the float file's 0.6000; 0.01 allowed"


def test_rounding_is_no_loss_and_an_empty_limit_is_none():
    assert failed(with_int8(onnx=0.5899999), max_int8_loss=0.01) == []
    assert Promotion(max_int8_loss=None) == Promotion()


def test_outcomes_of_earlier_stages_must_be_on_record():
    good = {"artefact_verification": "passed", "data_validation": "passed"}
    assert all(check.passed for check in evidence(good))
    bad = [check for check in evidence({**good, "data_validation": "failed"}) if not check.passed]
    assert [check.finding for check in bad] == ["validation of the training data: failed"]
    assert [check.passed for check in evidence({})] == [False, False], "not to be assumed"


def test_classes_that_differ_are_named():
    def said(theirs: list[str], ours: list[str]) -> str | None:
        return other_classes({"class_names": {"challenger": ours, "champion": theirs}})

    assert other_classes(comparison()) is None
    assert said(["cat"], ["cat", "owl"]) == "the champion knows other classes (1, the challenger 2; new: 'owl')"
    assert said(["cat", "dog"], ["cat", "hound"]).endswith("(2, the challenger 2; new: 'hound'; gone: 'dog')")
    assert said(["cat", "dog"], ["dog", "cat"]).endswith("(2, the challenger 2; in another order)")
    assert said(list("abcdefg"), ["a"]).endswith("gone: 'b', 'c', 'd', 'e', 'f' and 1 more)")
