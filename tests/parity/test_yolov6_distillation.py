"""Self-distillation of YOLOv6: golden vectors of the published definitions.

The published class term is a float32 sum with a bias of up to 1 %; compared is what the same formula gives in float64.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.parity.test_yolov6_losses import GOLDEN, STRIDES, compare
from yolov7.config import AlignedLoss, Distillation, recipe_loss
from yolov7.loss import DistillationCriterion, aligned_criterion

NAMES = sorted(path.stem.removeprefix("loss_") for path in Path(GOLDEN).glob("loss_*distill_*.npz"))


@pytest.fixture(params=NAMES or ["none"])
def case(request):
    if request.param == "none":
        pytest.skip("the golden losses of YOLOv6 (../shared) are not here")
    return request.param, dict(np.load(GOLDEN / f"loss_{request.param}.npz"))


def maps_of(arrays, *names):
    """A map of each level, the arrays one after the other."""
    levels = range(len(STRIDES))
    return [torch.from_numpy(np.concatenate([arrays[f"{name}{i}"] for name in names], 1)).float() for i in levels]


def built(name, arrays):
    """The criterion, the student's leaves by kind, all maps that the criterion reads, and the targets in pixels."""
    words = name.split("_")
    twice, bins, classes = "lrtb0" in arrays, arrays["box0"].shape[1] // 4, arrays["cls0"].shape[1]
    bins = bins if bins > 1 else 0
    head = SimpleNamespace(
        bins=0 if twice else bins, anchor_aided=False, distributions=twice, distribution_maps=(int(twice), bins)
    )
    model = SimpleNamespace(spec=SimpleNamespace(head=head), strides=STRIDES, num_classes=classes, has_auxiliary=False)
    recipe = recipe_loss(AlignedLoss, "yolov6-m")
    fields = {**recipe, "box_loss": next(word for word in words if word in ("giou", "siou"))}
    fields["atss_epochs"] = 0 if "v3" in words else 4
    labels = aligned_criterion(model, AlignedLoss(**fields), image_size=128)
    epoch, epochs, temperature = arrays["epoch_maxepoch_temperature"].tolist()
    weights = dict(zip(("classification", "dfl"), arrays["distill_weight_cls_dfl"].tolist(), strict=True))
    features = 10.0 if "sfeat0" in arrays else 0.0
    criterion = DistillationCriterion(
        labels=labels,
        teacher=None,
        options=Distillation(**weights, temperature=temperature, features=features),
        channels=4 if twice or not bins else 4 * bins,
        bins=bins,
        distributions=len(STRIDES) * twice,
    )
    leaves = {"lead": maps_of(arrays, "lrtb" if twice else "box", "cls")}
    if twice:
        leaves["distributions"] = maps_of(arrays, "box")
    teacher = maps_of(arrays, "teacher_box", "teacher_cls") if bins else maps_of(arrays, "teacher_cls")
    others = maps_of(arrays, "tfeat") if features else []
    if features:
        leaves["features"] = maps_of(arrays, "sfeat")
    for maps in leaves.values():
        for item in maps:
            item.requires_grad_()
    own = [*leaves["lead"], *leaves.get("distributions", [])]
    raw = [*own, *teacher, *leaves.get("features", []), *others]
    rows = torch.from_numpy(arrays["targets"]).double()
    centre, half = rows[:, 2:4], rows[:, 4:6] / 2
    targets = torch.cat((rows[:, :2], torch.cat((centre - half, centre + half), 1) * 128), 1).float()
    return criterion.at(epoch, epochs), leaves, raw, targets


def test_terms_and_total(case):
    name, arrays = case
    criterion, _, raw, targets = built(name, arrays)
    loss = criterion(raw, targets)
    assert criterion.factor == pytest.approx(float(arrays["distill_factor"]), rel=1e-12)
    iou, dfl, ddfl, cls, _, cwd = arrays["raw_iou_dfl_ddfl_cls_dcls_cwd"].tolist()
    weights, factor = arrays["distill_weight_cls_dfl"].tolist(), criterion.factor
    expected = {
        "box": 2.5 * iou,
        "dfl": 0.5 * dfl,
        "classification": cls,
        "distill_classification": factor * weights[0] * float(arrays["dcls_raw_float64"]),
        "distill_dfl": 0.5 * factor * weights[1] * ddfl,
        "distill_features": 10 * factor * cwd,
    }
    assert set(loss.parts) == {*expected} - ({"distill_features"} if not cwd else set()) - (
        {"distill_dfl"} if not criterion.bins else set()
    )
    for part, value in loss.parts.items():
        assert value.item() == pytest.approx(expected[part], rel=2e-5), part
    assert loss.total.item() == pytest.approx(arrays["total_with_dcls_float64"].item(), rel=2e-6)


def test_assignment_is_equal(case):
    name, arrays = case
    criterion, leaves, raw, targets = built(name, arrays)
    own = [*leaves["lead"], *leaves.get("distributions", [])]
    _, matches = criterion.labels.with_matches(own, targets)
    compare(matches, criterion.labels._cells(raw[:3]), arrays)


def test_gradients(case):
    name, arrays = case
    criterion, leaves, raw, targets = built(name, arrays)
    criterion(raw, targets).total.backward()
    lead = [item.grad.double().split((criterion.channels, arrays["cls0"].shape[1]), 1) for item in leaves["lead"]]
    box, classes = (list(kind) for kind in zip(*lead, strict=True))
    if "lrtb0" in arrays:
        check(box, arrays["grad_abs_sum_lrtb"], arrays["grad_l2_lrtb"])
        box = [item.grad.double() for item in leaves["distributions"]]
    for column, kind in enumerate((box, classes)):
        check(kind, arrays["grad_abs_sum_box_cls"][:, column], arrays["grad_l2_box_cls"][:, column])
    if "features" in leaves:
        features = [item.grad.double() for item in leaves["features"]]
        check(features, arrays["grad_abs_sum_feat"], arrays["grad_l2_feat"])
    flat = torch.cat([item.flatten(2) for item in box], 2)
    positive = flat[arrays["fg_image"].astype(int), :, arrays["fg_anchor"].astype(int)].numpy()
    wanted = arrays["fg_grad_box"]
    assert np.abs(positive - wanted).max() <= 2e-5 * np.abs(wanted).max()


def check(gradients, sums, norms):
    found = [item.abs().sum().item() for item in gradients], [item.norm().item() for item in gradients]
    assert found[0] == pytest.approx(sums.tolist(), rel=2e-5, abs=1e-9)
    assert found[1] == pytest.approx(norms.tolist(), rel=2e-5, abs=1e-9)
