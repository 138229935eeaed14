"""Time, operations and memory of assignment plus loss: `python benchmarks/loss.py`.

One line for each case: milliseconds of forward (assignment and loss) and of backward down to the raw maps, dispatched
operations (views included), and, with `--share`, the share in a training step of yolov7-tiny on the same images.

Then YOLOv9's beside the same on dense tables (`dense_aligned.py`), each in a process of its own: least processor
milliseconds, peak memory above that of the maps (their gradients included), and operations. It fails if the positives
differ, or the losses by more than 1e-5. Then the same figures of YOLOv6's. `--aligned-only`: these two alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from dense_aligned import BINS, dense_loss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7.assign import Matches, cells_of
from yolov7.config import AlignedLoss, AnchorLoss
from yolov7.loss import AlignedCriterion, anchor_criterion
from yolov7.memory import peak_memory_gib

P5 = [[(12, 16), (19, 36), (40, 28)], [(36, 75), (76, 55), (72, 146)], [(142, 110), (192, 243), (459, 401)]]
P6 = [
    [(19, 27), (44, 40), (38, 94)],
    [(96, 68), (86, 152), (180, 137)],
    [(140, 301), (303, 264), (238, 542)],
    [(436, 615), (739, 380), (925, 792)],
]


@dataclass(frozen=True)
class Case:
    images: int
    objects: int
    side: int
    auxiliary: bool = False
    assigner: str = "ota"

    def model(self) -> SimpleNamespace:
        anchors, strides = (P6, (8, 16, 32, 64)) if self.auxiliary else (P5, (8, 16, 32))
        return SimpleNamespace(
            anchors=torch.tensor(anchors, dtype=torch.float32) * (self.side / 640),
            strides=strides,
            num_classes=80,
            has_auxiliary=self.auxiliary,
        )

    def maps(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        strides = self.model().strides * (2 if self.auxiliary else 1)
        # As a convolution gives them: channels before rows and columns in memory.
        shapes = [(self.images, 3, 85, self.side // s, self.side // s) for s in strides]
        return [torch.randn(shape, generator=generator).permute(0, 1, 3, 4, 2).requires_grad_() for shape in shapes]

    def targets(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        count = self.images * self.objects
        image = torch.arange(self.images).repeat_interleave(self.objects)[:, None].float()
        label = torch.randint(0, 80, (count, 1), generator=generator).float()
        size = (torch.rand(count, 2, generator=generator) * 0.3 + 0.05) * self.side
        low = torch.rand(count, 2, generator=generator) * (self.side - size)
        return torch.cat((image, label, low, low + size), 1)


CASES = [
    Case(16, 8, 160),
    Case(16, 8, 320),
    Case(16, 8, 640),
    Case(16, 40, 640),
    Case(4, 8, 160),
    Case(64, 8, 160),
    Case(16, 8, 640, assigner="plain"),
    Case(16, 8, 640, auxiliary=True),
    Case(32, 300, 320),
]


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.operations += 1
        return function(*args, **(kwargs or {}))


def median(call: Callable[[], float], repeats: int) -> float:
    call()
    return statistics.median(call() for _ in range(repeats))


def measure(case: Case, repeats: int) -> tuple[float, float, int]:
    criterion = anchor_criterion(case.model(), AnchorLoss(assigner=case.assigner), image_size=case.side)  # type: ignore[arg-type]
    maps, targets = case.maps(), case.targets()

    def forward() -> float:
        start = time.perf_counter()
        criterion(maps, targets)
        return time.perf_counter() - start

    def backward() -> float:
        total = criterion(maps, targets).total
        start = time.perf_counter()
        torch.autograd.grad(total, maps)
        return time.perf_counter() - start

    with Count() as count:
        criterion(maps, targets)
    return median(forward, repeats), median(backward, repeats), count.operations


def training_step(case: Case, repeats: int) -> float:
    """Seconds of forward and backward of yolov7-tiny on the same images, without any loss."""
    from yolov7.model import create_model

    model = create_model("yolov7-tiny").train()
    images = torch.rand(case.images, 3, case.side, case.side)

    def step() -> float:
        start = time.perf_counter()
        raw = model.raw(images)
        torch.autograd.backward(raw, [torch.ones_like(maps) for maps in raw])
        return time.perf_counter() - start

    return median(step, repeats)


STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Aligned:
    """What one process measured."""

    forward: float
    backward: float
    peak: float
    operations: int
    total: float
    positives: set[tuple[int, ...]]
    """Head, image, cell, target."""


YOLOV6 = {"top_k": 13, "alpha": 1.0, "overlap": "iou", "box_epsilon": 1e-10, "classification_loss": "varifocal"}
FIELDS: dict[str, tuple[dict[str, object], int]] = {
    "YOLOv9": ({}, BINS),
    "YOLOv6, SIoU": ({**YOLOV6, "box_loss": "siou"}, 0),
    "YOLOv6, GIoU and 17 bins": ({**YOLOV6, "box_loss": "giou"}, 17),
    "YOLOv6, first epochs (ATSS)": ({**YOLOV6, "box_loss": "siou", "assigner": "atss"}, 0),
}
"""Loss parameters and bins."""


def ours(
    heads: int, fields: dict[str, object], bins: int
) -> Callable[[list[Tensor], Tensor], tuple[Tensor, list[Tensor]]]:
    criterion = AlignedCriterion(AlignedLoss(**fields), strides=STRIDES, num_classes=80, bins=bins, auxiliary=heads > 1)
    assigner = criterion.assigner
    seen: list[Matches] = []
    criterion.assigner = lambda *given: seen.append(assigner(*given)) or seen[-1]  # type: ignore[func-returns-value]

    def loss(raw: list[Tensor], targets: Tensor) -> tuple[Tensor, list[Tensor]]:
        total = criterion(raw, targets).total
        maps, image, _, row, column, target = seen.pop().lines
        cells = cells_of(tuple(tuple(part.shape[2:]) for part in raw[:3]), STRIDES, raw[0].device)  # type: ignore[misc]
        found = torch.stack((image, cells.numbers(maps % 3, row, column), target), 1)
        return total, [found[maps // 3 == head] for head in range(heads)]

    return loss


def measure_aligned(
    dense: bool, heads: int, images: int, side: int, objects: int, repeats: int, name: str = "YOLOv9"
) -> Aligned:
    """In a fresh process, because its peak memory counts."""
    torch.set_num_threads(1)
    fields, bins = FIELDS[name]
    loss = (lambda raw, targets: dense_loss(raw, targets, STRIDES)) if dense else ours(heads, fields, bins)

    def batch(images: int, side: int, objects: int) -> tuple[list[Tensor], Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(images, 4 * max(bins, 1) + 80, side // s, side // s) for s in STRIDES * heads]
        raw = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        return raw, Case(images, objects, side).targets()

    raw, targets = batch(1, 128, 3)
    torch.autograd.grad(loss(raw, targets)[0], raw)  # loads what is loaded once
    raw, targets = batch(images, side, objects)
    before = peak_memory_gib()
    times = []
    for number in range(repeats):
        start = time.process_time()
        total, positives = loss(raw, targets)
        between = time.process_time()
        torch.autograd.grad(total, raw)
        times.append((between - start, time.process_time() - between))
        if not number:
            peak = peak_memory_gib() - before
    with Count() as count:
        loss(raw, targets)
    found = {(head, *row) for head, part in enumerate(positives) for row in part.tolist()}
    forward, backward = map(min, zip(*times, strict=True))  # other work on the machine only adds
    return Aligned(forward, backward, 1024 * peak, count.operations, total.item(), found)


def alone(*given: bool | int | str) -> Aligned:
    """`measure_aligned`, in a process that measures nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_aligned, *given).result()  # type: ignore[arg-type]


def row(found: Aligned) -> str:
    figures = 1e3 * found.forward, 1e3 * found.backward, 1e3 * (found.forward + found.backward), found.peak
    return " ".join(f"{value:9.0f}" for value in figures) + f" {found.operations:4d}"


def list_aligned(repeats: int) -> None:
    print("one head, 16 images of 640 px, 20 objects each, 80 classes")
    print("                             forward ms backward ms  sum  peak MiB  ops  positives")
    for name in FIELDS:
        found = alone(False, 1, 16, 640, 20, repeats, name)
        print(f"{name:28} {row(found)} {len(found.positives):9d}", flush=True)


def compare_aligned(repeats: int) -> None:
    print("YOLOv9, 16 images of 640 px, 20 objects each, 80 classes")
    print("heads  method forward ms backward ms  sum  peak MiB  ops")
    for heads in (1, 2):
        results = []
        for dense in (True, False):
            found = alone(dense, heads, 16, 640, 20, repeats)
            print(f"{heads:5d} {'dense' if dense else 'ours':>7} {row(found)}", flush=True)
            results.append(found)
        plain, own = results
        assert plain.positives == own.positives, f"{len(plain.positives ^ own.positives)} positives differ"
        assert abs(plain.total - own.total) <= 1e-5 * plain.total, (plain.total, own.total)
        faster = (plain.forward + plain.backward) / (own.forward + own.backward)
        print(f"  {len(own.positives)} equal positives; {faster:.1f} times faster, {plain.peak / own.peak:.1f} smaller")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--share", action="store_true", help="compare with training steps of yolov7-tiny (slow at 640)")
    parser.add_argument("--aligned-only", action="store_true", help="YOLOv9 and YOLOv6 alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.aligned_only:
        compare_cases(arguments.repeats, arguments.share)
    compare_aligned(arguments.repeats)
    list_aligned(arguments.repeats)


def compare_cases(repeats: int, share: bool) -> None:
    print("images objects  side      head assigner forward ms backward ms  ops")
    for case in CASES:
        forward, backward, operations = measure(case, repeats if case.objects < 100 else 1)
        line = f"{case.images:6d} {case.objects:7d} {case.side:5d} {'auxiliary' if case.auxiliary else 'lead':>9}"
        line += f" {case.assigner:>8} {1e3 * forward:10.1f} {1e3 * backward:11.1f} {operations:4d}"
        if share and not case.auxiliary and case.objects == 8:
            step = training_step(case, 1 if case.side > 320 else 3)
            line += f"  {100 * (forward + backward) / (step + forward + backward):.1f} % of {1e3 * step:.0f} ms"
        print(line, flush=True)


if __name__ == "__main__":
    main()
