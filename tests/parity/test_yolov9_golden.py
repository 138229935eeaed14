"""Networks and losses of YOLOv9 and GELAN: golden vectors of the published definitions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.test_model_golden import filled
from yolov7.assign import Targets
from yolov7.loss import create_criterion
from yolov7.model import create_model

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "v9"
NETWORKS = sorted(path.stem for path in GOLDEN.glob("*.npz") if not path.stem.startswith("loss_"))
LOSSES = sorted(path.stem.removeprefix("loss_") for path in GOLDEN.glob("loss_*.npz"))
BOX = 64

needs_networks = pytest.mark.skipif(not NETWORKS, reason="the golden vectors of YOLOv9 (../shared) are not here")
needs_losses = pytest.mark.skipif(not LOSSES, reason="the golden losses of YOLOv9 (../shared) are not here")


def published(name):
    """A published file's tensors by the filling rule; the values of the bins are 0 to 15."""
    meta = json.loads((GOLDEN / f"{name}.keys.json").read_text())
    tensors = filled([key for key in meta["keys"] if ".dfl" not in key[0]], meta["gain"])
    for key, shape, _ in meta["keys"]:
        if ".dfl" in key:
            tensors[key] = torch.arange(16.0).reshape(shape)
    return {key: tensors[key] for key, _, _ in meta["keys"]}


@needs_networks
@pytest.mark.parametrize("variant", NETWORKS or ["none"])
def test_networks(variant, tmp_path):
    golden = np.load(GOLDEN / f"{variant}.npz")
    path = tmp_path / "published.pt"
    torch.save({"model": published(variant)}, path)
    model = create_model(variant).eval()
    report = model.load_official(path)
    path.unlink()
    assert not report.left and not report.untouched and report.complete
    images = torch.from_numpy(golden["input"])
    with torch.inference_mode():
        raw, decoded = model.raw(images), model(images)
        deployed = model.reparameterize().raw(images)
    names = ["main0", "main1", "main2"] + (["aux0", "aux1", "aux2"] if model.has_auxiliary else [])
    assert model.has_auxiliary is variant.startswith("yolov9")
    for name, found in zip(names, raw, strict=True):
        # float32, golden/README.md; maps of hundreds carry the rounding of their size.
        assert np.allclose(found.numpy(), golden[name], rtol=0, atol=1e-4 + 2e-6 * np.abs(golden[name]).max()), name
    for found, wanted in zip(deployed, raw, strict=False):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-4)
    wanted = golden["decoded"].transpose(0, 2, 1)
    centre, half = wanted[..., :2], wanted[..., 2:4] / 2
    assert np.abs(decoded[..., :4].numpy() - np.concatenate((centre - half, centre + half), -1)).max() <= 1e-3
    assert np.abs(decoded[..., 4:].numpy() - wanted[..., 4:]).max() <= 1e-5


@pytest.fixture(params=LOSSES or ["none"])
def case(request):
    if request.param == "none":
        pytest.skip("the golden losses of YOLOv9 (../shared) are not here")
    return request.param, dict(np.load(GOLDEN / f"loss_{request.param}.npz"))


def built(name, arrays, **fields):
    """The criterion of a network with as many heads and classes, its maps, and the targets in pixels."""
    heads = 1 if name.startswith("single") else 2
    raw = [torch.from_numpy(arrays[f"{part}{level}"]) for part in ("pred", "aux")[:heads] for level in range(3)]
    model = create_model("gelan-t" if heads == 1 else "yolov9-t", raw[0].shape[1] - BOX, device="meta")
    if name.startswith("lhg"):
        fields["auxiliary"] = "lead-guided"
    rows = torch.from_numpy(arrays["targets"]).double()
    height, width = (side * 8 for side in raw[0].shape[2:])
    centre, half = rows[:, 2:4], rows[:, 4:6] / 2
    boxes = torch.cat((centre - half, centre + half), 1) * torch.tensor([width, height, width, height])
    targets = torch.cat((rows[:, :2], boxes), 1).float()
    return create_criterion(model, image_size=128, **fields), [item.requires_grad_() for item in raw], targets


def test_losses_and_gradients(case):
    name, arrays = case
    criterion, raw, targets = built(name, arrays)
    loss = criterion(raw, targets)
    items = [loss.parts[part].item() for part in ("box", "classification", "dfl")]
    assert items == pytest.approx(arrays["items_box_cls_dfl_after_gains"].tolist(), rel=1e-5)
    assert loss.total.item() == pytest.approx(arrays["total"].item(), rel=1e-5)
    loss.total.backward()
    expected = np.concatenate([arrays[key] for key in sorted(arrays, reverse=True) if key.startswith("grad_")])
    for maps, wanted in zip(raw, expected, strict=True):
        gradient = maps.grad.double()
        found = (gradient[:, :BOX].abs().sum(), gradient[:, BOX:].abs().sum(), gradient.norm())
        assert [value.item() for value in found] == pytest.approx(wanted.tolist(), rel=1e-5)


def test_assignment_is_equal(case):
    name, arrays = case
    criterion, raw, targets = built(name, arrays)
    matches = criterion._matches(raw, Targets.of(targets, torch.device("cpu")), len(raw) // 3)
    maps, image, _, row, column, target = matches.lines
    cell = criterion._cells(raw[:3]).numbers(maps % 3, row, column)
    for head, part in enumerate(("main", "aux")[: len(raw) // 3]):
        part = "main" if name.startswith("lhg") else part
        mine = maps // 3 == head
        found = torch.stack((image, cell, target))[:, mine].T.tolist()
        scores = dict(zip(map(tuple, found), matches.weight[mine].tolist(), strict=True))
        wanted = zip(*(arrays[f"{part}_fg_{key}"].tolist() for key in ("image", "cell", "target")), strict=True)
        expected = dict(zip(wanted, arrays[f"{part}_fg_score"].tolist(), strict=True))
        assert scores.keys() == expected.keys()
        assert all(scores[key] == pytest.approx(expected[key], abs=1e-5) for key in expected)


@needs_losses
def test_without_targets():
    meta = json.loads((GOLDEN / "loss_meta.json").read_text())
    checked = 0
    for name in LOSSES:
        expected = meta[f"loss_{name}"].get("no_targets_total")
        if expected is None:
            continue
        criterion, raw, _ = built(name, dict(np.load(GOLDEN / f"loss_{name}.npz")))
        assert criterion(raw, torch.zeros(0, 6)).total.item() == pytest.approx(expected, rel=1e-5)
        checked += 1
    assert checked
