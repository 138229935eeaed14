"""Distances learned as numbers and as distributions: the sum of two losses at the same matches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_aligned import small_aligned_network

from yolov7.config import AlignedLoss
from yolov7.errors import ConfigError, ModelError
from yolov7.loss import aligned_criterion
from yolov7.model import create_model
from yolov7.model.heads.efficient import EfficientHead

OPTIONS = AlignedLoss(box_loss="giou", overlap="iou", least_score_sum=0.0, times_images=False)
TARGETS = torch.tensor([[0, 1, 10, 12, 40, 50], [1, 0, 20, 8, 60, 30], [1, 2, 5, 40, 25, 62]], dtype=torch.float32)


def criterion_of(options=OPTIONS, **head):
    network = replace(small_aligned_network(), auxiliary=(), head=EfficientHead(lead=("T2", "SPP"), **head))
    return aligned_criterion(create_model(network, 3, device="meta"), options, image_size=64)


def maps(seed=0):
    """Lead maps and distributions of two images; the distances differ from the expectations."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (16, 8)
    leads = [torch.rand(2, 7, side, side, generator=generator) * 3 - torch.tensor(0.5) for side in sizes]
    bins = torch.arange(17.0).repeat(4)[:, None, None]
    others = [torch.randn(2, 68, side, side, generator=generator) - 0.3 * (bins - 2.5).abs() for side in sizes]
    return [item.requires_grad_() for item in (*leads, *others)]


def test_both_kinds_of_boxes_lose_at_the_matches_of_the_distributions():
    raw = maps()
    both = criterion_of(distributions=True)
    loss, matches = both.with_matches(raw, TARGETS)
    joined = [torch.cat((other, lead[:, 4:]), 1) for lead, other in zip(raw[:2], raw[2:], strict=True)]
    single, same = criterion_of(bins=17).with_matches(joined, TARGETS)
    assert torch.equal(matches.cells, same.cells) and len(matches) > 5
    assert {name: loss.parts[name] for name in ("dfl", "classification")} == {
        name: single.parts[name] for name in ("dfl", "classification")
    }
    level, image, _, y, x, target = matches.lines
    lost = 0.0
    for number in range(len(matches)):
        stride = (4, 8)[int(level[number])]
        left, top, right, bottom = (raw[int(level[number])][image[number], :4, y[number], x[number]] * stride).tolist()
        cx, cy = (float(x[number]) + 0.5) * stride, (float(y[number]) + 0.5) * stride
        box = torch.tensor([[cx - left, cy - top, cx + right, cy + bottom]])
        overlap = both.overlap(box / stride, TARGETS[target[number], 2:][None] / stride)
        lost += float(matches.weight[number]) * (1 - overlap.item())
    lost *= OPTIONS.box / matches.weight.sum().item()
    assert loss.parts["box"].item() == pytest.approx(single.parts["box"].item() + lost, rel=1e-5)
    assert loss.total.item() == pytest.approx(single.total.item() + lost, rel=1e-5)
    loss.total.backward()
    assert all(item.grad.isfinite().all() for item in raw)
    assert raw[0].grad[:, :4].any() and raw[2].grad.any()


def test_the_number_of_images_and_a_batch_without_targets():
    raw = [item.detach() for item in maps()]
    whole = criterion_of(OPTIONS.model_copy(update={"times_images": True}), distributions=True)(raw, TARGETS)
    assert whole.total.item() == pytest.approx(2 * sum(part.item() for part in whole.parts.values()), rel=1e-6)
    empty = criterion_of(distributions=True)(raw, torch.zeros(0, 6))
    assert empty.total.isfinite() and empty.parts["box"] == 0 and empty.parts["dfl"] == 0


def test_pictures_limits_and_other_maps():
    criterion, raw = criterion_of(distributions=True), maps()
    _, matches = criterion.with_matches(raw, TARGETS)
    assert torch.equal(torch.cat(criterion.assign(raw, TARGETS), 1), matches.cells)
    assert criterion.largest_side() == float("inf")
    with pytest.raises(ModelError, match="2 raw maps given; 4 are expected, with those of the distributions"):
        criterion(raw[:2], TARGETS)
    with pytest.raises(ModelError, match=r"a raw map \(B, 7, h, w\) is expected"):
        criterion([raw[2], raw[3], *raw[2:]], TARGETS)
    with pytest.raises(ConfigError, match="anchor_aided and distributions exclude each other"):
        criterion_of(distributions=True, anchor_aided=True, anchors=(((1.0, 1.0),),) * 2)
