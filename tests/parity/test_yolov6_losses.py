"""Assignment and losses of YOLOv6: golden vectors of the published definitions, but for those of distillation.

A file's name says what it holds: `tal` or `atss`, the box loss, `dfl`; `v3_ab`: with the anchor-aided branch of 3.0.
"""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from yolov7.assign import Targets
from yolov7.config import SimOtaLoss
from yolov7.loss import SimOtaCriterion, create_criterion
from yolov7.model import create_model
from yolov7.model.heads.efficient import with_options
from yolov7.model.variants import find_variant

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "v6"
NAMES = sorted(path.stem.removeprefix("loss_") for path in GOLDEN.glob("loss_*.npz"))
ALIGNED = [name for name in NAMES if "distill" not in name and "simota" not in name]
STRIDES = (8, 16, 32)
BOX_LOSSES = ("siou", "giou", "ciou", "diou", "iou")


@pytest.fixture(params=ALIGNED or ["none"])
def case(request):
    if request.param == "none":
        pytest.skip("the golden losses of YOLOv6 (../shared) are not here")
    return request.param, dict(np.load(GOLDEN / f"loss_{request.param}.npz"))


@functools.cache
def network(bins, classes, aided):
    spec = with_options(find_variant("yolov6v3-s" if aided else "yolov6-s"), bins=bins, anchor_aided=aided)
    return create_model(spec, classes, device="meta")


def built(name, arrays):
    """The criterion, its maps as leaves, and the targets in pixels."""
    words = name.split("_")
    raw = [torch.from_numpy(np.concatenate((arrays[f"box{i}"], arrays[f"cls{i}"]), 1)).float() for i in range(3)]
    bins, classes = 17 if "dfl" in words else 0, arrays["cls0"].shape[1]
    aided = "ab" in words
    box_loss = next(word for word in words if word in BOX_LOSSES)  # the rest is the recipe of the variant
    if aided:
        for level in range(3):
            parts = (arrays[f"{part}_ab{level}"].astype(np.float32) for part in ("box", "cls"))
            slots = [part.reshape(len(part), 3, -1, *part.shape[2:]) for part in parts]
            raw.append(torch.from_numpy(np.concatenate(slots, 2)).flatten(1, 2))
    made = create_criterion(network(bins, classes, aided), image_size=128, box_loss=box_loss)
    targets = pixels(arrays["targets"], raw[0])
    return made.at(0 if "atss" in words else 10, 300), [item.requires_grad_() for item in raw], targets


def pixels(rows, largest):
    """Targets (T, 6) in pixels, from those of the files and the map of stride 8."""
    rows = torch.from_numpy(rows).double()
    height, width = (side * 8 for side in largest.shape[2:])
    centre, half = rows[:, 2:4], rows[:, 4:6] / 2
    boxes = torch.cat((centre - half, centre + half), 1) * torch.tensor([width, height, width, height])
    return torch.cat((rows[:, :2], boxes), 1).float()


def test_assignment_is_equal(case):
    name, arrays = case
    criterion, raw, targets = built(name, arrays)
    _, matches = criterion.with_matches(raw, targets)
    compare(matches, criterion._cells(raw[:3]), arrays)


def compare(matches, cells, arrays, part=""):
    maps, image, _, row, column, target = matches.lines
    found = torch.stack((image, cells.numbers(maps, row, column), target)).T.tolist()
    scores = dict(zip(map(tuple, found), matches.weight.tolist(), strict=True))
    wanted = zip(*(arrays[f"{part}fg_{key}"].tolist() for key in ("image", "anchor", "target")), strict=True)
    expected = dict(zip(wanted, arrays[f"{part}fg_score"].tolist(), strict=True))
    assert scores.keys() == expected.keys() and len(matches) == int(arrays[f"{part}num_pos"])
    assert all(scores[key] == pytest.approx(expected[key], abs=1e-5) for key in expected)
    assert sum(scores.values()) == pytest.approx(float(arrays[f"{part}target_score_sum"]), rel=2e-6)


def test_losses_and_gradients(case):
    name, arrays = case
    criterion, raw, targets = built(name, arrays)
    loss = criterion(raw, targets)
    items = [loss.parts[part].item() for part in ("box", "dfl", "classification")]
    assert items == pytest.approx(arrays["items_iou_dfl_cls_weighted"].tolist(), rel=2e-5, abs=1e-9)
    assert loss.total.item() == pytest.approx(arrays["total"].item(), rel=2e-5)
    loss.total.backward()
    if "_ab_" in name:
        check_branch(criterion, raw[3:], targets, loss, arrays)
    box = criterion.channels
    for level, maps in enumerate(raw[:3]):
        gradients = maps.grad.double().split((box, maps.shape[1] - box), 1)
        found = [[item.abs().sum().item() for item in gradients], [item.norm().item() for item in gradients]]
        assert found[0] == pytest.approx(arrays["grad_abs_sum_box_cls"][level].tolist(), rel=2e-5, abs=1e-9)
        assert found[1] == pytest.approx(arrays["grad_l2_box_cls"][level].tolist(), rel=2e-5, abs=1e-9)
    if not len(targets):
        return
    flat = torch.cat([maps.grad[:, :box].flatten(2) for maps in raw[:3]], 2)
    positive = flat[arrays["fg_image"].astype(int), :, arrays["fg_anchor"].astype(int)].numpy()
    wanted = arrays["fg_grad_box"]
    assert np.abs(positive - wanted).max(initial=0) <= 2e-5 * np.abs(wanted).max(initial=0)


def check_branch(criterion, raw, targets, loss, arrays):
    parts = [loss.parts[part].item() for part in ("anchor_box", "anchor_classification")]
    assert parts == pytest.approx(arrays["ab_items_iou_dfl_cls_weighted"][[0, 2]].tolist(), rel=2e-5)
    branch = criterion.branch
    _, matches = branch.with_matches(raw, targets)
    compare(matches, branch._cells(branch._split(raw)), arrays, "ab_")
    for level, maps in enumerate(raw):
        slots = maps.grad.double().unflatten(1, (3, -1))
        gradients = slots[:, :, :4], slots[:, :, 4:]
        found = [[item.abs().sum().item() for item in gradients], [item.norm().item() for item in gradients]]
        assert found[0] == pytest.approx(arrays["ab_grad_abs_sum_box_cls"][level].tolist(), rel=2e-5)
        assert found[1] == pytest.approx(arrays["ab_grad_l2_box_cls"][level].tolist(), rel=2e-5)


def test_losses_of_the_positives(case):
    name, arrays = case
    criterion, raw, targets = built(name, arrays)
    raw = raw[:3]
    if not len(targets):
        pytest.skip("no targets, no positives")
    _, matches = criterion.with_matches(raw, targets)
    maps, image, _, row, column, target = matches.lines
    cells = criterion._cells(raw)
    number = cells.numbers(maps, row, column)
    flat = torch.cat([item.detach().flatten(2) for item in raw], 2)
    rows = flat[image, : criterion.channels, number]
    box, dfl = criterion._boxes(rows, cells, number, targets[target, 2:])
    order = np.lexsort((number.numpy(), image.numpy()))
    assert arrays["fg_image"].tolist() == image[order].tolist()
    assert box[order].tolist() == pytest.approx(arrays["fg_iou_loss"].tolist(), abs=2e-5)
    if "fg_dfl_loss" in arrays:
        assert dfl[order].tolist() == pytest.approx(arrays["fg_dfl_loss"].tolist(), rel=2e-5, abs=2e-6)
    else:
        assert not dfl.any()


@pytest.mark.parametrize("name", [name for name in NAMES if "simota" in name] or ["none"])
def test_simota_of_the_first_release(name):
    if name == "none":
        pytest.skip("the golden losses of YOLOv6 (../shared) are not here")
    arrays = dict(np.load(GOLDEN / f"loss_{name}.npz"))
    raw = [torch.from_numpy(arrays[f"raw{level}"]).float().requires_grad_() for level in range(3)]
    options = SimOtaLoss(box_loss=next(word for word in name.split("_") if word in BOX_LOSSES))
    criterion = SimOtaCriterion(options, strides=STRIDES, num_classes=raw[0].shape[1] - 5)
    targets = pixels(arrays["targets"], raw[0])
    _, cells, matches, overlap = criterion._assigned(raw, Targets.of(targets, raw[0].device))
    maps, image, _, row, column, target = matches.lines
    found = torch.stack((image, cells.numbers(maps, row, column), target)).T.tolist()
    overlaps = dict(zip(map(tuple, found), overlap.tolist(), strict=True))
    wanted = zip(*(arrays[f"fg_{key}"].tolist() for key in ("image", "anchor", "target")), strict=True)
    expected = dict(zip(wanted, arrays["fg_iou"].tolist(), strict=True))
    assert overlaps.keys() == expected.keys()
    assert all(overlaps[key] == pytest.approx(expected[key], abs=1e-5) for key in expected)
    loss = criterion(raw, targets)
    items = [loss.parts[part].item() for part in criterion.parts]
    assert items == pytest.approx(arrays["items_iou_l1_obj_cls_weighted"].tolist(), rel=2e-5)
    assert loss.total.item() == pytest.approx(arrays["total"].item(), rel=2e-5)
    loss.total.backward()
    for level, item in enumerate(raw):
        gradients = item.grad.double().split((4, 1, criterion.num_classes), 1)
        sums = [part.abs().sum().item() for part in gradients]
        assert sums == pytest.approx(arrays["grad_abs_sum_box_obj_cls"][level].tolist(), rel=2e-5, abs=1e-9)
        assert item.grad.double().norm().item() == pytest.approx(arrays["grad_l2"][level], rel=2e-5)
