"""Output of a training for people: pictures of the assignment, and the summary."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console

from yolov7.loss import LevelPicture
from yolov7.predict.draw import class_color
from yolov7.train.pictures import AssignedBatch, draw_assignment, draw_labels
from yolov7.train.progress import ProgressDisplay, duration
from yolov7.train.records import Outcome, StartReport, StepReport
from yolov7.train.summary import as_markdown, as_text, facts

SIDE, SCALE = 64, 8  # of the image, and of its panels


def batch(positives: list[list[list[int]]], **over) -> AssignedBatch:
    """Two grey images; the first with two objects. Levels of strides 8 and 16."""
    targets = [[0, 1, 8, 8, 24, 24], [0, 0, 40, 40, 60, 60]]
    cells = [torch.tensor(level, dtype=torch.int64).reshape(-1, 6).T for level in positives]
    given = {
        "epoch": 0,
        "batch_index": 2,
        "image_ids": [7, 9],
        "images": torch.full((2, 3, SIDE, SIDE), 128, dtype=torch.uint8),
        "targets": torch.tensor(targets, dtype=torch.float32),
        "positives": cells,
        "levels": (LevelPicture(8, 2, "anchors 10 x 13, 16 x 30"), LevelPicture(16, 2, "anchors 30 x 61, 62 x 45")),
    }
    return AssignedBatch(**{**given, **over})


def panels(path, columns: int) -> list[list[np.ndarray]]:
    """The panels (S, S, 3) RGB of every image's row."""
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(int)
    side, line, gap = SIDE * SCALE, 30, 6
    assert picture.shape[1] == columns * side + (columns - 1) * gap
    rows = (picture.shape[0] - 2 * line) // (side + line)
    starts = [line + row * (side + line) + line for row in range(rows)]
    return [[picture[y : y + side, x * (side + gap) :][:, :side] for x in range(columns)] for y in starts]


def is_filled(panel: np.ndarray, column: float, row: float, stride: int, color: tuple[int, int, int]) -> bool:
    """True if the panel has nearly `color` at a place given in cells."""
    y, x = int(row * stride * SCALE), int(column * stride * SCALE)
    return bool(np.abs(panel[y, x] - color).max() < 60)


def test_cells_have_the_colour_of_the_object_they_learn_a_stripe_for_each_anchor(tmp_path):
    # level, image, anchor, row, column, target
    seen = batch([[[0, 0, 1, 1, 2, 0]], [[1, 0, 0, 2, 3, 1], [1, 0, 1, 2, 3, 0]]])
    draw_assignment(seen, ["cat", "dog"], tmp_path / "a.png")
    (labels, first, second), (_, empty, _) = panels(tmp_path / "a.png", 3)
    one, other = class_color(0), class_color(1)
    assert is_filled(first, 2.75, 1.5, 8, one) and not is_filled(first, 2.25, 1.5, 8, one)
    assert not is_filled(first, 3.75, 1.5, 8, one) and not is_filled(first, 2.75, 2.5, 8, one)
    assert is_filled(second, 3.25, 2.5, 16, other) and is_filled(second, 3.85, 2.5, 16, one)
    assert not is_filled(second, 2.25, 2.5, 16, other)
    assert (empty[SCALE * 4] < 110).all() and (np.ptp(empty.reshape(-1, 3), axis=1) < 8).all()  # dim and grey
    assert np.abs(labels[16 * SCALE, 8 * SCALE] - one).max() < 60  # the left side of its box


def test_an_object_that_no_cell_took_is_crossed_out(tmp_path):
    taken, missed = batch([[[0, 0, 0, 5, 5, 1]], [[1, 0, 0, 1, 1, 0]]]), batch([[[0, 0, 0, 5, 5, 1]], []])
    middle = SIDE // 4 * SCALE  # of the first object
    for seen, crossed in ((taken, False), (missed, True)):
        draw_assignment(seen, ["cat", "dog"], tmp_path / "a.png")
        (labels, *_), _ = panels(tmp_path / "a.png", 3)
        patch = labels[middle - 3 : middle + 3, middle - 3 : middle + 3]
        assert (np.abs(patch - 128).max() > 60) == crossed


def test_cells_of_a_level_without_anchors_are_filled_whole(tmp_path):
    seen = batch([[[0, 0, 0, 1, 2, 0]], []], levels=(LevelPicture(8), LevelPicture(16)))
    draw_assignment(seen, ["cat", "dog"], tmp_path / "a.png")
    (_, first, _), _ = panels(tmp_path / "a.png", 3)
    assert is_filled(first, 2.25, 1.5, 8, class_color(0)) and is_filled(first, 2.75, 1.5, 8, class_color(0))


def test_the_start_of_a_training_is_logged_in_one_line():
    text = io.StringIO()
    report = StartReport(
        variant="small", training_images=6, validation_images=2, classes=3, epochs=4, batch_size=2, image_size=96,
        optimizer="adamw", learning_rate=0.002, device="cpu", epoch=1, finished=False,
    )  # fmt: skip
    ProgressDisplay(Console(file=text, width=400)).started(report)
    assert text.getvalue() == (
        "small: 6 training and 2 validation images, 3 classes, 4 epochs of batches of 2 at 96 px, adamw at 0.002, "
        "on cpu, from epoch 2\n"
    )


def test_a_log_has_a_line_for_every_epoch_and_a_long_one_a_line_a_minute(monkeypatch):
    text = io.StringIO()
    display = ProgressDisplay(Console(file=text, width=200))
    report = StepReport(
        epoch=1, epochs=3, batch=4, batches=9, losses={"box": 0.5, "objectness": 0.25, "distill_classification": 0.125},
        learning_rate=0.01, images_per_second=37.6, seconds_left=7500, memory_gib=1.23,
    )  # fmt: skip
    display.stepped(report)
    assert text.getvalue() == ""
    monkeypatch.setattr("yolov7.train.progress._PLAIN_SECONDS", -1.0)
    display.stepped(report)
    line = text.getvalue()
    for part in (
        "epoch 2/3 batch 4/9",
        "box 0.5000",
        "dis-cla 0.1250",
        "lr 1.00e-02",
        "38 img/s",
        "1.2 GiB",
        "2h05m left",
    ):
        assert part in line
    row = {"epoch": 1, "train/box": 0.5, "train/objectness": 0.25, "train/classification": 0.125}
    display.epoch_ended({**row, "images_per_second": 37.6, "val/AP": 0.41, "val/AP50": 0.7}, best=True)
    last = text.getvalue().splitlines()[-1]
    for part in ("epoch 2:", "objectness 0.2500", "38 img/s", "AP 0.410 AP50 0.700", "best so far"):
        assert part in last
    assert [duration(s) for s in (0.4, 61, 7500)] == ["0s", "1m01s", "2h05m"]


def test_pictures_of_wide_large_and_empty_batches(tmp_path):
    nothing = torch.zeros(0, 6)
    wide = torch.zeros(1, 3, 640, 1280, dtype=torch.uint8)
    seen = batch([[], []], images=wide, targets=nothing, image_ids=[1])
    draw_assignment(seen, ["cat", "dog"], tmp_path / "a.jpg")
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == (3 * 30 + 480, 3 * 960 + 12, 3)
    draw_labels(seen, ["cat", "dog"], tmp_path / "l.jpg")
    assert cv2.imread(str(tmp_path / "l.jpg")).shape == (640, 1280, 3)
    assert seen.name == "epoch-1-batch-3"


@pytest.fixture
def outcome(tmp_path) -> Outcome:
    rows = [
        {"epoch": 0, "train/box": 0.3, "train/objectness": 0.2, "train/classification": 0.1, "bad_images": 2.0,
         "images_per_second": 10.0, "seconds": 60.0, "val/AP": 0.4, "val/AP50": 0.7, "val/AP75": 0.3},
        {"epoch": 1, "train/box": 0.2, "train/objectness": 0.1, "train/classification": 0.05, "bad_images": 1.0,
         "images_per_second": 20.0, "seconds": 30.0},
    ]  # fmt: skip
    return Outcome(
        finished=True,
        best=tmp_path / "best.safetensors",
        last=tmp_path / "last.safetensors",
        best_ap=0.4,
        best_epoch=0,
        history=rows,
        skipped_steps=5,
    )


def test_the_summary_reports_the_outcome(outcome, tmp_path):
    lines = dict(facts(outcome, epochs=4, device="cpu", peak_memory_gib=1.25, folder=tmp_path))
    assert lines["best epoch"] == "1 of 2, stopped early of 4"
    assert lines["validation"] == "AP 0.400, AP50 0.700, AP75 0.300"
    assert lines["last losses"] == "box 0.2000, objectness 0.1000, classification 0.0500"
    assert lines["training time"] == "1m30s on cpu"
    assert lines["speed"] == "13.3 images/s"  # 1200 images in 90 s, not the mean of 10 and 20
    assert (lines["skipped steps"], lines["unreadable images"]) == ("5", "3")
    assert lines["outputs"] == str(tmp_path)
    pairs = list(lines.items())
    text, table = as_text("title", pairs), as_markdown("title", pairs)
    assert text.splitlines()[0] == "title" and "  speed              13.3 images/s" in text.splitlines()
    assert "| speed | 13.3 images/s |" in table.splitlines()
