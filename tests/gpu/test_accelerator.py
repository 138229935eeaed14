"""On an accelerator everything computes what it computes on the CPU, and a training with its own precision learns."""

# ruff: noqa: E402  modules are asked for before they are imported
from __future__ import annotations

import copy
import warnings

import pytest
import torch

for _name in ("hotcoco", "onnx", "onnxruntime", "rich"):  # a training evaluates and predicts
    pytest.importorskip(_name)

from assign_cases import random_targets, raw_maps
from small_detector import SIDE, metadata_of, pictures, small_detector
from small_training import parameters, trainer, training_data

from yolov7.device import is_out_of_memory
from yolov7.loss import create_criterion
from yolov7.model import create_model
from yolov7.nms import Thresholds, select
from yolov7.predict import Predictor, TorchRuntime

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def on(device, tensors):
    return [tensor.detach().to(device).requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("variant", ["yolov7-tiny", "yolov7", "yolov7-w6"])
def test_networks_give_the_same_maps(device, variant):
    model = create_model(variant, 5, seed=1).eval()
    images = torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model.raw(images)
        there = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last)
        given = images.to(device).contiguous(memory_format=torch.channels_last)
        for ours, theirs in zip(own, there.raw(given), strict=True):
            torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(there.reparameterize()(given).cpu(), model(images), rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("assigner", ["ota", "plain"])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_loss_and_its_gradients_are_the_same(device, assigner, auxiliary):
    model = create_model("yolov7-w6" if auxiliary else "yolov7-tiny", 20, seed=0)
    maps = raw_maps(model, 6, 256, 256, spread=1.0)
    targets = random_targets(6, 12, 256, 256, 20)
    criterion = create_criterion(model, image_size=256, assigner=assigner)
    results = []
    for place in (torch.device("cpu"), device):
        there = on(place, maps)
        loss = criterion(there, targets.to(place))
        loss.total.backward()
        results.append((loss.total.detach().cpu(), [one.grad.cpu() for one in there]))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("variant", "epoch"), [("yolov9-t", 0), ("yolov6-n", 0), ("yolov6-n", 9), ("yolov6-m", 9)])
def test_the_loss_without_anchors_and_its_gradients_are_the_same(device, variant, epoch):
    """The first epochs of YOLOv6 assign by ATSS."""
    model = create_model(variant, 20, device="meta")
    criterion = create_criterion(model, image_size=256).at(epoch, 300)
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, criterion.channels + 20, 256 // s, 256 // s) for s in model.strides * (1 + model.has_auxiliary)]
    maps = [torch.randn(shape, generator=generator) + 0.5 for shape in shapes]
    targets = random_targets(6, 12, 256, 256, 20)
    results = []
    for place in (torch.device("cpu"), device):
        there = on(place, maps)
        loss = criterion(there, targets.to(place))
        loss.total.backward()
        results.append((loss.total.detach().cpu(), [one.grad.cpu() for one in there]))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("images", [4, 64])
def test_assignment_and_loss_wait_for_the_device_at_most_eight_times(device, images):
    if device.type != "cuda":
        pytest.skip("only CUDA tells when it waits")
    model = create_model("yolov7-tiny", 80, seed=0)
    maps = on(device, raw_maps(model, images, 160, 160, spread=1.0))
    targets = random_targets(images, 8, 160, 160, 80, exact=True).to(device)
    criterion = create_criterion(model, image_size=160)
    criterion(maps, targets)  # lays out its constants
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            criterion(maps, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) <= 8, [str(one.message) for one in waits]


def test_suppression_keeps_the_same_boxes(device):
    generator = torch.Generator().manual_seed(0)
    centres, sides = torch.rand(2, 3000, 2, generator=generator) * 600, torch.rand(2, 3000, 2, generator=generator) * 80
    scores = torch.rand(2, 3000, 11, generator=generator)
    decoded = torch.cat((centres - sides / 2, centres + sides / 2, scores), 2)
    thresholds, settings = Thresholds(0.1, 0.5), {"scoring": "objectness x class probability", "multi_label": True}
    found = select(decoded, thresholds, **settings), select(decoded.to(device), thresholds, **settings)
    for ours, theirs in zip(*found, strict=True):
        assert len(ours) == len(theirs) > 50
        torch.testing.assert_close(theirs.boxes.cpu(), ours.boxes)
        assert torch.equal(theirs.labels.cpu(), ours.labels)


@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float32"])
def test_a_training_learns_stops_and_resumes(device, precision, tmp_path):
    index = training_data(tmp_path / "data")
    params = parameters(precision=precision, epochs=4)
    outcome = trainer(index, tmp_path / "whole", params, device=device).fit()
    assert outcome.finished and len(outcome.history) == 4
    assert all(0 < row["train/box"] < 10 for row in outcome.history)
    # The scale of float16 starts too large on purpose and finds its place within a few steps.
    assert outcome.skipped_steps <= 4
    calls = iter(range(100))
    first = trainer(index, tmp_path / "pieces", params, device=device, stop=lambda: next(calls) == 4)
    assert not first.fit().finished
    second = trainer(index, tmp_path / "pieces", params, device=device)
    assert second.fit().finished and len(second.fit().history) == 4


def test_the_trained_network_predicts_there_as_here(device):
    model = small_detector().reparameterize()
    here = Predictor(TorchRuntime(copy.deepcopy(model), metadata_of(model)), confidence=0.3)
    there = Predictor(TorchRuntime(model.to(device), metadata_of(model)), confidence=0.3)
    for ours, theirs in zip(here.predict(pictures(4)), there.predict(pictures(4)), strict=True):
        assert len(ours) == len(theirs) > 0
        torch.testing.assert_close(theirs.boxes.cpu(), ours.boxes, rtol=1e-3, atol=0.05)


def test_a_full_device_is_recognised(device):
    if device.type == "cpu":
        pytest.skip("the memory of this machine is not to be filled")
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**46, dtype=torch.uint8, device=device)
    assert is_out_of_memory(caught.value)
    assert torch.ones(SIDE, device=device).sum().item() == SIDE
