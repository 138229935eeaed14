"""What the comparison of variants measures."""

from __future__ import annotations

import shutil

import pytest
from small_detector import pictures

from stages.compare_variants import _timed
from stages.params import Evaluate
from yolov7.predict.runtimes import OnnxRuntime


@pytest.mark.parametrize(("augment", "views"), [(False, 1), ("flip", 2), (True, 3)])
def test_latency_is_of_the_views_that_ap_was_measured_with(exported, tmp_path, monkeypatch, augment, views):
    shutil.copytree(exported, tmp_path / "models/small/export")
    monkeypatch.chdir(tmp_path)
    seen, decoded = [], OnnxRuntime.decoded
    monkeypatch.setattr(OnnxRuntime, "decoded", lambda self, images: seen.append(1) or decoded(self, images))
    timed = _timed(["small"], pictures(2), 2, Evaluate(augment=augment))
    assert len(seen) == views * (2 + 3), "two rounds, and three before them that do not count"
    assert timed["small"].rounds == 2
