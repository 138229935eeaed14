"""Candidates and dynamic matching against plain per-image float64 versions, and the cases where assignment breaks."""

import collections
import math

import pytest
import torch
from assign_cases import head, plain_candidates, plain_ota, random_targets, raw_maps
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from yolov7.assign import COARSE, FINE, UNCONSTRAINED, Geometry, Matches, OtaAssigner, PlainAssigner, Targets
from yolov7.assign import ota as ota_module
from yolov7.errors import DataError

SIZES = [(64, 64), (96, 160), (160, 64)]


def geometry(model):
    return Geometry(model.anchors, model.strides)


def assign(assigner, maps, targets):
    return assigner(maps, Targets.of(targets, maps[0].device))


def listed(matches):
    return [tuple(line) for line in matches.cells.T.tolist()]


def by_region(matches, levels):
    """Matches of each region, with maps numbered within the region."""
    regions = collections.defaultdict(list)
    for m, *rest in listed(matches):
        regions[m // levels].append((m % levels, *rest))
    return [regions[i] for i in range(len(matches.counts) // levels)]


@given(st.integers(0, 10**6), st.sampled_from(SIZES), st.sampled_from([(FINE,), (COARSE,), (FINE, COARSE)]))
@settings(max_examples=40, deadline=None)
def test_candidates_equal_plain_in_value_and_order(seed, size, regions):
    model = head(shrink=0.5)
    maps, targets = raw_maps(model, 3, *size, seed=seed), random_targets(3, 4, *size, 5, seed=seed)
    found = assign(PlainAssigner(geometry(model), regions=regions), maps, targets)
    for bias, part in zip(regions, by_region(found, 3), strict=True):
        assert part == plain_candidates(model, maps, targets, bias)


@given(st.integers(0, 10**6), st.sampled_from(SIZES), st.sampled_from([1, 5]), st.sampled_from([10, 20]), st.booleans())
@settings(max_examples=120, deadline=None)
def test_matching_equals_plain_per_image_version(seed, size, classes, top, both):
    model = head(classes, shrink=0.5)
    maps, targets = raw_maps(model, 3, *size, seed=seed), random_targets(3, 5, *size, classes, seed=seed)
    regions = (FINE, COARSE) if both else (FINE,)
    found = by_region(assign(OtaAssigner(geometry(model), top=top, regions=regions), maps, targets), 3)
    for bias, part in zip(regions, found, strict=True):
        expected = plain_ota(model, maps, targets, bias, top)
        assume(expected is not None)
        assert collections.Counter(part) == collections.Counter(expected)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_chunks_change_nothing(seed):
    model = head()
    maps = raw_maps(model, 4, 96, 96, seed=seed)
    targets = random_targets(4, 9, 96, 96, 5, seed=seed)
    assigner = OtaAssigner(geometry(model), top=20, regions=(FINE, COARSE))
    whole = assign(assigner, maps, targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ota_module, "TABLE", 150)
        pieces = assign(assigner, maps, targets)
    assert listed(pieces) == listed(whole) and pieces.counts == whole.counts


def test_unconstrained_decoder_is_used_in_matching():
    model = head(shrink=0.5)
    maps, targets = raw_maps(model, 2, 96, 96, seed=4), random_targets(2, 4, 96, 96, 5, seed=4, exact=True)
    expected = plain_ota(model, maps, targets, FINE, 10, spread=3.0)
    assert expected and expected != plain_ota(model, maps, targets, FINE, 10)
    found = assign(OtaAssigner(geometry(model), spread=UNCONSTRAINED), maps, targets)
    assert collections.Counter(listed(found)) == collections.Counter(expected)


def test_order_of_the_targets_does_not_matter():
    model = head(shrink=0.5)
    maps, targets = raw_maps(model, 3, 96, 96, seed=5), random_targets(3, 5, 96, 96, 5, seed=5)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))
    straight = {(*c[:5], int(c[5])) for c in listed(assign(OtaAssigner(geometry(model)), maps, targets))}
    mixed = assign(OtaAssigner(geometry(model)), maps, targets[order])
    assert {(*c[:5], int(order[c[5]])) for c in listed(mixed)} == straight


def test_a_batch_is_matched_like_its_images_one_by_one():
    model = head(shrink=0.5)
    maps, targets = raw_maps(model, 4, 96, 96, seed=6), random_targets(4, 5, 96, 96, 5, seed=6)
    assigner = OtaAssigner(geometry(model))
    singles = set()
    for image in range(4):
        own = (targets[:, 0] == image).nonzero()[:, 0]
        rows = targets[own].clone()
        rows[:, 0] = 0
        found = assign(assigner, [m[image : image + 1] for m in maps], rows)
        singles |= {(c[0], image, *c[2:5], int(own[c[5]])) for c in listed(found)}
    assert set(listed(assign(assigner, maps, targets))) == singles


def test_matches_are_sorted_by_map_and_counted():
    model = head(shrink=0.5)
    found = assign(
        OtaAssigner(geometry(model)), raw_maps(model, 3, 96, 96), random_targets(3, 6, 96, 96, 5, exact=True)
    )
    maps = found.cells[0].tolist()
    assert len(found) > 0 and maps == sorted(maps)
    assert found.counts == tuple(maps.count(m) for m in range(3))
    assert [part.shape[1] for part in found.by_map()] == list(found.counts)
    assert found.then(found).first(3).cells.tolist() == found.cells.tolist()
    assert found.then(found).cells[0].tolist() == maps + [m + 3 for m in maps]


def test_identical_targets_each_find_a_copy():
    model = head(shrink=0.5)
    rows = torch.tensor([[0, 1, 20, 20, 44, 52], [0, 1, 20, 20, 44, 52]], dtype=torch.float32)
    maps = raw_maps(model, 1, 96, 96, seed=3)
    found = listed(assign(OtaAssigner(geometry(model)), maps, rows))
    assert {c[5] for c in found} == {0, 1}


def test_nothing_to_assign():
    model = head()
    maps = raw_maps(model, 2, 64, 64)
    for targets in (torch.zeros(0, 6), torch.tensor([[0.0, 0, 1, 1, 1.5, 1.5]])):
        for assigner in (PlainAssigner(geometry(model)), OtaAssigner(geometry(model), regions=(FINE, COARSE))):
            assert len(assign(assigner, maps, targets)) == 0


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "box",
    [
        (10, 10, 10, 40),
        (10, 10, 40, 10),
        (40, 40, 10, 10),
        (NAN, 10, 40, 40),
        (10, 10, INF, 40),
        (-INF, 10, INF, 40),
    ],
)
def test_broken_targets_take_no_part(box):
    model = head(shrink=0.5)
    maps = raw_maps(model, 2, 64, 64, seed=1)
    good = torch.tensor([[0, 1, 10, 10, 40, 40], [1, 2, 5, 5, 30, 40]], dtype=torch.float32)
    broken = torch.cat((good, torch.tensor([[0.0, 1, *box]])))
    for assigner in (PlainAssigner(geometry(model)), OtaAssigner(geometry(model))):
        assert listed(assign(assigner, maps, broken)) == listed(assign(assigner, maps, good)) != []


def test_boxes_that_leave_the_image_stay_in_the_grid():
    model = head(shrink=0.5)
    maps = raw_maps(model, 1, 64, 96, seed=1)
    targets = torch.tensor(
        [[0, 1, -30, -30, -5, -5], [0, 1, 90, 60, 110, 90], [0, 0, 80, 40, 112, 88]], dtype=torch.float32
    )
    found = assign(PlainAssigner(geometry(model), regions=(COARSE,)), maps, targets)
    assert len(found) > 0
    for m, _, _, row, column, _ in listed(found):
        assert 0 <= row < maps[m].shape[2] and 0 <= column < maps[m].shape[3]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ((2, 0, 1, 1, 9, 9), "target 1 names image 2 of a batch of 2"),
        ((-1, 0, 1, 1, 9, 9), "target 1 names image -1"),
        ((0, 5, 1, 1, 9, 9), "target 1 has class 5, the network knows 0 to 4"),
        ((0, -1, 1, 1, 9, 9), "target 1 has class -1"),
    ],
)
def test_unknown_image_or_class_is_named(row, says):
    model = head()
    targets = torch.tensor([(0, 0, 1, 1, 30, 30), row], dtype=torch.float32)
    with pytest.raises(DataError, match=says):
        assign(OtaAssigner(geometry(model)), raw_maps(model, 2, 64, 64), targets)


@pytest.mark.parametrize("value", [60.0, -60.0, 1e4, -1e4])
def test_extreme_predictions_give_a_finite_matching(value):
    model = head(shrink=0.5)
    maps = [torch.full_like(m, value) for m in raw_maps(model, 2, 64, 64)]
    targets = torch.tensor([[0, 1, 10, 10, 40, 40], [1, 2, 5, 5, 30, 40]], dtype=torch.float32)
    found = assign(OtaAssigner(geometry(model)), maps, targets)
    assert {c[5] for c in listed(found)} == {0, 1}
    assert all(c[1] == targets[c[5], 0] for c in listed(found))


def test_predictions_that_are_not_numbers_do_not_crash():
    model = head(shrink=0.5)
    maps = [torch.full_like(m, NAN) for m in raw_maps(model, 2, 64, 64)]
    assign(OtaAssigner(geometry(model)), maps, random_targets(2, 3, 64, 64, 5, seed=1, exact=True))


def test_half_precision_maps_are_read_in_float32():
    model = head(shrink=0.5)
    targets = random_targets(3, 4, 96, 96, 5, seed=2, exact=True)
    for dtype in (torch.float16, torch.bfloat16):
        maps = raw_maps(model, 3, 96, 96, dtype=dtype)
        found = assign(OtaAssigner(geometry(model)), maps, targets)
        assert listed(found) == listed(assign(OtaAssigner(geometry(model)), [m.float() for m in maps], targets))


def test_no_gradient_is_tracked():
    model = head(shrink=0.5)
    maps = [m.requires_grad_() for m in raw_maps(model, 2, 64, 64)]
    found = assign(OtaAssigner(geometry(model)), maps, random_targets(2, 3, 64, 64, 5, seed=1))
    assert not found.cells.requires_grad


def test_constants_made_under_inference_mode_serve_training():
    model = head(shrink=0.5)
    targets = random_targets(2, 3, 32, 224, 5, seed=1, exact=True)
    with torch.inference_mode():
        assign(OtaAssigner(geometry(model)), raw_maps(model, 2, 32, 224), targets)
    assert not geometry(model).grid(raw_maps(model, 2, 32, 224)).strides.is_inference()


def test_weights_of_matches_stay_with_them():
    cells = torch.arange(30).view(6, 5)
    plain, graded = Matches(cells, (2, 3)), Matches(cells, (2, 3), weight=torch.linspace(0.1, 0.5, 5))
    assert plain.first(1).weight is None and plain.then(plain).weight is None
    assert torch.equal(graded.first(1).weight, graded.weight[:2]) and graded.first(2) is graded
    assert torch.equal(graded.then(graded).weight, torch.cat((graded.weight, graded.weight)))
    assert torch.equal(graded.then(plain).weight, torch.cat((graded.weight, torch.ones(5))))
    assert torch.equal(plain.then(graded).weight, torch.cat((torch.ones(5), graded.weight)))
    assert plain.then(graded).counts == (2, 3, 2, 3)
