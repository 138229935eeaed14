"""Operations, synchronisations and memory of the loss of an aligned head."""

import subprocess
import sys
from pathlib import Path

import aligned_cases
import pytest
import torch
from aligned_cases import STRIDES, random_rows, sizes_of
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7.config import AlignedLoss
from yolov7.loss import AlignedCriterion

BINS = 16


class Count(TorchDispatchMode):
    """Counts what is dispatched, views included, and what makes the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.operations = self.waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        self.waits += function.name().startswith(("aten::nonzero", "aten::_local_scalar", "aten::bincount"))
        if function.name().startswith("aten::index.") and args[1]:
            self.waits += any(index is not None and index.dtype == torch.bool for index in args[1])
        return function(*args, **(kwargs or {}))


def counting(method, count):
    """A copy to the host waits, but is no dispatch of its own on a CPU."""

    def counted(self):
        count.waits += 1
        return method(self)

    return counted


YOLOV6 = {"top_k": 13, "alpha": 1.0, "overlap": "iou", "classification_loss": "varifocal"}
CASES = {
    "independent": ({}, BINS, True, 460),
    "lead-guided": ({"auxiliary": "lead-guided"}, BINS, True, 460),
    "YOLOv6, GIoU and bins": ({**YOLOV6, "box_loss": "giou"}, 17, False, 379),
    "YOLOv6, SIoU": ({**YOLOV6, "box_loss": "siou"}, 0, False, 383),
    "ATSS": ({**YOLOV6, "box_loss": "siou", "assigner": "atss"}, 0, False, 428),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_and_synchronisations_do_not_grow_with_the_batch(name, monkeypatch):
    fields, bins, auxiliary, limit = CASES[name]
    made = AlignedCriterion(AlignedLoss(**fields), strides=STRIDES, num_classes=80, bins=bins, auxiliary=auxiliary)
    counts = []
    for images in (4, 64):
        shapes = [(images, made.channels + 80, *size) for size in sizes_of(64, 64) * (2 if auxiliary else 1)]
        maps = [torch.randn(shape).requires_grad_() for shape in shapes]
        targets = random_rows(images, 8, 64)
        made(maps, targets)  # lays out its constants
        with Count() as count, monkeypatch.context() as patch:
            for method in ("tolist", "cpu"):
                patch.setattr(torch.Tensor, method, counting(getattr(torch.Tensor, method), count))
            loss = made(maps, targets)
        assert loss.parts["box"] > 0
        counts.append((count.operations, count.waits))
    assert counts[0] == counts[1]
    assert counts[0][0] <= limit and counts[0][1] <= 6


MEMORY = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {folder!r})
from aligned_cases import random_rows
from yolov7.config import AlignedLoss
from yolov7.loss import AlignedCriterion
from yolov7.memory import peak_memory_gib
made = AlignedCriterion(AlignedLoss(**{fields!r}), strides=(8, 16, 32), num_classes=80, bins=16, auxiliary=False)
maps = [torch.randn(32, 144, 640 // s, 640 // s).requires_grad_() for s in (8, 16, 32)]
loss = made(maps, random_rows(32, 300, 640))
loss.total.backward()
assert torch.isfinite(loss.total)
print(peak_memory_gib())
"""


@pytest.mark.parametrize("fields", [{}, {**YOLOV6, "assigner": "atss"}], ids=["YOLOv9", "ATSS and varifocal"])
def test_crowded_batch_stays_under_2_gb(fields):
    """32 images of 640 pixels with 300 objects each."""
    script = MEMORY.format(folder=str(Path(aligned_cases.__file__).parent), fields=fields)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2_000_000 / 2**20  # GiB, the interpreter and torch included
