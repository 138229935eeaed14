"""Objects that an evaluation does not count, by reason and class."""

from __future__ import annotations

import numpy as np

from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import build_index
from yolov7.evaluate import evaluate_detections
from yolov7.evaluate.left_out import BEYOND_TOOL, CROWD, images_cut_short, uncounted_objects


def index_of(folder, objects):
    """`objects`: (image, class, crowd) of boxes side by side."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 4000, "height": 100} for i in range(2)]
    records = [
        {"id": n, "image_id": image, "category_id": kind, "bbox": [5 * n, 2, 4, 4], "iscrowd": crowd}
        for n, (image, kind, crowd) in enumerate(objects, 1)
    ]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    return build_index(CocoAnnotations(folder / "a.json", images, records, categories), folder, folder / "index")


def test_crowds_and_objects_beyond_the_limits_are_counted_by_class(tmp_path):
    objects = [(0, 0, 1), (1, 1, 1)] + [(0, 0, 0)] * 130 + [(0, 1, 0)] * 60 + [(1, 1, 0)] * 3
    index = index_of(tmp_path, objects)
    counts = uncounted_objects(index, max_detections=300)
    assert {reason: found.tolist() for reason, found in counts.lost.items()} == {CROWD: [1, 1], BEYOND_TOOL: [30, 0]}
    assert counts.summary().startswith("32 of 195: 2 crowds")
    few = uncounted_objects(index, max_detections=150)
    assert few.lost["beyond the 150 detections that are kept of an image"].tolist() == [0, 10]


def test_perfect_detections_find_all_but_these(tmp_path):
    index = index_of(tmp_path, [(0, 0, 0)] * 130 + [(1, 0, 1)])
    found = [{"image_id": 0, "category_id": 0, "bbox": box.tolist(), "score": 0.9} for box in index.coco_boxes(0)]
    metrics = evaluate_detections(index, found).metrics
    lost = uncounted_objects(index, max_detections=300)
    assert metrics["AR100"] == (130 - lost.lost[BEYOND_TOOL].sum()) / 130


def test_nothing_is_counted_where_nothing_is_left_out(tmp_path):
    counts = uncounted_objects(index_of(tmp_path, [(0, 0, 0)]), max_detections=300)
    assert counts.lines() == ["evaluation uses all 1 objects"]
    assert np.array_equal(counts.objects, [1, 0])


def test_images_whose_detections_are_cut_are_counted():
    results = [{"image_id": 1}] * 3 + [{"image_id": 2}] * 2
    assert images_cut_short(results, max_detections=3) == 1
    assert images_cut_short(results, max_detections=4) == 0
