"""Time of the COCO figures by either engine, in one run: `python benchmarks/metrics.py`.

Random boxes in the density of COCO: 7 objects and 100 detections an image, 80 classes. Both engines must agree.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from yolov7.evaluate.coco import coco_metrics, ground_truth


def scene(images: int, classes: int = 80) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    draw = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(images):
        for _ in range(7):
            sides = np.exp(draw.uniform(2, 5.5, 2))
            box = [*(draw.uniform(0, 300, 2)), *sides]
            label = int(draw.integers(classes))
            annotations.append({"image_id": image, "category_id": label, "bbox": [float(v) for v in box]})
            for _ in range(14):
                moved = np.abs(np.array(box) + draw.normal(0, 5, 4)).tolist()
                guess = label if draw.random() < 0.5 else int(draw.integers(classes))
                score = float(draw.random())
                results.append({"image_id": image, "category_id": guess, "bbox": moved, "score": score})
    dataset = {"images": [{"id": i} for i in range(images)], "annotations": annotations}
    return {**dataset, "categories": [{"id": i, "name": str(i)} for i in range(classes)]}, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    dataset, results = scene(parser.parse_args().images)
    truth = ground_truth(dataset)
    figures, seconds = {}, {}
    for engine in ("pycocotools", "hotcoco"):
        start = time.process_time()
        figures[engine] = coco_metrics(truth, results, engine=engine)
        seconds[engine] = time.process_time() - start
    apart = max(abs(figures["hotcoco"][name] - value) for name, value in figures["pycocotools"].items())
    print(f"{len(truth.imgs)} images, {len(results)} detections, processor seconds: {seconds}")
    print(f"{seconds['pycocotools'] / seconds['hotcoco']:.0f} times as fast; largest difference {apart:.1e}")


if __name__ == "__main__":
    main()
