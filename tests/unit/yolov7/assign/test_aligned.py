"""Task-aligned assignment against the same method on dense tables."""

import collections
from dataclasses import replace

import pytest
import torch
from aligned_cases import STRIDES, check_equal, plain_aligned, predictions_of, random_batch, sizes_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7.assign import AlignedAssigner, Targets, cells_of
from yolov7.assign import cells as cells_module
from yolov7.errors import DataError

CPU = torch.device("cpu")


def assigned(predicted, rows, **rule):
    """As `plain_aligned` answers."""
    matches = AlignedAssigner(**rule)(predicted, Targets.of(rows, CPU))
    assert sum(matches.counts) == len(matches) and len(matches.counts) == predicted.heads * len(STRIDES)
    maps, image, anchor, row, column, target = matches.lines
    assert torch.equal(maps, maps.sort().values) and not anchor.any()
    own = len(predicted.cells) // predicted.heads
    cell = predicted.cells.numbers(maps, row, column) % own
    keys = zip((maps // len(STRIDES)).tolist(), image.tolist(), cell.tolist(), strict=True)
    values = list(zip(target.tolist(), matches.weight.tolist(), strict=True))
    found = dict(zip(keys, values, strict=True))
    assert len(found) == len(values)
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("heads", [1, 2])
def test_equals_the_plain_method(seed, heads):
    predicted, rows = random_batch(seed, heads=heads)
    expected = plain_aligned(predicted, rows)
    assert expected
    check_equal(assigned(predicted, rows), expected)


def test_contested_cells_are_among_the_cases():
    contested = 0
    for seed in range(4):
        predicted, rows = random_batch(seed, objects=10)
        chosen = collections.Counter()
        for row in range(len(rows)):
            chosen.update((head, image, cell) for head, image, cell in plain_aligned(predicted, rows[[row]]))
        contested += sum(count > 1 for count in chosen.values())
        check_equal(assigned(predicted, rows), plain_aligned(predicted, rows))
    assert contested > 20


@pytest.mark.parametrize(
    "rule",
    [
        {"top_k": 1},
        {"top_k": 13, "alpha": 1.0},
        {"top_k": 500, "beta": 2.0},
        {"top_k": 13, "alpha": 1.0, "overlap": "iou"},
    ],
)
def test_other_rules(rule):
    predicted, rows = random_batch(3, objects=10)
    check_equal(assigned(predicted, rows, **rule), plain_aligned(predicted, rows, **rule))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from([0, 4, 7.99, 8, 12, 12.000001, 28, 36, 64, 95.9, 96])] * 4), max_size=6),
    st.integers(0, 2**31),
)
def test_targets_on_the_grid_lines(corners, seed):
    """Sides through centres and outside the image, boxes without area or turned inside out, equal targets."""
    predicted, _ = random_batch(seed, images=1, objects=1)
    rows = torch.tensor([(0, number % 4, *box) for number, box in enumerate(corners)]).reshape(-1, 6)
    usable = ~Targets.of(rows, CPU).unusable
    found, expected = assigned(predicted, rows), plain_aligned(predicted, rows[usable])
    numbers = usable.nonzero()[:, 0].tolist()
    assert {key: row for key, (row, _) in found.items()} == {key: numbers[row] for key, (row, _) in expected.items()}


def test_ties_go_to_the_earlier_cell_and_the_earlier_target():
    cells = cells_of(sizes_of(64, 64), STRIDES, CPU)
    box = torch.tensor([0.0, 0.0, 64.0, 64.0])
    predicted = predictions_of(box.expand(1, len(cells), 4), torch.zeros(1, len(cells), 2), cells)
    twice = torch.tensor([[0.0, 1.0, 0, 0, 64, 64], [0.0, 1.0, 0, 0, 64, 64]])
    found = assigned(predicted, twice, top_k=5)
    assert {key[2]: row for key, (row, _) in found.items()} == dict.fromkeys(range(5), 0)


def test_no_targets_and_targets_without_a_centre():
    predicted, _ = random_batch(0)
    assert assigned(predicted, torch.zeros(0, 6)) == {}
    assert assigned(predicted, torch.tensor([[0.0, 0, 5, 5, 10, 10], [1.0, 0, float("nan"), 5, 10, 10]])) == {}


def test_crowded_batches_in_chunks_give_the_same(monkeypatch):
    predicted, rows = random_batch(5, objects=12)
    whole = assigned(predicted, rows)
    monkeypatch.setattr(cells_module, "PAIRS", 50)
    check_equal(assigned(predicted, rows), whole)


def test_unknown_images_and_classes_are_refused():
    predicted, rows = random_batch(1)
    for column, value, text in (
        (0, 3, "names image 3 of a batch of 3"),
        (1, 4, "has class 4, the network knows 0 to 3"),
    ):
        wrong = rows.clone()
        wrong[2, column] = value
        with pytest.raises(DataError, match=f"target 2 {text}"):
            AlignedAssigner()(predicted, Targets.of(wrong, CPU))


def test_half_precision_predictions_are_scored_in_float32():
    predicted, rows = random_batch(2)
    half = replace(predicted, boxes=predicted.boxes.half().float(), logits=[part.half() for part in predicted.logits])
    full = replace(half, logits=[part.float() for part in half.logits])
    check_equal(assigned(half, rows), plain_aligned(full, rows))


class Count(TorchDispatchMode):
    """Dispatched operations, and those that wait for the device."""

    WAITING = ("aten.nonzero.default", "aten._local_scalar_dense.default", "aten._to_cpu.default")

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[str(function)] += 1
        return function(*args, **(kwargs or {}))


def test_operations_do_not_grow_with_the_batch():
    counts = []
    for images in (4, 64):
        predicted, rows = random_batch(0, images=images, objects=8, heads=2)
        targets = Targets.of(rows, CPU)
        AlignedAssigner()(predicted, targets)
        with Count() as count:
            AlignedAssigner()(predicted, targets)
        counts.append(count.calls)
    assert counts[0] == counts[1]
    assert sum(counts[0][name] for name in Count.WAITING) <= 6
