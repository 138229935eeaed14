"""The recommendation: limits first, then the interval, then speed."""

from __future__ import annotations

import pytest

from stages.choice.plan import RuledOut
from stages.choice.recommend import Difference, Measured, pareto, recommend
from yolov7.report.choice import ChoiceDocument, Finalist, render_choice


def measured(variant: str, ap: float, latency: float, size: float = 10.0) -> Measured:
    return Measured(variant, ap, ap - 0.02, ap + 0.02, latency, size, 1.0)


LARGE, MIDDLE, SMALL = measured("large", 0.60, 40.0, 80.0), measured("middle", 0.59, 20.0), measured("small", 0.40, 5.0)
ALL = [SMALL, LARGE, MIDDLE]


def difference(best: str, other: str) -> Difference:
    value = {each.variant: each.ap for each in ALL}
    gap = value[best] - value[other]
    return Difference(gap, gap - 0.02, gap + 0.02)


def test_the_fastest_that_may_be_as_good():
    found = recommend(ALL, [], difference, prefer="speed")
    assert (found.variant, found.best) == ("middle", "large")
    assert found.reasons == [
        "large has the highest test AP within the limits: 0.600 (95 % interval 0.580 to 0.620).",
        "middle may be as good: its AP is 0.010 below (95 % interval -0.010 to +0.030); it is 2.00 times as fast and "
        "has 0.12 times the size.",
        "small is surely worse: its AP is 0.200 below (95 % interval +0.180 to +0.220).",
        "middle is the fastest of those that may be as good as large.",
    ]
    assert recommend(ALL, [], difference, prefer="accuracy").variant == "large"


@pytest.mark.parametrize(("out", "chosen", "best"), [("large", "middle", "middle"), ("middle", "large", "large")])
def test_a_network_beyond_a_limit_is_neither_best_nor_chosen(out, chosen, best):
    found = recommend(ALL, [RuledOut(out, "latency", "far too slow")], difference, prefer="speed")
    assert (found.variant, found.best) == (chosen, best)
    assert found.reasons[0] == f"{out} is ruled out by the limit of latency: far too slow."


def test_of_equally_fast_ones_the_smaller():
    twins = [measured("a", 0.5, 5.0, 20.0), measured("b", 0.5, 5.0, 10.0)]
    equal = lambda best, other: Difference(0.0, -0.01, 0.01)  # noqa: E731
    assert recommend(twins, [], equal, prefer="speed").variant == "b"


def test_nothing_within_the_limits_recommends_nothing():
    found = recommend(ALL, [RuledOut(each.variant, "size", "too large") for each in ALL], difference, prefer="speed")
    assert found.variant is None and found.reasons[-1] == "No candidate is within the limits."


def test_the_front_has_what_no_other_beats_in_both():
    beaten = measured("beaten", 0.39, 6.0)
    assert pareto([*ALL, beaten]) == ["small", "middle", "large"]
    assert pareto([measured("slow", 0.5, 9.0), measured("quick", 0.5, 3.0)]) == ["quick"]


def test_the_page():
    finalists = [Finalist(**{**each.__dict__}, on_front=True, ruled_out=each is LARGE) for each in ALL]
    document = ChoiceDocument(
        recommended="middle",
        reasons=["because <of> this"],
        finalists=finalists,
        standings=[("small", 3, 0.1, 1.0), ("middle", 3, 0.2, 2.0), ("middle", 9, 0.5, 6.0)],
        ruled_out=[("large", "latency", "40.0 ms an image, 30 ms allowed")],
    )
    page = render_choice({"Recommended": "middle"}, document)
    assert "because &lt;of&gt; this" in page and "recommended, on the front" in page and "beyond a limit" in page
    assert page.count('<circle class="dot"') == 6 and page.count('<polyline class="main"') == 1
    rows = [line for line in page.splitlines() if line.startswith("<tr><td>")]
    assert '<tr><td>middle</td><td class="n">0.200</td><td class="n">0.500</td><td class="n">8.0</td></tr>' in rows
    assert '<tr><td>small</td><td class="n">0.100</td><td class="n">–</td><td class="n">1.0</td></tr>' in rows
