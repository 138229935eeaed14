"""Scores of decoded predictions: columns, the three ways to score, contracts old and new, and suppression by each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yolov7.errors import ModelError
from yolov7.nms import Thresholds, select
from yolov7.predictions import (
    SCORINGS,
    column_names,
    columns_before_classes,
    contract_scoring,
    may_exceed,
    objectness_scoring,
    scores,
)

ROW = torch.tensor([[0.0, 0, 10, 10, 0.5, 0.8, 0.4]])


def test_columns_and_scores():
    assert [columns_before_classes(scoring) for scoring in SCORINGS] == [5, 5, 4]
    assert [len(column_names(scoring)) for scoring in SCORINGS] == [5, 5, 4]
    assert scores(ROW, "objectness x class probability").tolist() == [pytest.approx([0.4, 0.2])]
    assert scores(ROW, "objectness").tolist() == [[0.5]]
    assert scores(ROW, "class probability").tolist() == [pytest.approx([0.5, 0.8, 0.4])]


@given(
    st.sampled_from(SCORINGS),
    st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), min_size=1, max_size=9),
    st.floats(0, 1),
)
def test_scores_that_cannot_exceed_the_threshold_do_not(scoring, rows, threshold):
    decoded = torch.cat((torch.zeros(len(rows), 4), torch.tensor(rows)), dim=1)
    exceeds = (scores(decoded, scoring) > threshold).any(dim=1)
    assert bool((may_exceed(decoded, scoring, threshold) | ~exceeds).all())


def test_contracts_with_and_without_a_score():
    for scoring in SCORINGS:
        assert contract_scoring({"kind": "decoded", "score": scoring}, 1) == scoring
    # Raw files of revision 85b8700 say nothing: their heads have an objectness.
    assert contract_scoring({"kind": "raw"}, 1) == objectness_scoring(1) == "objectness"
    assert contract_scoring({"kind": "raw"}, 2) == objectness_scoring(2) == "objectness x class probability"
    for wrong in ("distance", 1, ""):
        with pytest.raises(ModelError, match=r"output\.score is .*; this revision knows 'objectness x class"):
            contract_scoring({"score": wrong}, 3)


@pytest.mark.parametrize("multi_label", [True, False])
def test_one_class_without_objectness_is_scored_by_its_probability(multi_label):
    """4 + 1 columns: read with the one-class rule of YOLOv7, the score would be another column."""
    decoded = torch.tensor([[[0.0, 0, 10, 10, 0.3], [20, 0, 30, 10, 0.9], [21, 0, 30, 10, 0.8]]])
    (found,) = select(decoded, Thresholds(0.25, 0.5), scoring="class probability", multi_label=multi_label)
    assert found.scores.tolist() == pytest.approx([0.9, 0.3]) and found.labels.tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"\(B, N, 5 \+ C\) with C >= 1"):
        select(decoded, Thresholds(0.25, 0.5), scoring="objectness", multi_label=multi_label)


def test_several_classes_without_objectness():
    decoded = torch.tensor([[[0.0, 0, 10, 10, 0.3, 0.7, 0.1], [0, 0, 10, 10, 0.2, float("nan"), 0.6]]])
    (every,) = select(decoded, Thresholds(0.25, 0.5), scoring="class probability", multi_label=True)
    assert [*zip(every.labels.tolist(), every.scores.tolist(), strict=True)] == [
        (1, pytest.approx(0.7)), (2, pytest.approx(0.6)), (0, pytest.approx(0.3)),
    ]  # fmt: skip
    (best,) = select(decoded, Thresholds(0.25, 0.5), scoring="class probability", multi_label=False)
    assert best.labels.tolist() == [1], "a prediction that is not finite has no best class"
