"""Dynamic matching by cost: SimOTA within the candidate cells, for the whole batch at once.

Source: reference sheet: training, section 7. Each target takes its k cheapest candidates, k from the IoUs it finds; a
candidate wanted by several goes to the target of the image that it costs least, which may be one that had not asked
for it (the published losses show so). Everything runs without gradient and in float32, whatever the type of the
predictions.

Ties are settled the same way on every device. Where targets share a prediction it stands several times among the
candidates, at equal cost; a target then prefers the copy it made itself, so that each can have its own. After that the
earlier candidate and the earlier target win. Matches of one map are ordered by target.

A row of the cost table is one target in one region, a column one candidate of its image; rows of images with fewer
candidates are filled up. There is no table over images and none over classes: the class part of the cost needs only the
sum over classes of a candidate and the one column of the target's class. Crowded batches are worked in chunks of rows.

Legend: S regions, L levels, K = S * L maps, B images, T targets, R = S * T rows, N candidates, M columns, Q best kept
of a row, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from yolov7.assign.candidates import FINE, Candidates, find_candidates
from yolov7.assign.decoding import CONSTRAINED, decode_boxes
from yolov7.assign.geometry import Geometry
from yolov7.assign.matches import Matches, Targets

IOU_WEIGHT = 3.0
IOU_EPS = 1e-8
TABLE = 1 << 22  # entries of a table that are worked at once: 16 MiB in float32
NOBODY = torch.iinfo(torch.int64).max
LOW_HALF = (1 << 32) - 1
HIGH_HALF = ~LOW_HALF
COLUMN = (1 << 31) - 1


@dataclass(frozen=True)
class _Offers:
    """What the candidates offer, ordered by region and image, and by candidate inside an image."""

    values: Tensor  # (6, N) x1, y1, x2, y2 in pixels, area, and -sum over classes of ln(1 - p)
    gain: Tensor  # (N, C) ln(p / (1 - p))
    maker: Tensor  # (N,) target that made the candidate


@dataclass(frozen=True)
class _Rows:
    """The rows of the cost table: targets, and where the candidates of their image lie among the offers."""

    number: Tensor  # (R, 1) region * T + target
    target: Tensor  # (R, 1)
    first: Tensor  # (R, 1)
    count: Tensor  # (R, 1)
    most: int  # M, the largest count


@dataclass(frozen=True)
class _Auction:
    """Who wants which candidate, gathered over the chunks. A bid is a cost and a row in one integer."""

    wanted: Tensor  # (N,) how many rows want the candidate
    wanting: Tensor  # (N,) the lowest bid of a row that wants it
    lowest: Tensor  # (N,) the lowest bid of any row of its image

    @classmethod
    def of(cls, like: Tensor) -> _Auction:
        return cls(torch.zeros_like(like), torch.full_like(like, NOBODY), torch.full_like(like, NOBODY))

    def owners(self) -> Tensor:
        """(N,) the bid that gets the candidate, NOBODY where no row wants it."""
        return torch.where(self.wanted > 1, self.lowest, self.wanting)


@dataclass(frozen=True)
class OtaAssigner:
    """See the module. `top` best IoUs make the dynamic k; `regions` are the biases g of each head's candidates."""

    geometry: Geometry
    threshold: float = 4.0
    top: int = 10
    regions: tuple[float, ...] = (FINE,)
    spread: float = CONSTRAINED

    @torch.no_grad()
    def __call__(self, raw: Sequence[Tensor], targets: Targets) -> Matches:
        """Matches of each region, map after map. Four synchronisations, whatever the batch."""
        found = find_candidates(raw, targets, self.geometry, threshold=self.threshold, regions=self.regions)
        if not found.most:
            return found
        order = _by_region_and_image(found, len(raw))  # (N,)
        offers = self._offers(raw, found, order)
        auction = _Auction.of(order)
        for rows in _chunks(_rows(found, targets)):
            _bid(auction, rows, targets, offers, self.top)
        # Back from the order of the offers to that of the candidates.
        owner = torch.empty_like(order).scatter_(0, order, auction.owners())
        return _winners(found, owner, len(targets))

    def _offers(self, raw: Sequence[Tensor], found: Candidates, order: Tensor) -> _Offers:
        """Predictions of the candidates, decoded."""
        image, anchor, row, column = (line.split(found.counts) for line in found.cells[1:5])
        rows = [
            raw[i % len(raw)][image[i], anchor[i], row[i], column[i]].float()
            for i, count in enumerate(found.counts)
            if count
        ]
        boxes, scores = torch.cat(rows)[order].split((4, raw[0].shape[4] - 4), dim=1)
        maps, _, anchor_of, y, x, maker = found.cells[:, order].unbind()
        level = maps % len(raw)
        centre, size = decode_boxes(boxes, self.geometry.anchors.to(boxes)[level, anchor_of], self.spread)
        centre = (centre + torch.stack((x, y), 1)) * self.geometry.grid(raw).strides[level, 0]
        half = size / 2
        # The table of classes in pieces: its intermediate results are the largest of the whole assignment.
        pieces = [_class_cost(piece) for piece in scores.split(max(TABLE // scores.shape[1], 1))]
        gain, total = pieces[0] if len(pieces) == 1 else map(torch.cat, zip(*pieces, strict=True))
        values = torch.cat((centre - half, centre + half, size.prod(1, keepdim=True), total), 1)
        return _Offers(values.T.contiguous(), gain, maker)


def _by_region_and_image(found: Candidates, levels: int) -> Tensor:
    """The order of the offers. Candidates are ordered by region already: one region needs only the image."""
    regions, images = found.per_image.shape
    key = found.cells[1]
    if regions > 1:
        key = key + (found.cells[0] // levels) * images
    return torch.sort(key, stable=True).indices


def _class_cost(values: Tensor) -> tuple[Tensor, Tensor]:
    """Raw objectness and classes (n, 1 + C) -> ln(p / (1 - p)) (n, C) and -sum of ln(1 - p) (n, 1).

    p = sqrt(sigmoid(class) * sigmoid(objectness)). The logarithm of p comes first and 1 - p from it, so that neither
    loses its digits where p is near 1; the bound keeps 1 - p above zero for predictions beyond any rounding.
    """
    objectness, classes = F.logsigmoid(values).split((1, values.shape[1] - 1), dim=1)
    log_p = (classes + objectness).mul_(0.5).clamp_(max=-1e-30)
    log_rest = log_p.expm1().neg_().log_()  # ln(1 - p)
    total = log_rest.sum(1, keepdim=True).neg_()
    return log_p.sub_(log_rest), total


def _rows(found: Candidates, targets: Targets) -> _Rows:
    regions, images = found.per_image.shape
    count = found.per_image.view(-1, 1)  # (S * B, 1)
    first = count.cumsum(0) - count
    number = torch.arange(regions * len(targets), device=count.device)[:, None]
    image, usable, target = targets.index[:, 0], targets.usable[:, None], number
    if regions > 1:
        image = torch.cat([image + region * images for region in range(regions)])
        usable = usable.repeat(regions, 1)
        target = number % len(targets)
    # A target that takes no part finds no candidates.
    return _Rows(number, target, first[image], count[image] * usable, found.most)


def _chunks(rows: _Rows) -> Iterator[_Rows]:
    """The rows, in one piece where the table is small, else in pieces with images of like crowding together."""
    if len(rows.number) * rows.most <= TABLE:
        yield rows
        return
    order = torch.sort(rows.count[:, 0], descending=True).indices
    counts = rows.count[order, 0].tolist()
    start = 0
    while start < len(counts) and counts[start]:
        piece = order[start : start + max(TABLE // counts[start], 1)]
        yield _Rows(rows.number[piece], rows.target[piece], rows.first[piece], rows.count[piece], counts[start])
        start += len(piece)


def _bid(auction: _Auction, rows: _Rows, targets: Targets, offers: _Offers, top: int) -> None:
    """Enter the bids of some rows: for every candidate of their image, and for those that they want."""
    column = torch.arange(rows.most, device=rows.count.device)
    place = (rows.first + column).clamp_(max=len(offers.maker) - 1)  # (R, M)
    outside = column >= rows.count
    boxes, label = targets.boxes[rows.target[:, 0]], targets.index[rows.target, 1]  # (R, 4), (R, 1)
    iou, total = _iou(boxes, offers.values[:, place])
    iou.masked_fill_(outside, 0)
    kept = min(top, rows.most)
    k = iou.topk(kept, dim=1).values.sum(1, keepdim=True).int().clamp_(min=1)  # (R, 1)
    cost = total.sub_(offers.gain[place, label]).sub_(iou.add_(IOU_EPS).log_(), alpha=IOU_WEIGHT)
    # A cost below zero is rounding. The bits of a positive float sort as it does: they go above those of an index.
    price = cost.clamp_(min=0).masked_fill_(outside, torch.inf).view(torch.int32).long() << 32
    del iou, total, cost
    bids = (price | rows.number).masked_fill_(outside, NOBODY)
    auction.lowest.scatter_reduce_(0, place.view(-1), bids.view(-1), "amin")

    others = (offers.maker[place] != rows.target).long() << 31  # own candidates before others of the same cost
    cheapest = price.bitwise_or_(others.add_(column)).topk(kept, dim=1, largest=False).values  # (R, Q)
    wants = column[:kept] < k.minimum(rows.count)
    bids = torch.where(wants, cheapest & HIGH_HALF | rows.number, NOBODY)
    place = place.gather(1, cheapest & COLUMN).view(-1)
    auction.wanting.scatter_reduce_(0, place, bids.view(-1), "amin")
    auction.wanted.scatter_add_(0, place, wants.long().view(-1))


def _iou(boxes: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """IoU (R, M) of row boxes (R, 4) with offers (6, R, M), and the last value of the offers."""
    left, top, right, bottom = boxes[:, None].unbind(2)  # (R, 1) each
    x1, y1, x2, y2, area, total = values.unbind()
    shared = torch.minimum(right, x2).sub_(torch.maximum(left, x1)).clamp_(min=0)
    shared.mul_(torch.minimum(bottom, y2).sub_(torch.maximum(top, y1)).clamp_(min=0))
    own = (right - left) * (bottom - top)
    return shared / area.add_(own).sub_(shared), total


def _winners(found: Candidates, owner: Tensor, targets: int) -> Matches:
    """The candidates that somebody owns (N,), by map and target."""
    kept = (owner != NOBODY).nonzero().view(-1)
    target = (owner[kept] & LOW_HALF) % targets
    key, order = torch.sort(found.cells[0, kept] * targets + target, stable=True)
    cells = found.cells[:, kept[order]]
    cells[5] = target[order]
    bounds = torch.arange(1, len(found.counts) + 1, device=key.device) * targets
    ends = torch.searchsorted(key, bounds).tolist()
    counts = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
    return Matches(cells, counts)
