"""The loss of an aligned head against a plain float64 version, its options and its edges."""

import math

import pytest
import torch
from aligned_cases import STRIDES, plain_aligned, predictions_of, random_batch, sizes_of
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7.assign import Matches, cells_of
from yolov7.boxes import ciou
from yolov7.config import AlignedLoss, AnchorLoss
from yolov7.errors import ConfigError, DataError, ModelError
from yolov7.loss import AlignedCriterion, create_criterion
from yolov7.loss.aligned import distribution_loss
from yolov7.loss.aligned_maps import read_maps
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
    size = {name: options[name] for name in ("height", "width") if name in options}
    _, targets = random_batch(seed, images=len(maps[0]), classes=maps[0].shape[1] - 4 * BINS, **size)
    return [item.double().requires_grad_() for item in maps], targets


def decoded_boxes(maps, cells):
    """(B, N, 4) as the criterion rounds them: the scores amplify the last digit, and gradients that cancel show it."""
    box = torch.cat([item.float().flatten(2) for item in maps], 2)[:, : 4 * BINS]
    return torch.addcmul(cells.corners, criterion()._sides(box).transpose(1, 2), cells.reach)


def test_the_boxes_of_the_assignment_are_those_of_the_head_in_float64():
    maps, _ = case(5)
    cells = cells_of(tuple(tuple(item.shape[2:]) for item in maps), STRIDES, torch.device("cpu"))
    exact = decode([item.detach() for item in maps], STRIDES, torch.arange(BINS, dtype=torch.float64))[..., :4]
    found = decoded_boxes([item.detach() for item in maps], cells)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), exact, rtol=0, atol=1e-4)  # pixels; a distance reaches 480


def plain_loss(maps, targets, *, auxiliary="independent", smoothing=0.0, weights=None):
    """Box, dfl, class losses in float64, without gains."""
    heads = len(maps) // 3
    images, classes = len(maps[0]), maps[0].shape[1] - 4 * BINS
    cells = cells_of(tuple(tuple(item.shape[2:]) for item in maps[:3]), STRIDES, torch.device("cpu"))
    sums = torch.zeros(3, dtype=torch.float64)
    owners = None
    for head in range(heads):
        own = maps[3 * head : 3 * head + 3]
        boxes = decoded_boxes([item.detach() for item in own], cells)
        logits = torch.cat([item.detach().float().flatten(2) for item in own], 2)[:, 4 * BINS :].transpose(1, 2)
        if owners is None or auxiliary == "independent":
            owners = plain_aligned(predictions_of(boxes, logits, cells), targets)
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
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


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


NO_CENTRE = torch.tensor([[0.0, 1, 5, 5, 7, 7], [1.0, 2, 20, 20, 20, 40]])  # between the centres; without an area


@pytest.mark.parametrize(("heads", "auxiliary"), [(1, "independent"), (2, "independent"), (2, "lead-guided")])
@pytest.mark.parametrize("rows", [torch.zeros(0, 6), NO_CENTRE], ids=["no target", "no centre inside"])
def test_batches_without_positives_are_finite_and_train_the_classes(heads, auxiliary, rows):
    maps, _ = case(1, heads=heads, height=64, width=64)
    made = criterion_with(auxiliary, heads, 0.0)
    loss = made(maps, rows)
    assert torch.isfinite(loss.total) and loss.parts["box"] == loss.parts["dfl"] == 0 < loss.parts["classification"]
    for item, gradient in zip(maps, torch.autograd.grad(loss.total, maps), strict=True):
        assert torch.isfinite(gradient).all() and gradient[:, : 4 * BINS].abs().sum() == 0
        assert (gradient[:, 4 * BINS :] > 0).all()
        item.data -= gradient
    assert made(maps, rows).total < loss.total  # a step moves on
    with torch.no_grad():  # validation reads the lead maps
        assert torch.isfinite(made(maps[:3], rows).total)


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
    maps = [item.requires_grad_() for item in maps]
    loss = criterion()(maps, torch.tensor([[0.0, 1, 0, 0, 1600, 1600], [0.0, 2, 0, 0, 640, 640]]))
    assert torch.isfinite(loss.total) and loss.parts["dfl"] > 0
    assert all(torch.isfinite(item).all() for item in torch.autograd.grad(loss.total, maps))
    assert criterion().largest_side() == pytest.approx(2 * 14.99 * 32)


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


@pytest.mark.parametrize("auxiliary", ["independent", "lead-guided"])
def test_the_validation_loss_reads_all_maps_or_the_lead_maps_alone(auxiliary):
    maps, targets = raw_maps(6, heads=2), random_batch(6)[1]
    made = criterion(auxiliary=True)
    made.options = AlignedLoss(auxiliary=auxiliary)
    with torch.inference_mode():
        lead, both = made(maps[:3], targets), made(maps, targets)
    assert lead.total.item() == pytest.approx(criterion()(maps[:3], targets).total.item())
    assert both.total > lead.total
    leaves = [item.requires_grad_() for item in maps]  # training, after validation laid out the constants
    trained = made(leaves, targets)
    assert trained.total.item() == pytest.approx(both.total.item())
    trained.total.backward()


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize(("box", "classes"), [(True, True), (True, False), (False, True)])
def test_a_cell_that_is_not_finite_is_no_error(bad, box, classes):
    """It lies inside three targets. Its box is of use to none of them; for its classes the loss is not finite."""
    maps = raw_maps(0, images=2, height=64, width=64)
    rows = torch.tensor([[0.0, 1, 5, 5, 60, 60], [0.0, 2, 6, 6, 61, 61], [0.0, 1, 4, 3, 63, 62]])
    plain = criterion()(maps, rows).total
    maps[0][0, slice(0 if box else 4 * BINS, None if classes else 4 * BINS), 3, 3] = bad
    total = criterion()(maps, rows).total
    assert torch.isfinite(plain) and torch.isfinite(total) == (not classes)
    positives = torch.cat(criterion().assign(maps, rows), 1)
    assert positives.shape[1] > 0
    if box:
        assert [0, 0, 0, 3, 3] not in positives[:5].T.tolist()


def test_the_loss_stays_in_float32_under_autocast():
    maps, rows = raw_maps(0, images=1, height=64, width=64), torch.tensor([[0.0, 1, 5, 5, 60, 60]])
    plain = criterion()(maps, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = criterion()(maps, rows)
    assert torch.equal(cast.total, plain.total) and cast.parts == plain.parts


class NoFloat64(TorchDispatchMode):
    """Refuses float64, as MPS does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert not (isinstance(result, torch.Tensor) and result.dtype == torch.float64), function
        return result


def test_devices_without_float64_are_not_asked_for_it():
    maps = [item.requires_grad_() for item in raw_maps(0, images=2, heads=2, height=64, width=64)]
    rows = torch.tensor([[0.0, 1, 5, 5, 60, 60], [1.0, 2, 6, 6, 61, 61]])
    with NoFloat64():
        criterion(auxiliary=True)(maps, rows).total.backward()
    assert all(item.grad.abs().sum() > 0 for item in maps)
    cells = cells_of(((8, 8), (4, 4)), (8, 16), torch.device("cpu"))
    assert all(value.dtype != torch.float64 for value in vars(cells).values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_reading_the_maps_has_the_right_gradient(gamma):
    """The rows of the matches, one of them read twice, and all classes as negatives; in any memory format."""
    shapes = ((2, 7, 3, 4), (2, 7, 2, 2))
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    maps[0] = maps[0].contiguous(memory_format=torch.channels_last)
    leaves = [item.requires_grad_() for item in maps]
    cells = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1], [0] * 4, [2, 2, 0, 1], [3, 3, 1, 0], [0, 1, 2, 0]])
    matches, entropy = Matches(cells, (3, 1)), CrossEntropy(focal_gamma=gamma)
    rows, negatives = read_maps(leaves, matches, 4, entropy)
    assert torch.equal(rows[0], maps[0][0, :, 2, 3]) and torch.equal(rows[3], maps[1][1, :, 1, 0])
    expected = entropy(maps[1][:, 4:], torch.zeros_like(maps[1][:, 4:])).sum()
    assert negatives[1].item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda *item: read_maps(item, matches, 4, entropy), leaves, fast_mode=True)
    (rows.sum() + negatives.sum()).backward()
    assert maps[0].grad.stride() == maps[0].stride()


@pytest.mark.parametrize("focal", [0.0, 1.5])
def test_the_gradient_of_the_focal_option_is_that_of_the_plain_formula(focal):
    maps, targets = case(2, height=64, width=64)
    ours = torch.autograd.grad(criterion(focal_gamma=focal)(maps, targets).total, maps)
    flat = [item[:, 4 * BINS :].detach().requires_grad_() for item in maps]
    # Without targets at these cells, all that reaches the classes is their loss as negatives.
    none = criterion(focal_gamma=focal)(maps, torch.zeros(0, 6))
    entropy = CrossEntropy(focal_gamma=focal)
    plain = 0.5 * len(maps[0]) * sum(entropy(item, torch.zeros_like(item)).sum() for item in flat)
    assert none.total.item() == pytest.approx(plain.item(), rel=1e-9)
    expected = torch.autograd.grad(plain, flat)
    for found, wanted in zip(torch.autograd.grad(none.total, maps), expected, strict=True):
        assert torch.allclose(found[:, 4 * BINS :], wanted, rtol=1e-9)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            ours, torch.autograd.grad(criterion(focal_gamma=focal + 1)(maps, targets).total, maps), strict=True
        )
    )


@pytest.mark.parametrize(
    ("field", "part", "factor"), [("box", "box", 2.0), ("dfl", "dfl", 2.0), ("classification", "classification", 2.0)]
)
def test_a_gain_scales_its_part_and_no_other(field, part, factor):
    maps, targets = case(3, height=64, width=64)
    plain = criterion()(maps, targets)
    scaled = criterion(**{field: factor * getattr(AlignedLoss(), field)})(maps, targets)
    for name in plain.parts:
        expected = plain.parts[name].item() * (factor if name == part else 1.0)
        assert scaled.parts[name].item() == pytest.approx(expected, rel=1e-9)
    assert scaled.total.item() == pytest.approx(len(maps[0]) * sum(v.item() for v in scaled.parts.values()), rel=1e-9)


def test_label_smoothing_and_the_auxiliary_weight_change_what_they_should():
    maps, targets = case(3, heads=2, height=64, width=64)
    plain = criterion(auxiliary=True)(maps, targets)
    smooth = criterion(auxiliary=True, label_smoothing=0.1)(maps, targets)
    assert smooth.parts["box"] == plain.parts["box"] and smooth.parts["dfl"] == plain.parts["dfl"]
    assert smooth.parts["classification"] != plain.parts["classification"]
    lead = criterion()(maps[:3], targets)
    for weight in (0.0, 0.5):
        weighted = criterion(auxiliary=True, auxiliary_weight=weight)(maps, targets)
        for name in plain.parts:
            extra = (plain.parts[name] - lead.parts[name]).item() / 0.25
            assert weighted.parts[name].item() == pytest.approx(lead.parts[name].item() + weight * extra, rel=1e-6)


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
    with pytest.raises(ConfigError, match="anchor_threshold: unknown key"):
        create_criterion(model, image_size=64, anchor_threshold=4.0)
    with pytest.raises(ModelError, match="2 class weights given for 4 classes"):
        create_criterion(model, image_size=64, class_weights=[1.0, 2.0])
    assert AnchorLoss is not AlignedLoss


def test_distances_are_expectations():
    box = torch.zeros(1, 4 * BINS, 1)
    assert distances(box, torch.arange(float(BINS))).flatten().tolist() == [7.5] * 4
    plain = torch.arange(4.0).reshape(1, 4, 1)
    assert torch.equal(distances(plain, None), plain)
    assert CrossEntropy()(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(0.6931472)
