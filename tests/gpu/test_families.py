"""A small variant of each family computes on the accelerator what it computes on the CPU.

Needs torch, numpy and the library's own data types only; `YOLOV7_TEST_DEVICE=cpu` tries the tests themselves.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gpu_kit.reference import per_image
from gpu_kit.step import CLASSES, Settings, synthetic_batch

from yolov7.augment.color import hsv_tables
from yolov7.augment.device_color import jitter_batch
from yolov7.device import autocast
from yolov7.loss import create_criterion
from yolov7.model import create_model
from yolov7.nms import Thresholds, select

pytestmark = pytest.mark.gpu

VARIANTS = ("yolov7-tiny", "yolov9-t", "yolov6-n")
SIDE, IMAGES = 128, 2


def network(variant):
    """With weights and statistics of its own for every layer, as after a training."""
    model = create_model(variant, CLASSES, seed=1)
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.1), (module.running_var, 0.7), (module.weight.data, 0.8)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + low)
    return model


def data():
    batch = synthetic_batch(Settings(folder=None, batch=IMAGES), SIDE)
    return batch.images.float().contiguous() / 255, batch.targets


def criterion_of(model):
    return create_criterion(model, image_size=SIDE).at(100, 300)


def step(model, images, targets, dtype=None):
    """Loss, its parts, and the gradients of all parameters, on the device of the images and back."""
    model = copy.deepcopy(model).to(images.device).train()
    with autocast(images.device, dtype):
        raw = model.raw(images)
    loss = criterion_of(model)(raw, targets.to(images.device))
    loss.total.backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return [maps.detach().float().cpu() for maps in raw], loss.total.detach().cpu(), gradients


def distance(found, expected):
    """Norm of the difference of all tensors together, beside that of `expected`."""
    pairs = list(zip(found, expected, strict=True))
    difference = sum((one.double() - other.double()).square().sum() for one, other in pairs)
    return (difference / sum(other.double().square().sum() for _, other in pairs)).sqrt().item()


def maps_of(model, seed=0):
    """Raw maps as a network in training gives them, spread so that scores and boxes differ."""
    images, _ = data()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        raw = model.train().raw(images)
    return [maps + torch.randn(maps.shape, generator=generator) * 0.5 for maps in raw]


def sorted_rows(table):
    return sorted(map(tuple, table.T.tolist()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients(device, variant):
    model, (images, targets) = network(variant), data()
    own_maps, own_loss, own = step(model, images, targets)
    maps, loss, given = step(model, images.to(device), targets)
    assert distance(maps, own_maps) < 1e-3
    torch.testing.assert_close(loss, own_loss, rtol=1e-3, atol=1e-3)
    assert given.keys() == own.keys() and len(own) > 50
    # Sums over a batch in another order, through a hundred layers: float32 keeps three digits.
    assert distance(given.values(), own.values()) < 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_assignment(device, variant):
    model, (_, targets) = network(variant), data()
    maps, criterion = maps_of(model), criterion_of(model)
    here = criterion.assign(maps, targets)
    there = criterion.assign([one.to(device) for one in maps], targets.to(device))
    assert sum(table.shape[1] for table in here) > 10
    for ours, theirs in zip(here, there, strict=True):
        assert sorted_rows(theirs.cpu()) == sorted_rows(ours)


@pytest.mark.parametrize("variant", VARIANTS)
def test_assignment_of_the_whole_batch_is_that_of_its_images(device, variant):
    """The plain reference of the benchmark, image by image on dense tables, finds the same matches."""
    model, (_, targets) = network(variant), data()
    maps = [one.to(device) for one in maps_of(model, seed=1)]
    criterion, plain = criterion_of(model), criterion_of(model)
    plain.assigner = per_image(plain.assigner)
    assert type(plain.assigner) is not type(criterion.assigner)
    ours, theirs = (one.assign(maps, targets.to(device)) for one in (criterion, plain))
    found = {row for table in theirs for row in sorted_rows(table.cpu())}
    expected = {row for table in ours for row in sorted_rows(table.cpu())}
    assert len(expected) > 10
    # Where two costs differ in the last digit only, either may win.
    assert len(found ^ expected) <= 0.02 * len(expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_suppression(device, variant):
    model = network(variant).eval()
    scoring = model.head.scoring()
    generator = torch.Generator().manual_seed(0)
    boxes, sides = torch.rand(2, 2000, 2, generator=generator) * 600, torch.rand(2, 2000, 2, generator=generator) * 80
    scores = torch.rand(2, 2000, 21 if scoring != "class probability" else 20, generator=generator)
    decoded, limits = torch.cat((boxes, boxes + sides, scores), 2), Thresholds(0.1, 0.5)
    here = select(decoded, limits, scoring=scoring, multi_label=True)
    there = select(decoded.to(device), limits, scoring=scoring, multi_label=True)
    for ours, theirs in zip(here, there, strict=True):
        assert len(ours) == len(theirs) > 50
        assert torch.equal(theirs.labels.cpu(), ours.labels)
        torch.testing.assert_close(theirs.boxes.cpu(), ours.boxes)
        torch.testing.assert_close(theirs.scores.cpu(), ours.scores)


def test_colours_changed_on_the_device(device):
    images = synthetic_batch(Settings(folder=None, batch=IMAGES), SIDE).images
    tables = torch.from_numpy(np.stack([hsv_tables(1.01, 0.6, 1.3), hsv_tables(0.99, 1.4, 0.8)]))
    here, there = jitter_batch(images, tables), jitter_batch(images.to(device), tables.to(device))
    assert there.is_contiguous(memory_format=torch.channels_last)
    difference = (there.cpu().int() - here.int()).abs()
    assert not torch.equal(here, images)
    # A product rounded once or twice may fall on either side of a whole number.
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_reparameterisation_and_channels_last(device, variant):
    model, (images, _) = network(variant).eval(), data()
    expected = model(images)
    there, given = copy.deepcopy(model).to(device), images.to(device)
    torch.testing.assert_close(there(given).cpu(), expected, rtol=1e-3, atol=1e-2)  # pixels
    deploy = there.reparameterize()
    torch.testing.assert_close(deploy(given).cpu(), expected, rtol=1e-3, atol=2e-2)
    last = deploy.to(memory_format=torch.channels_last)(given.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last.cpu(), expected, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_mixed_precision_is_near_float32(device, variant, dtype, bound):
    """10 and 7 bits of mantissa through some fifty layers: raw maps within 1 and 6 %, the loss within twice that."""
    model, (images, targets) = network(variant), data()
    own_maps, own_loss, _ = step(model, images.to(device), targets)
    maps, loss, gradients = step(model, images.to(device), targets, dtype)
    assert distance(maps, own_maps) < bound
    assert abs(loss - own_loss) < 2 * bound * own_loss
    assert all(torch.isfinite(one).all() for one in gradients.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled(device, variant):
    model, (images, _) = network(variant).eval(), data()
    deploy, given = model.reparameterize().to(device), images.to(device)
    torch.compiler.reset()
    # Compiling for a CPU needs a compiler of C++; what is traced is the same.
    fast = torch.compile(deploy, backend="eager" if device.type == "cpu" else "inductor")
    with torch.no_grad():
        torch.testing.assert_close(fast(given).cpu(), deploy(given).cpu(), rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_exported_graph(device, variant, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type, "")
    if provider not in runtime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no provider for {device.type}")
    from yolov7.export.onnx import export_onnx
    from yolov7.model import ModelMetadata

    model, (images, _) = network(variant).eval(), data()
    names = tuple(f"class {number}" for number in range(CLASSES))
    metadata = ModelMetadata.of(model, class_names=names, category_ids=tuple(range(CLASSES)), image_size=SIDE)
    export_onnx(model, tmp_path / "model.onnx", metadata=metadata, dynamic=False)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=[provider])
    assert session.get_providers()[0] == provider
    found = torch.cat([torch.from_numpy(session.run(None, {"images": image[None].numpy()})[0]) for image in images])
    with torch.no_grad():
        torch.testing.assert_close(found, model(images), rtol=1e-3, atol=2e-2)
