"""Time of per-class suppression against a full-matrix version in the same run: `python benchmarks/nms.py`.

Both versions are exact and give the same boxes. The full matrix is the textbook one: IoU of all pairs, masked by class,
then one greedy pass over the rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from yolov7.boxes import pairwise_iou
from yolov7.nms import batched_nms


def full_matrix(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    order = torch.sort(scores, descending=True, stable=True).indices
    boxes, labels = boxes[order], labels[order]
    rivals = (pairwise_iou(boxes, boxes) > iou) & (labels[:, None] == labels[None, :])
    rows, alive = rivals.numpy(), torch.ones(len(order), dtype=torch.bool).numpy()
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~rows[i, i + 1 :]
    return order[torch.from_numpy(alive)]


def scene(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 560
    size = torch.rand(count, 2, generator=generator) * 160
    labels = torch.randint(0, classes, (count,), generator=generator)
    return torch.cat((low, low + size), 1), torch.rand(count, generator=generator), labels


def median(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'boxes':>8} {'classes':>8} {'ours ms':>10} {'matrix ms':>10} {'ratio':>7}")
    for count, classes in [(100, 20), (1000, 80), (10_000, 80), (10_000, 1), (30_000, 80), (100_000, 80)]:
        boxes, scores, labels = scene(count, classes)
        ours = median(lambda b=boxes, s=scores, n=labels: batched_nms(b, s, n, 0.65), arguments.repeats)
        line = f"{count:8d} {classes:8d} {1e3 * ours:10.2f}"
        if count <= 10_000:
            same = torch.equal(batched_nms(boxes, scores, labels, 0.65), full_matrix(boxes, scores, labels, 0.65))
            assert same, "the two versions differ"
            matrix = median(lambda b=boxes, s=scores, n=labels: full_matrix(b, s, n, 0.65), min(arguments.repeats, 3))
            line += f" {1e3 * matrix:10.2f} {matrix / ours:7.1f}"
        print(line)


if __name__ == "__main__":
    main()
