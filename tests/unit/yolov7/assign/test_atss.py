"""ATSS against the same method on dense tables."""

import collections
from dataclasses import replace

import pytest
import torch
from aligned_cases import check_equal, plain_atss, predictions_of, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7.assign import AtssAssigner, Targets, cells_of
from yolov7.assign import cells as cells_module
from yolov7.assign.atss import _Atss
from yolov7.errors import DataError

CPU = torch.device("cpu")


def assigned(predicted, rows):
    """As `plain_atss` answers."""
    matches = AtssAssigner()(predicted, Targets.of(rows, CPU))
    maps, image, anchor, row, column, target = matches.lines
    assert torch.equal(maps, maps.sort().values) and not anchor.any()
    levels = len(predicted.cells.sizes) // predicted.heads
    cell = predicted.cells.numbers(maps, row, column) % (len(predicted.cells) // predicted.heads)
    keys = zip((maps // levels).tolist(), image.tolist(), cell.tolist(), strict=True)
    found = dict(zip(keys, zip(target.tolist(), matches.weight.tolist(), strict=True), strict=True))
    assert len(found) == len(matches) == sum(matches.counts)
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("heads", [1, 2])
def test_equals_the_plain_method(seed, heads):
    predicted, rows = random_batch(seed, heads=heads)
    expected = plain_atss(predicted, rows)
    assert expected
    check_equal(assigned(predicted, rows), expected)


@pytest.mark.parametrize("size", [(32, 96), (32, 320), (256, 64), (64, 64)])
def test_grids_with_fewer_cells_than_are_considered(size):
    number = 0
    for seed in range(4):
        predicted, rows = random_batch(seed, height=size[0], width=size[1])
        expected = plain_atss(predicted, rows)
        check_equal(assigned(predicted, rows), expected)
        number += len(expected)
    assert number


def test_contested_cells_are_among_the_cases():
    contested = 0
    for seed in range(4):
        predicted, rows = random_batch(seed, objects=14)
        chosen = collections.Counter()
        for row in range(len(rows)):
            chosen.update(plain_atss(predicted, rows[[row]]).keys())
        contested += sum(count > 1 for count in chosen.values())
        check_equal(assigned(predicted, rows), plain_atss(predicted, rows))
    assert contested > 20


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(-40, 140), st.integers(-40, 140)),
    st.sampled_from([1.0, 0.25]),
)
def test_the_nearest_cells_are_those_of_a_whole_table(size, centre, unit):
    """Grids of any size and centres anywhere, on lines of cells and outside; equally near, the earlier cell."""
    cells = cells_of((size,), (8,), CPU)
    middle = torch.tensor(centre) * unit
    rows = torch.tensor([[0.0, 0.0, *(middle - 3).tolist(), *(middle + 3).tolist()]])
    predicted = predictions_of(torch.zeros(1, len(cells), 4), torch.zeros(1, len(cells), 1), cells)
    found, exists = _Atss(AtssAssigner(), predicted, Targets.of(rows, CPU))._nearest(slice(0, 1))
    distance = (cells.centres.double() - middle).square().sum(1)
    expected = distance.sort(stable=True).indices[:9]
    assert found[0, 0][exists[0, 0]].tolist() == expected.tolist()


def test_equal_targets_go_to_the_earlier():
    predicted, _ = random_batch(0, images=1)
    twice = torch.tensor([[0.0, 1.0, 10, 10, 60, 60], [0.0, 2.0, 10, 10, 60, 60]])
    found = assigned(predicted, twice)
    assert found and all(row == 0 for row, _ in found.values())


def test_what_is_predicted_changes_scores_alone():
    predicted, rows = random_batch(4)
    other = replace(predicted, boxes=predicted.boxes + 5, logits=[part * 0 for part in predicted.logits])
    found, moved = assigned(predicted, rows), assigned(other, rows)
    assert {key: row for key, (row, _) in found.items()} == {key: row for key, (row, _) in moved.items()}
    assert found != moved
    broken = replace(predicted, boxes=torch.full_like(predicted.boxes, torch.nan))
    assert {score for _, score in assigned(broken, rows).values()} == {0.0}


def test_no_targets_and_targets_without_an_area():
    predicted, rows = random_batch(0)
    assert assigned(predicted, torch.zeros(0, 6)) == {}
    none = torch.tensor([[0.0, 0, 5, 5, 5, 10], [1.0, 0, float("nan"), 5, 10, 10], [1.0, 0, 1e30, 0, 1e38, 1e38]])
    assert assigned(predicted, none) == {}
    check_equal(assigned(predicted, torch.cat((rows, none))), plain_atss(predicted, rows))


def test_crowded_batches_in_chunks_give_the_same(monkeypatch):
    predicted, rows = random_batch(5, objects=12)
    whole = assigned(predicted, rows)
    monkeypatch.setattr(cells_module, "PAIRS", 150)
    assert assigned(predicted, rows) == whole


def test_unknown_images_and_classes_are_refused():
    predicted, rows = random_batch(1)
    for column, value, text in ((0, 3, "names image 3 of a batch"), (1, 4, "has class 4, the network knows 0 to 3")):
        wrong = rows.clone()
        wrong[2, column] = value
        with pytest.raises(DataError, match=f"target 2 {text}"):
            AtssAssigner()(predicted, Targets.of(wrong, CPU))


class Count(TorchDispatchMode):
    """Dispatched operations."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[str(function)] += 1
        return function(*args, **(kwargs or {}))


def test_operations_do_not_grow_with_the_batch():
    counts = []
    for images in (4, 64):
        predicted, rows = random_batch(0, images=images, objects=8)
        targets = Targets.of(rows, CPU)
        AtssAssigner()(predicted, targets)
        with Count() as count:
            AtssAssigner()(predicted, targets)
        counts.append(count.calls)
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) <= 255
    waiting = ("aten.nonzero.default", "aten._local_scalar_dense.default", "aten._to_cpu.default")
    assert sum(counts[0][name] for name in waiting) <= 6
