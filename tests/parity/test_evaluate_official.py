"""The COCO tool's published example comes out of our evaluation, and ours equals a direct run on random data."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolov7.data.formats.coco import read_coco
from yolov7.data.index import build_index
from yolov7.errors import DataError
from yolov7.evaluate.coco import METRICS, coco_metrics, evaluate_detections

EVALUATOR = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "evaluator"


def direct(dataset: dict, results: list[dict]) -> tuple[dict[str, float], np.ndarray]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dataset)
        truth.createIndex()
        tool = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    return dict(zip(METRICS, tool.stats.tolist(), strict=True)), tool.eval["precision"]


def printed_results(kind: str) -> list[float]:
    text = (EVALUATOR / "cocoapi_val2014_fake_eval_res.txt").read_text()
    section = text.split(f"type={kind}")[1].split("----")[0]
    return [float(value) for value in re.findall(r"\] = (-?[\d.]+)", section)]


@pytest.mark.skipif(not EVALUATOR.is_dir(), reason="../shared/data/evaluator is not there")
@pytest.mark.parametrize("through", ["json", "index"])
def test_the_published_results_are_reproduced(tmp_path, through):
    annotations = EVALUATOR / "instances_val2014_100.json"
    results = json.loads((EVALUATOR / "instances_val2014_fakebbox100_results.json").read_text())
    coco = read_coco(annotations)
    source = coco if through == "json" else build_index(coco, tmp_path, tmp_path / "index")
    scores = evaluate_detections(source, results)
    printed = printed_results("bbox")
    assert len(printed) == 12
    assert [round(value, 3) for value in scores.metrics.values()] == printed
    expected, _ = direct(json.loads(annotations.read_text()), results)
    assert scores.metrics == pytest.approx(expected, abs=1e-12)


def random_case(seed: int) -> tuple[dict, list[dict]]:
    """Crowds, all three sizes, a class without ground truth, one without detections, images without either."""
    rng = np.random.default_rng(seed)
    images = [{"id": int(i), "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in rng.permutation(400)[:30]]
    categories = [{"id": int(i), "name": f"class {i}"} for i in (3, 7, 11, 90)]
    annotations, results = [], []
    for image in images[:-2]:
        for _ in range(rng.integers(0, 12)):
            side = np.exp(rng.uniform(np.log(6), np.log(300), 2))
            box = [*(rng.uniform(0, 1, 2) * (np.array([640, 480]) - side).clip(1)), *side]
            category = int(rng.choice([3, 7, 11]))
            record = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category}
            record |= {"bbox": [float(v) for v in box], "area": float(side.prod() * rng.uniform(0.5, 1))}
            annotations.append(record | {"iscrowd": int(rng.random() < 0.1)})
            for _ in range(rng.integers(0, 5)):
                moved = np.array(box) + rng.normal(0, 0.1, 4) * np.array([*side, *side])
                moved[2:] = moved[2:].clip(1)
                guess = category if rng.random() < 0.8 else int(rng.choice([3, 7, 90]))
                score = float(np.round(rng.random(), 1))  # ties are common
                results.append({"image_id": image["id"], "category_id": guess, "bbox": moved.tolist(), "score": score})
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, results


@pytest.mark.parametrize("seed", range(4))
def test_random_data_scores_as_a_direct_run(tmp_path, seed):
    dataset, results = random_case(seed)
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(dataset))
    expected, precision = direct(dataset, results)
    index = build_index(read_coco(file), tmp_path, tmp_path / "index")
    for source in (dataset, read_coco(file), index):
        before = copy.deepcopy(results)
        scores = evaluate_detections(source, results)
        assert results == before
        assert scores.metrics == expected
        assert coco_metrics(source, results) == pytest.approx(expected, abs=1e-9, rel=0)
        assert results == before
        assert scores.per_class["class 90"] == -1
        for column, name in enumerate(["class 3", "class 7", "class 11"]):
            assert scores.per_class[name] == pytest.approx(precision[:, :, column, 0, -1].mean(), abs=1e-12)
        assert scores.curves.mean_precision.mean() == pytest.approx(expected["AP"], abs=1e-12)
        assert scores.curves.mean_precision50.mean() == pytest.approx(expected["AP50"], abs=1e-12)


def test_annotation_ids_from_zero_do_not_lose_a_match(tmp_path):
    dataset, results = random_case(5)
    expected, _ = direct(dataset, results)
    shifted = copy.deepcopy(dataset)
    for annotation in shifted["annotations"]:
        annotation["id"] -= 1
    worse, _ = direct(shifted, results)
    assert worse["AP"] < expected["AP"]  # the tool's own defect, which we step around
    assert evaluate_detections(shifted, results).metrics == expected


# Few values, so that identical boxes, nested ones, ones without area, and equal scores are common.
BOX = st.tuples(*[st.sampled_from([0.0, 3.0, 10.0, 40.0, 130.0]) for _ in range(4)]).map(list)
TRUTHS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), BOX, st.booleans()), max_size=25)
FOUND = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), BOX, st.sampled_from([0.0, 0.3, 0.5, 1.0])), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(TRUTHS, FOUND)
def test_the_fast_engine_agrees_with_the_official_one(truths: list, found: list) -> None:
    images, categories = (17, -4, 0, 900), (1, 90, 5)  # ids as they come, the smallest not first
    annotations = [
        {"image_id": images[image], "category_id": categories[label], "bbox": box, "iscrowd": int(crowd)}
        for image, label, box, crowd in truths
    ]
    dataset = {"images": [{"id": i} for i in images], "annotations": annotations}
    dataset["categories"] = [{"id": i, "name": f"class {i}"} for i in categories]
    results = [
        {"image_id": images[image], "category_id": categories[label], "bbox": box, "score": score}
        for image, label, box, score in found
    ]
    slow, fast = (coco_metrics(dataset, results, engine=engine) for engine in ("pycocotools", "hotcoco"))
    assert slow == evaluate_detections(dataset, results).metrics
    assert fast == pytest.approx(slow, abs=1e-9, rel=0)


CASES = [
    ("instances_val2014_100.json", "instances_val2014_fakebbox100_results.json"),
    ("fce_gt_dataset.json", "fce_dt_dataset.json"),
    ("fce_gt_ignore_test.json", "fce_dt_ignore_test.json"),
]


@pytest.mark.skipif(not EVALUATOR.is_dir(), reason="../shared/data/evaluator is not there")
@pytest.mark.parametrize(("annotations", "detections"), CASES)
def test_the_fast_engine_agrees_on_the_published_cases(annotations: str, detections: str) -> None:
    dataset = json.loads((EVALUATOR / annotations).read_text())
    results = json.loads((EVALUATOR / detections).read_text())
    for record in [*dataset["annotations"], *results]:
        record["image_id"] = int(record["image_id"])  # one of the files has them as text
    for image in dataset["images"]:
        image["id"] = int(image["id"])
    slow, fast = (coco_metrics(dataset, results, engine=engine) for engine in ("pycocotools", "hotcoco"))
    assert slow["AP50"] > 0.2 and fast == pytest.approx(slow, abs=1e-9, rel=0)


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_either_engine_refuses_what_the_truth_does_not_know(engine: str) -> None:
    dataset, results = random_case(0)
    for change, words in (({"image_id": 4000}, "image 4000"), ({"category_id": 0}, "category 0")):
        with pytest.raises(DataError, match=words):
            coco_metrics(dataset, [*results, results[0] | change], engine=engine)
    with pytest.raises(DataError, match="finite"):
        coco_metrics(dataset, [results[0] | {"score": float("nan")}], engine=engine)
    assert coco_metrics(dataset, [], engine=engine)["AP"] == 0.0
