"""Distances between versions of the data: agreement with SciPy, what chance explains, and findings from a reference."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from stages.project.params import Validation
from stages.validate import validate
from stages.validation.check import list_findings, run_rules
from stages.validation.images import ImageCheck
from stages.validation.leaks import Pictures, find_repetitions
from stages.validation.statistics import (
    BOX_SIZES,
    BRIGHTNESS,
    QUANTITIES,
    SplitStatistics,
    Statistics,
    distances,
    read_statistics,
)
from stages.validation.suite import REFERENCE, read_suite
from stages.validation.tables import Context, make_tables
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.errors import DataError

SUITE = Path(__file__).resolve().parents[4] / "validation"
SPLITS = ("train", "val", "test")

counts = st.lists(st.integers(0, 40), min_size=3, max_size=6)


def split(classes: dict[str, int], values: dict[str, list[float]] | None = None) -> SplitStatistics:
    histograms = {
        quantity.name: quantity.count(np.array((values or {}).get(quantity.name, []), np.float64))
        for quantity in QUANTITIES
    }
    return SplitStatistics(images=1, boxes=sum(classes.values()), classes=classes, histograms=histograms)


def entropy(shares):
    """In bits."""
    shares = shares[shares > 0]
    return -(shares * np.log2(shares)).sum()


@settings(max_examples=60, deadline=None)
@given(counts, counts)
def test_class_shares_are_compared_by_their_entropies(ours, theirs):
    one = split({f"c{i}": count for i, count in enumerate(ours)})
    other = split({f"c{i}": count for i, count in enumerate(theirs)})
    distance = distances(one, other)["class_shares"]
    if not sum(ours) or not sum(theirs):
        assert np.isnan(distance.value) and np.isnan(distance.beyond)
        return
    size = max(len(ours), len(theirs))
    p, q = (np.array(part + [0] * (size - len(part)), np.float64) for part in (ours, theirs))
    p, q = p / p.sum(), q / q.sum()
    divergence = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2  # Lin 1991, equation 4.1
    assert distance.value == pytest.approx(divergence, abs=1e-9)
    assert 0 <= distance.beyond <= distance.value <= 1 + 1e-12


def test_one_box_more_among_millions_is_a_distance_of_zero_and_not_a_missing_value():
    one, other = split({"a": 8_389_346, "b": 134_761}), split({"a": 8_389_347, "b": 134_761})
    found = distances(one, other)["class_shares"]
    assert found.value == pytest.approx(0.0, abs=1e-12) and found.beyond == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=50), st.lists(st.integers(0, 255), min_size=1, max_size=50))
def test_brightness_is_compared_as_scipy_does_with_values_in_bins(ours, theirs):
    distance = distances(split({}, {"brightness": ours}), split({}, {"brightness": theirs}))["brightness"]
    width = 256 / BRIGHTNESS.bins
    expected = ks_2samp(np.floor(np.array(ours) / width), np.floor(np.array(theirs) / width), method="asymp").statistic
    assert distance.value == pytest.approx(expected, abs=1e-12)


def test_samples_of_one_source_are_not_beyond_chance_and_others_are():
    generator = np.random.default_rng(0)
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    beyond = []
    for _ in range(300):
        parts = []
        for count in (200, 70):
            classes = dict(zip("abcd", generator.multinomial(count, shares).tolist(), strict=True))
            parts.append(split(classes, {"box_sizes": generator.lognormal(-2, 0.7, count).tolist()}))
        found = distances(*parts)
        beyond.append((found["class_shares"].beyond > 0, found["box_sizes"].beyond > 0))
    assert np.mean(beyond, axis=0).max() <= 0.01, "1 of 1000 is expected"
    moved = split({"a": 10, "b": 60}, {"box_sizes": generator.lognormal(-1, 0.7, 70).tolist()})
    found = distances(parts[0], moved)
    assert found["class_shares"].beyond > 0.05 and found["box_sizes"].beyond > 0.15
    # 16.266: the 0.999 quantile of chi-squared with 3 degrees of freedom, from a printed table.
    expected = 16.266 * (1 / 200 + 1 / 70) / (8 * np.log(2))
    assert distances(*parts)["class_shares"].chance == pytest.approx(expected, rel=1e-4)


def test_bins_hold_every_finite_value():
    values = np.array([0.5, 0.001, 1e-9, 3.0, np.nan, np.inf, 0.0])
    assert sum(BOX_SIZES.count(values)) == 4
    place = BOX_SIZES.count(np.array([0.3])).index(1)
    assert BOX_SIZES.edge(place) <= 0.3 < BOX_SIZES.edge(place + 1)


def made_tables(reference: Statistics | None, *, width: float, brightness: float, classes=(1, 2), count: int = 200):
    """Three splits; in test, boxes are `width` wide, images `brightness` bright, and classes alternate as given."""
    splits, checks = {}, {}
    for name in SPLITS:
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(count)]
        side, chosen = (width, classes) if name == "test" else (20, (1, 2))
        boxes = [
            {"id": i, "image_id": i, "category_id": chosen[i % len(chosen)], "bbox": [0, 0, side, side]}
            for i in range(count)
        ]
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        splits[name] = CocoAnnotations(Path("a.json"), images, boxes, categories)
        light = brightness if name == "test" else 100.0
        checks[name] = [ImageCheck(exists=True, brightness=light)] * count
    return make_tables(splits, checks, Context(reference=reference))


def broken(tables) -> dict[tuple[str, str], str]:
    rules = [rule for rule in read_suite(SUITE, {}, where="here") if rule.table in ("balance", "drift")]
    rules = [rule for rule in rules if len(tables.table(rule.table))]
    findings = list_findings(tables, run_rules(tables, rules), limit=9, in_full=())
    return {(finding.rule, finding.split): finding.value for finding in findings}


def test_splits_unlike_train_and_unlike_the_champions_are_found():
    usual = made_tables(None, width=20, brightness=100.0)
    assert broken(usual) == {} and len(usual.drift) == 0
    reference = usual.statistics
    found = broken(made_tables(reference, width=60, brightness=30.0, classes=(1,)))
    assert set(found) == {
        (rule, "test")
        for quantity in (("class-shares-agree", "class-shares-have-not-drifted"),
                         ("box-sizes-agree", "box-sizes-have-not-drifted"),
                         ("brightness-agrees", "brightness-has-not-drifted"))
        for rule in quantity
    }  # fmt: skip
    assert found["box-sizes-have-not-drifted", "test"].startswith("box sizes are 1.000 from the champion's (Kolmogorov")
    smaller = reference.model_copy(
        update={"splits": {name: part.model_copy(update={"histograms": {**part.histograms, "image_sizes": [9] * 40}})
                           for name, part in reference.splits.items()}}
    )  # fmt: skip
    found = broken(made_tables(smaller, width=20, brightness=100.0))
    assert set(found) == {("image-sizes-have-not-drifted", split) for split in SPLITS}


def test_images_of_other_sizes_than_those_of_train_are_found():
    tables = made_tables(None, width=20, brightness=100.0)
    parts = tables.statistics.splits
    apart = distances(parts["train"], parts["val"].model_copy(update={"histograms": {"image_sizes": [9] * 40}}))
    tables.balance.loc[0, "image_sizes_beyond"] = apart["image_sizes"].beyond
    assert set(broken(tables)) == {("image-sizes-agree", "val")}


def test_the_stage_compares_with_the_reference_beside_the_rules(tmp_path):
    from tests.unit.stages.test_validate import FEW, sound_documents, write_ingested

    write_ingested(tmp_path / "ingested", sound_documents())
    shutil.copytree(SUITE, tmp_path / "rules", ignore=shutil.ignore_patterns(REFERENCE))
    parameters = Validation(suite=str(tmp_path / "rules"), severity=FEW, check_images=False)
    arguments = (parameters, tmp_path / "ingested", tmp_path / "report", tmp_path / "index")
    validate(*arguments)
    document = json.loads((tmp_path / "report/statistics.json").read_text())
    for part in document["splits"].values():
        part["classes"] = {"puma": 900}
    (tmp_path / "rules" / REFERENCE).write_text(json.dumps({**document, "champion": "watched version 3"}))
    verdict = validate(*arguments)
    assert {finding.rule for finding in verdict.findings} == {"class-shares-have-not-drifted"}
    page = (tmp_path / "report/index.html").read_text()
    assert "Compared with the data of watched version 3" in page and "champion&#x27;s train" in page

    for text, message in (("{", "no statistics of data"), ('{"splits": {}}', "data_sha256|Field required"), (
        json.dumps({**document, "splits": {"val": document["splits"]["val"]}}), "no training data")):  # fmt: skip
        (tmp_path / "rules" / REFERENCE).write_text(text)
        with pytest.raises(DataError, match=message):
            read_statistics(tmp_path / "rules" / REFERENCE)


def picture(split: str, name: str, content: int | None, bits: int = 0) -> tuple[str, str, str | None, str | None]:
    text = None if content is None else (content * 0x9E3779B97F4A7C15 % 2**128 ^ bits).to_bytes(16, "little").hex()
    return split, name, None if content is None else f"{content}-{bits}", text


def test_a_repetition_is_named_on_the_image_that_can_be_spared():
    rows = [
        picture("train", "a", 1),
        picture("train", "b", 1),
        picture("val", "c", 1),
        picture("test", "d", 1),
        picture("train", "e", 5, 0b111),
        picture("val", "f", 5),
        picture("test", "g", 5, 0b1),
        picture("test", "h", 9),
        picture("train", "i", None),
        picture("test", "d", 1),
    ]
    pictures = Pictures(*zip(*rows, strict=True))
    found = find_repetitions(pictures, bits=3, test_is_val=False)
    assert found.repeats == [None, "train/a", None, None, None, None, None, None, None, None]
    assert found.also_in == ["test/d", "test/d", "test/d", *[None] * 7]
    near = [None, None, None, None, "test/g (2 of 128 bits differ)", "test/g (1 of 128 bits differ)", *[None] * 4]
    assert found.nearly_in == near
    copied = find_repetitions(pictures, bits=2, test_is_val=True)
    assert copied.also_in[2] is None and copied.nearly_in[5] is None, "test is a copy of val"
    assert copied.also_in[0] == "test/d"
    assert set(find_repetitions(pictures, bits=None, test_is_val=False).nearly_in) == {None}
