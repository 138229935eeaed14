"""Losses, matches, candidates and gradients of the published definitions (golden vectors)."""

import collections
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from yolov7.assign import COARSE, FINE, OtaAssigner, PlainAssigner, Targets
from yolov7.config import AnchorLoss
from yolov7.loss import anchor_criterion

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
SIDE, IMAGES = 128, 3
FILES = sorted(GOLDEN.glob("loss_*.npz"))
pytestmark = pytest.mark.skipif(not FILES, reason="the golden loss vectors are not here")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request):
    arrays = dict(np.load(request.param))
    strides = tuple(int(stride) for stride in arrays["strides"])
    anchors = torch.from_numpy(arrays["anchors_grid_units"] * arrays["strides"][:, None, None])
    rows = torch.from_numpy(arrays["targets"]).double()
    centre, half = rows[:, 2:4] * SIDE, rows[:, 4:6] * SIDE / 2
    name = request.param.stem.removeprefix("loss_")
    return SimpleNamespace(
        arrays=arrays,
        name=name,
        kind="plain" if name.startswith("plain") else "ota",
        heads=("lead_", "aux_") if name.startswith("auxota") else ("",),
        levels=len(strides),
        model=SimpleNamespace(
            anchors=anchors,
            strides=strides,
            num_classes=80,
            num_levels=len(strides),
            has_auxiliary=name.startswith("auxota"),
        ),
        raw=[torch.from_numpy(arrays[f"pred{i}"]).requires_grad_() for i in range(8) if f"pred{i}" in arrays],
        targets=torch.cat((rows[:, :2], centre - half, centre + half), 1).float(),
    )


def criterion(case):
    return anchor_criterion(case.model, AnchorLoss(assigner=case.kind, scale_gains=False), image_size=SIDE)


def rows(array):
    return collections.Counter(tuple(int(value) for value in row) for row in array)


def test_losses(case):
    loss = criterion(case)(case.raw, case.targets)
    box, objectness, classification, total = case.arrays["items_box_obj_cls_total"].tolist()
    # The reference sums in another order: a few units in the last place of float32.
    near = {"abs": 2e-7, "rel": 1e-6}
    assert loss.box.item() == pytest.approx(box, **near)
    assert loss.classification.item() == pytest.approx(classification, **near)
    assert loss.objectness.item() == pytest.approx(objectness, **near)
    assert loss.total.item() == pytest.approx(total * IMAGES, **near)
    assert loss.total.item() == pytest.approx(case.arrays["loss_times_batch"].item(), **near)


def test_gradients(case):
    criterion(case)(case.raw, case.targets).total.backward()
    for maps, expected in zip(case.raw, case.arrays["grad_abs_sum_xy_wh_obj_cls_l2"], strict=True):
        gradient = maps.grad.double()
        parts = (gradient[..., :2], gradient[..., 2:4], gradient[..., 4], gradient[..., 5:])
        found = [part.abs().sum().item() for part in parts] + [gradient.norm().item()]
        assert found == pytest.approx(expected.tolist(), rel=2e-6, abs=1e-8)


def test_matches_as_sets(case):
    assigner = criterion(case).assigner
    found = assigner(case.raw[: case.levels], Targets.of(case.targets, torch.device("cpu")))
    parts = found.by_map()
    assert len(parts) == len(case.heads) * case.levels
    for h, head in enumerate(case.heads):
        for level in range(case.levels):
            cells = parts[h * case.levels + level]
            key = f"{head}match{level}"
            assert rows(cells[1:5].T.numpy()) == rows(case.arrays[f"{key}_image_anchor_gridy_gridx"])
            if f"{key}_target" in case.arrays:
                # Which prediction learns which target, copies counted.
                expected = np.concatenate(
                    (case.arrays[f"{key}_image_anchor_gridy_gridx"], target_rows(case, case.arrays[f"{key}_target"])), 1
                )
                assert rows(cells[1:].T.numpy()) == rows(expected)
            else:
                labels = case.targets[cells[5], 1].long().tolist()
                assert labels == case.arrays[f"{key}_cls"].tolist()
            anchors = case.model.anchors[level, cells[2]] / case.model.strides[level]
            wanted = case.arrays[f"{key}_anchor_wh"]
            assert sorted(anchors.tolist()) == sorted(wanted.tolist())


def target_rows(case, table):
    targets = case.arrays["targets"]
    return np.array([np.flatnonzero((targets == row).all(1))[0] for row in table], dtype=int).reshape(-1, 1)


def test_plain_box_targets(case):
    if case.kind != "plain":
        pytest.skip("these vectors hold no box targets")
    found = criterion(case).assign(case.raw, case.targets)
    for level, cells in enumerate(found):
        stride = case.model.strides[level]
        boxes = case.targets[cells[5], 2:].double() / stride
        corner = torch.stack((cells[4], cells[3]), 1)
        ours = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2 - corner, boxes[:, 2:] - boxes[:, :2]), 1)
        # Pixels of float32 corners against normalised centres: 128 px resolve 1e-5.
        assert np.allclose(ours.numpy(), case.arrays[f"match{level}_tbox"], atol=2e-5)


def test_candidates_as_sets(case):
    if case.kind == "plain":
        pytest.skip("every candidate of the plain loss is a match")
    regions = (FINE, COARSE)[: len(case.heads)]
    geometry = criterion(case).geometry
    lead = case.raw[: case.levels]
    parts = PlainAssigner(geometry, regions=regions)(lead, Targets.of(case.targets, torch.device("cpu"))).by_map()
    for h, head in enumerate(case.heads):
        for level in range(case.levels):
            ours = parts[h * case.levels + level]
            assert rows(ours[1:5].T.numpy()) == rows(case.arrays[f"{head}cand{level}"])


def test_the_maps_of_the_lead_head_alone_give_its_part_of_the_loss(case):
    if not case.model.has_auxiliary:
        pytest.skip("there is no auxiliary head")
    both = criterion(case)(case.raw, case.targets)
    lead = criterion(case)(case.raw[: case.levels], case.targets)
    options = AnchorLoss(scale_gains=False, auxiliary_weight=0.0)
    alone = anchor_criterion(case.model, options, image_size=SIDE)(case.raw, case.targets)
    assert lead.total.item() == pytest.approx(alone.total.item(), rel=1e-6)
    assert lead.total < both.total


def test_assigner_takes_the_published_number_of_ious(case):
    assigner = criterion(case).assigner
    if isinstance(assigner, OtaAssigner):
        assert assigner.top == (20 if case.model.has_auxiliary else 10)
