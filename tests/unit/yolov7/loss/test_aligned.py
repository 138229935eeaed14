"""The loss of an aligned head against a plain float64 version, its options and its edges."""

import subprocess
import sys
from pathlib import Path

import aligned_cases
import pytest
import torch
from aligned_cases import STRIDES, plain_aligned, predictions_of, random_batch, sizes_of
from torch.nn import functional as F

from yolov7.assign import cells_of
from yolov7.boxes import ciou
from yolov7.config import AlignedLoss, AnchorLoss
from yolov7.errors import ConfigError, DataError, ModelError
from yolov7.loss import AlignedCriterion, create_criterion
from yolov7.loss.aligned import distribution_loss
from yolov7.loss.cross_entropy import CrossEntropy
from yolov7.model import create_model
from yolov7.model.heads.aligned import decode, distances

BINS = 16
HEIGHT, WIDTH = 96, 128


def criterion(classes=4, *, auxiliary=False, totals=None, class_weights=None, **fields):
    weights = None if class_weights is None else torch.tensor(class_weights)
    return AlignedCriterion(
        AlignedLoss(**fields),
        strides=STRIDES,
        num_classes=classes,
        bins=BINS,
        auxiliary=auxiliary,
        totals=totals,
        class_weights=weights,
    )


def raw_maps(seed, *, images=3, classes=4, heads=1, height=HEIGHT, width=WIDTH):
    generator = torch.Generator().manual_seed(seed)
    sizes = sizes_of(height, width) * heads
    return [torch.randn(images, 4 * BINS + classes, h, w, generator=generator) for h, w in sizes]


def case(seed, **options):
    maps = raw_maps(seed, **options)
    _, targets = random_batch(seed, images=len(maps[0]), classes=maps[0].shape[1] - 4 * BINS)
    return [item.double().requires_grad_() for item in maps], targets


def plain_loss(maps, targets, *, auxiliary="independent", smoothing=0.0, weights=None):
    """Box, dfl, class losses in float64, without gains."""
    heads = len(maps) // 3
    images, classes = len(maps[0]), maps[0].shape[1] - 4 * BINS
    cells = cells_of(tuple(tuple(item.shape[2:]) for item in maps[:3]), STRIDES, torch.device("cpu"))
    sums = torch.zeros(3, dtype=torch.float64)
    owners = None
    for head in range(heads):
        own = maps[3 * head : 3 * head + 3]
        decoded = decode([item.detach().float() for item in own], STRIDES, torch.arange(float(BINS)))
        logits = torch.cat([item.detach().float().flatten(2) for item in own], 2)[:, 4 * BINS :].transpose(1, 2)
        if owners is None or auxiliary == "independent":
            owners = plain_aligned(predictions_of(decoded[..., :4], logits, cells), targets)
        flat = torch.cat([item.flatten(2) for item in own], 2)
        divisor = sum(score for _, score in owners.values())
        divisor = divisor if heads > 1 and auxiliary == "lead-guided" else max(divisor, 1.0)
        wanted = torch.zeros(images, classes, len(cells), dtype=torch.float64)
        factor = torch.ones_like(wanted)
        parts = torch.zeros(3, dtype=torch.float64)
        for (_, image, cell), (row, score) in owners.items():
            label = int(targets[row, 1])
            wanted[image, :, cell] = score * smoothing / 2
            wanted[image, label, cell] = score * (1 - smoothing / 2)
            factor[image, :, cell] = 1.0 if weights is None else weights[label]
            box = flat[image, : 4 * BINS, cell].reshape(4, BINS)
            sides = (box.softmax(1) * torch.arange(BINS)).sum(1)
            centre = cells.centres[cell].double() / cells.stride[cell]
            goal = targets[row, 2:].double() / cells.stride[cell]
            found = torch.cat((centre - sides[:2], centre + sides[2:]))
            parts[0] = parts[0] + score * (1 - ciou(found[None], goal[None])[0])
            reach = torch.cat((centre - goal[:2], goal[2:] - centre)).clamp(0, BINS - 1.01)
            low = reach.floor().long()
            share = reach - low
            logs = box.log_softmax(1)
            two = (1 - share) * logs[range(4), low] + share * logs[range(4), low + 1]
            parts[1] = parts[1] - score * two.mean()
        entropy = F.binary_cross_entropy_with_logits(flat[:, 4 * BINS :], wanted, reduction="none")
        parts[2] = (entropy * factor).sum()
        sums = sums + parts / divisor * (1.0 if head == 0 else 0.25)
    return sums


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("auxiliary", ["independent", "lead-guided"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_equal_the_plain_version(heads, auxiliary, smoothing):
    maps, targets = case(3 * heads, heads=heads)
    loss = criterion_with(auxiliary, heads, smoothing)(maps, targets)
    plain = plain_loss(maps, targets, auxiliary=auxiliary, smoothing=smoothing)
    expected = plain * torch.tensor([7.5, 1.5, 0.5], dtype=torch.float64)
    found = [loss.parts[part].item() for part in ("box", "dfl", "classification")]
    assert found == pytest.approx(expected.tolist(), rel=2e-6)
    assert loss.total.item() == pytest.approx(expected.sum().item() * len(maps[0]), rel=2e-6)
    ours = torch.autograd.grad(loss.total, maps)
    for a, b in zip(ours, torch.autograd.grad(expected.sum() * len(maps[0]), maps), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def criterion_with(auxiliary, heads, smoothing):
    options = AlignedLoss(auxiliary=auxiliary, label_smoothing=smoothing)
    return AlignedCriterion(options, strides=STRIDES, num_classes=4, bins=BINS, auxiliary=heads > 1)


def test_class_weights_scale_the_class_loss_of_their_objects():
    maps, targets = case(5)
    weights = [1.0, 3.0, 0.5, 2.0]
    loss = criterion(class_weights=weights)(maps, targets)
    expected = plain_loss(maps, targets, weights=weights)
    assert loss.parts["classification"].item() == pytest.approx(0.5 * expected[2].item(), rel=2e-6)
    assert loss.parts["box"].item() == pytest.approx(7.5 * expected[0].item(), rel=2e-6)


def test_focal_and_positive_weight_reach_the_class_loss():
    maps, targets = case(2)
    plain = criterion()(maps, targets).parts["classification"].item()
    heavier = criterion(classification_positive_weight=4.0)(maps, targets).parts["classification"].item()
    focal = criterion(focal_gamma=1.5)(maps, targets).parts["classification"].item()
    assert heavier > plain > focal > 0
    # With exponent 0 all that is left of the focal loss is its balance of positives and negatives.
    nothing = criterion()(maps, torch.zeros(0, 6)).parts["classification"].item()
    balanced = criterion(focal_gamma=1e-9)(maps, torch.zeros(0, 6)).parts["classification"].item()
    assert balanced == pytest.approx(0.75 * nothing, rel=1e-6)


@pytest.mark.parametrize("heads", [1, 2])
def test_shares_of_a_batch_add_up_to_its_loss_and_gradient(heads):
    maps, targets = case(4, images=4, heads=heads)
    targets = targets[targets[:, 0] > 0]  # the first share has no target
    whole = criterion(auxiliary=heads > 1)(maps, targets)
    pieces = []
    for start, stop in ((0, 1), (1, 4)):
        own = targets[(targets[:, 0] >= start) & (targets[:, 0] < stop)]
        pieces.append(([item[start:stop] for item in maps], own - torch.tensor([start, 0, 0, 0, 0, 0])))
    figures = []

    def told(own):
        assert own.dtype == torch.float64
        figures.append(own)
        return own

    for piece in pieces:
        criterion(auxiliary=heads > 1, totals=told)(*piece)
    sums = torch.stack(figures).sum(0)
    assert sums[-1] == 4 and figures[0][0] == 0
    shared = criterion(auxiliary=heads > 1, totals=lambda own: sums)
    losses = [shared(*piece) for piece in pieces]
    assert sum(loss.total.item() for loss in losses) == pytest.approx(whole.total.item(), rel=1e-6)
    ours = torch.autograd.grad(sum(loss.total for loss in losses), maps)
    for a, b in zip(ours, torch.autograd.grad(whole.total, maps), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("auxiliary", ["independent", "lead-guided"])
def test_batches_without_positives_are_finite(auxiliary):
    maps, _ = case(1, heads=2)
    made = criterion_with(auxiliary, 2, 0.0)
    between = torch.tensor([[0.0, 1, 5, 5, 7, 7]])  # no centre of a cell inside
    for rows in (torch.zeros(0, 6), between):
        loss = made(maps, rows)
        assert torch.isfinite(loss.total) and loss.parts["box"] == loss.parts["dfl"] == 0
        assert all(torch.isfinite(item).all() for item in torch.autograd.grad(loss.total, maps))


def test_the_least_score_sum_bounds_the_divisor():
    maps, _ = case(1, heads=2)
    small = torch.tensor([[0.0, 1, 10, 10, 80, 80]])
    guided = {"auxiliary": "lead-guided", "top_k": 1}  # one positive: the sum of the scores is below 1
    free = AlignedCriterion(AlignedLoss(**guided), strides=STRIDES, num_classes=4, bins=BINS, auxiliary=True)
    bound = AlignedCriterion(
        AlignedLoss(**guided, least_score_sum=1.0), strides=STRIDES, num_classes=4, bins=BINS, auxiliary=True
    )
    assert free(maps, small).total > bound(maps, small).total > 0


@pytest.mark.parametrize("value", [-500.0, 0.0, 500.0])
def test_extreme_predictions_give_finite_loss_and_gradient(value):
    maps = [torch.full_like(item, value).requires_grad_() for item in raw_maps(0)]
    _, targets = random_batch(0)
    loss = criterion()(maps, targets)
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(item).all() for item in torch.autograd.grad(loss.total, maps))


def test_boxes_beyond_the_reach_of_the_bins_are_clamped():
    logits = torch.zeros(1, 4, BINS)
    logits[..., BINS - 1] = 50.0
    near, far = (distribution_loss(logits, torch.full((1, 4), value)) for value in (14.99, 400.0))
    assert near == far and torch.isfinite(far).all()
    maps = raw_maps(0, images=1, height=640, width=640)
    loss = criterion()(maps, torch.tensor([[0.0, 1, 0, 0, 640, 640]]))
    assert torch.isfinite(loss.total) and loss.parts["dfl"] > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_read_in_float32(dtype):
    maps, targets = raw_maps(7), random_batch(7)[1]
    half = [item.to(dtype) for item in maps]
    found = criterion()(half, targets).total
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(criterion()([item.float() for item in half], targets).total.item(), rel=1e-6)


def test_positives_to_look_at():
    maps, targets = raw_maps(6, heads=2), random_batch(6)[1]
    made = criterion(auxiliary=True)
    levels = made.assign(maps, targets)
    assert [picture.stride for picture in made.levels()] == list(STRIDES) and len(levels) == 3
    for level, cells in enumerate(levels):
        assert cells.shape[0] == 6 and cells[0].eq(level).all() and cells[2].eq(0).all()
        rows, columns = maps[level].shape[2:]
        assert (cells[3] < rows).all() and (cells[4] < columns).all() and (cells[5] < len(targets)).all()
    assert sum(cells.shape[1] for cells in levels) > 10


def test_objects_between_the_centres_are_misfits():
    sizes = torch.tensor([[8.0, 8.0], [300.0, 9.0], [4.0, 8.0], [4.0, 4.0], [2.0, 100.0]])
    assert criterion().misfit(sizes).tolist() == pytest.approx([0.5, 0.5, 1.0, 2.0, 2.0])


def test_validation_reads_the_lead_maps_alone():
    maps, targets = raw_maps(6, heads=2), random_batch(6)[1]
    made = criterion(auxiliary=True)
    assert made(maps[:3], targets).total.item() == pytest.approx(criterion()(maps[:3], targets).total.item())
    assert made(maps, targets).total > made(maps[:3], targets).total


def test_wrong_maps_and_targets_are_refused():
    maps, targets = raw_maps(1, heads=2), random_batch(1)[1]
    with pytest.raises(ModelError, match="6 raw maps given; 3 are expected"):
        criterion()(maps, targets)
    with pytest.raises(ModelError, match=r"a raw map \(B, 69, h, w\) is expected, got \(3, 68, 12, 16\)"):
        criterion(5)(maps[:3], targets)
    with pytest.raises(ModelError, match="their grids must be equal"):
        criterion(auxiliary=True)([*maps[:3], maps[4], maps[3], maps[5]], targets)
    with pytest.raises(DataError, match="has class 9"):
        criterion()(maps[:3], torch.tensor([[0.0, 9, 0, 0, 50, 50]]))


def test_the_criterion_of_a_model_takes_the_fields_of_its_head_group():
    model = create_model("yolov9-t", 4, device="meta")
    made = create_criterion(model, image_size=64, box=3.0, auxiliary="lead-guided", top_k=13)
    assert isinstance(made, AlignedCriterion)
    assert (made.options.box, made.options.dfl, made.options.auxiliary) == (3.0, 1.5, "lead-guided")
    assert made.assigner.top_k == 13 and made.auxiliary and made.bins == BINS
    with pytest.raises(ConfigError, match="objectness: unknown key"):
        create_criterion(model, image_size=64, objectness=1.0)
    with pytest.raises(ModelError, match="2 class weights given for 4 classes"):
        create_criterion(model, image_size=64, class_weights=[1.0, 2.0])
    assert AnchorLoss is not AlignedLoss


def test_distances_are_expectations():
    box = torch.zeros(1, 4 * BINS, 1)
    assert distances(box, torch.arange(float(BINS))).flatten().tolist() == [7.5] * 4
    plain = torch.arange(4.0).reshape(1, 4, 1)
    assert torch.equal(distances(plain, None), plain)
    assert CrossEntropy()(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(0.6931472)


MEMORY = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {folder!r})
from aligned_cases import random_rows
from yolov7.config import AlignedLoss
from yolov7.loss import AlignedCriterion
from yolov7.memory import peak_memory_gib
made = AlignedCriterion(AlignedLoss(), strides=(8, 16, 32), num_classes=80, bins=16, auxiliary=False)
maps = [torch.randn(32, 144, 640 // s, 640 // s).requires_grad_() for s in (8, 16, 32)]
loss = made(maps, random_rows(32, 300, 640))
loss.total.backward()
assert torch.isfinite(loss.total)
print(peak_memory_gib())
"""


def test_crowded_batch_stays_under_2_gb():
    """32 images of 640 pixels with 300 objects each."""
    script = MEMORY.format(folder=str(Path(aligned_cases.__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2_000_000 / 2**20  # GiB, the interpreter and torch included
