"""Figures of the report: kinds of mistakes, intervals, calibration, parts of the data; and the page itself."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import build_index
from yolov7.errors import DataError
from yolov7.evaluate import evaluate_detections
from yolov7.evaluate.bootstrap import Interval, ap_difference_interval, ap_interval
from yolov7.evaluate.mistakes import best_confidence, calibration, find_errors
from yolov7.evaluate.run import Evaluation
from yolov7.evaluate.slices import image_slices, object_slices
from yolov7.report.evaluation import analyse, render_report

NAMES = {5: "cat", 8: "dog & co"}


def scene(folder, truths, images=1):
    """An index of white images of 200 x 100; truths: (image, category, box xywh, iscrowd)."""
    import cv2

    records = []
    for number in range(images):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((100, 200, 3), 40 + 180 * (number % 2), np.uint8))
        records.append({"id": 70 + number, "file_name": f"{number}.png", "width": 200, "height": 100})
    annotations = [
        {"id": i + 1, "image_id": 70 + image, "category_id": category, "bbox": list(map(float, box)), "iscrowd": crowd}
        for i, (image, category, box, crowd) in enumerate(truths)
    ]
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    return build_index(CocoAnnotations(folder / "t.json", records, annotations, categories), folder, folder / "index")


def found(image, category, box, score):
    return {"image_id": 70 + image, "category_id": category, "bbox": list(map(float, box)), "score": score}


def test_every_kind_of_mistake_is_recognised(tmp_path):
    index = scene(
        tmp_path,
        [
            (0, 5, (0, 0, 20, 20), 0),
            (0, 5, (40, 0, 20, 20), 0),
            (0, 8, (80, 0, 20, 20), 0),
            (0, 8, (120, 0, 20, 20), 0),
            (0, 5, (160, 0, 20, 20), 0),
            (0, 8, (0, 50, 80, 40), 1),
        ],
    )
    results = [
        found(0, 5, (0, 0, 20, 20), 0.9),  # right
        found(0, 5, (1, 0, 20, 20), 0.8),  # the same again
        found(0, 5, (52, 0, 20, 20), 0.7),  # beside its object
        found(0, 5, (80, 1, 20, 20), 0.6),  # a dog called a cat
        found(0, 5, (132, 0, 20, 20), 0.5),  # a dog called a cat, and beside it
        found(0, 8, (150, 60, 20, 20), 0.4),  # on nothing
        found(0, 8, (10, 55, 10, 10), 0.35),  # in a crowd of its class
        found(0, 5, (160, 0, 20, 20), 0.1),  # right, but below the confidence
    ]
    errors = find_errors(index, results, confidence=0.3)
    (image,) = errors.images
    assert image.kinds == ("right", "duplicate", "localisation", "class", "both", "background", "ignored")
    expected = dict.fromkeys(("right", "duplicate", "localisation", "class", "both", "background", "missed"), 1)
    assert errors.counts == expected
    assert image.missed.tolist() == [False, False, False, False, True, False]
    assert image.mistakes == 6
    # cat: one right, one only pointed at from beside, one missed; dog: one called a cat, one without a detection
    assert errors.confusion.tolist() == [[1, 0, 2], [1, 0, 1], [3, 1, 0]]


def random_results(seed, images=12, *, ties=True):
    rng = np.random.default_rng(seed)
    truths, results = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 5)):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(8, 35, 2)]
            category = int(rng.choice([5, 8]))
            truths.append((image, category, box, int(rng.random() < 0.1)))
            for _ in range(rng.integers(0, 3)):
                moved = np.array(box) + rng.normal(0, 1.5, 4)
                guess = category if rng.random() < 0.8 else int(rng.choice([5, 8]))
                results.append(found(image, guess, moved, float(np.round(rng.random(), 1 if ties else 12))))
    return truths, results


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_weights_of_one_give_the_tools_ap_and_a_weight_is_a_number_of_copies(tmp_path_factory, seed):
    # Ties would be in another order among the copies.
    truths, results = random_results(seed, images=4, ties=False)
    folder = tmp_path_factory.mktemp("scene")
    index = scene(folder, truths, images=4)
    scores = evaluate_detections(index, results)
    assert scores.matches.average_precision() == pytest.approx(scores.metrics["AP"], abs=1e-12)
    copies = np.random.default_rng(seed).integers(0, 3, 4)
    many_truths, many_results, images = [], [], 0
    for image, count in enumerate(copies):
        for _ in range(count):
            many_truths += [(images, *t[1:]) for t in truths if t[0] == image]
            many_results += [{**r, "image_id": 70 + images} for r in results if r["image_id"] == 70 + image]
            images += 1
    if images:
        many = evaluate_detections(scene(folder, many_truths, images=images), many_results)
        assert scores.matches.average_precision(copies) == pytest.approx(many.metrics["AP"], abs=1e-9)


def test_intervals_hold_the_figure_repeat_and_compare_in_pairs(tmp_path):
    truths, results = random_results(3, images=40)
    index = scene(tmp_path, truths, images=40)
    first = evaluate_detections(index, results).matches
    worse = evaluate_detections(index, [r for i, r in enumerate(results) if i % 3 == 0]).matches
    interval = ap_interval(first)
    assert interval == ap_interval(first)
    assert 0 < interval.low < interval.value < interval.high < 1
    difference = ap_difference_interval(first, worse)
    assert difference.value == pytest.approx(first.average_precision() - worse.average_precision())
    assert 0 < difference.low < difference.value < difference.high
    spread = ap_interval(worse)
    assert difference.high - difference.low < (interval.high - interval.low) + (spread.high - spread.low)
    assert ap_difference_interval(first, first).high == 0.0
    other = scene(tmp_path, truths[1:], images=40)
    with pytest.raises(DataError, match="cannot be compared"):
        ap_difference_interval(first, evaluate_detections(other, results).matches)


def test_draws_without_an_object_have_no_figure_and_do_not_count(tmp_path):
    truths, results = random_results(3, images=30)
    truths = [truth for truth in truths if truth[0] == 0]  # a third of the draws miss the only image with objects
    index = scene(tmp_path, truths, images=30)
    matches = evaluate_detections(index, results).matches
    assert matches.average_precision(np.eye(30)[5]) == -1
    interval = ap_interval(matches)
    assert 0 <= interval.low <= interval.value <= interval.high
    fewer = evaluate_detections(index, [r for i, r in enumerate(results) if i % 3]).matches
    assert np.abs([*vars(ap_difference_interval(matches, fewer)).values()]).max() < 1
    nothing = evaluate_detections(scene(tmp_path, [], images=5), []).matches
    assert ap_interval(nothing) == Interval(-1, -1, -1) and ap_difference_interval(nothing, nothing).high == 0


def test_the_best_confidence_and_the_calibration_are_those_of_a_direct_count(tmp_path):
    truths, results = random_results(11, images=40)
    matches = evaluate_detections(scene(tmp_path, truths, images=40), results).matches
    confidence, f1 = best_confidence(matches)
    counted = {}
    for score in np.unique(matches.scores):
        taken = (matches.scores >= score) & ~matches.ignored[0]
        counted[score] = 2 * (matches.correct[0] & taken).sum() / (taken.sum() + matches.truths.sum())
    assert f1 == pytest.approx(max(counted.values()))
    assert f1 == pytest.approx(counted[confidence])
    shares = calibration(matches, lowest=0.0, bins=4)
    inside = (matches.scores >= 0.5) & (matches.scores < 0.75) & ~matches.ignored[0]
    assert shares.counts[2] == inside.sum()
    assert shares.precision[2] == pytest.approx(matches.correct[0][inside].mean())


def test_parts_of_the_data_add_up(tmp_path):
    truths, results = random_results(5, images=20)
    index = scene(tmp_path, truths, images=20)
    matches = evaluate_detections(index, results).matches
    errors = find_errors(index, results, confidence=0.2)
    objects = sum(not truth[3] for truth in truths)
    by_object = object_slices(index, errors)
    for group in {one.group for one in by_object}:
        assert sum(one.count for one in by_object if one.group == group) == objects
        right = sum(one.count * one.value for one in by_object if one.group == group)
        assert right == pytest.approx(errors.counts["right"])
    brightness = [40 + 180 * (position % 2) for position in range(20)]
    by_image = [one for one in image_slices(index, matches, brightness) if one.group.startswith("brightness")]
    assert [one.count for one in by_image] == [10, 10]
    dark = [truth for truth in truths if truth[0] % 2 == 0]
    alone = scene(tmp_path, [(t[0] // 2, *t[1:]) for t in dark], images=10)
    records = [{**r, "image_id": 70 + (r["image_id"] - 70) // 2} for r in results if (r["image_id"] - 70) % 2 == 0]
    assert by_image[0].value == pytest.approx(evaluate_detections(alone, records).metrics["AP"], abs=1e-12)


@pytest.mark.parametrize("detections", ["some", "none"])
def test_the_page_needs_nothing_from_elsewhere_and_is_the_same_every_time(tmp_path, detections):
    truths, results = random_results(2, images=6)
    index = scene(tmp_path, truths, images=6)
    results = results if detections == "some" else []
    scores = evaluate_detections(index, results)
    evaluation = Evaluation(scores.metrics, scores.per_class, results, scores.curves, scores.matches)
    pages = [
        render_report("a <title>", {"Model": "<x>"}, evaluation, analyse(evaluation, index), index, pictures=4)
        for _ in range(2)
    ]
    assert pages[0] == pages[1]
    page = pages[0]
    assert "a &lt;title&gt;" in page and "<x>" not in page and "dog &amp; co" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<figure>") == 4
    assert f"{scores.metrics['AP']:.3f}" in page
