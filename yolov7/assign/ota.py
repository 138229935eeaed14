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
OTHERS = 1 << 31
COLUMN = OTHERS - 1


@dataclass(frozen=True)
class _Offers:
    """What the candidates offer, ordered by region and image, and by candidate inside an image."""

    values: Tensor  # (6, N) x1, y1, x2, y2 in pixels, area, and -sum over classes of ln(1 - p)
    gain: Tensor  # (N, C) ln(p / (1 - p))
    maker: Tensor  # (N,) target that made the candidate
    one: Tensor  # float32 1


@dataclass(frozen=True)
class _Rows:
    """The rows of the cost table: targets, and where the candidates of their image lie among the offers."""

    number: Tensor  # (R, 1) region * T + target
    target: Tensor  # (R, 1)
    label: Tensor  # (R, 1)
    boxes: Tensor  # (R, 4)
    area: Tensor  # (R, 1)
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
        """(N,) the bid that gets the candidate, if anybody wants it."""
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
        order = _by_region_and_image(found, len(targets), len(raw))  # (N,)
        offers = self._offers(raw, found, order)
        auction = _Auction.of(order)
        for rows in _chunks(_rows(found, targets)):
            _bid(auction, rows, offers, self.top)
        return _winners(found, order, auction, len(targets))

    def _offers(self, raw: Sequence[Tensor], found: Candidates, order: Tensor) -> _Offers:
        """Predictions of the candidates, decoded."""
        places = [(i % len(raw), at) for i, at in enumerate(found.places()) if found.counts[i]]
        rows = torch.cat([raw[level][at].float() for level, at in places])  # (N, 5 + C)
        boxes, scores = rows[order].split((4, rows.shape[1] - 4), dim=1)
        maps, _, anchor, row, column, maker = found.cells[:, order].unbind()
        level = maps % len(raw) if len(self.regions) > 1 else maps
        centre, size = decode_boxes(boxes, self.geometry.anchors.to(boxes)[level, anchor], self.spread)
        grid = self.geometry.grid(raw)
        centre = (centre + torch.stack((column, row), 1)) * grid.strides[level]
        # The table of classes in pieces: its intermediate results are the largest of the whole assignment.
        if scores.numel() <= TABLE:
            gain, total = _class_cost(scores)
        else:
            pieces = [_class_cost(piece) for piece in scores.split(TABLE // scores.shape[1] + 1)]
            gain, total = map(torch.cat, zip(*pieces, strict=True))
        low, high = centre.sub(size, alpha=0.5), centre.add(size, alpha=0.5)
        values = torch.cat((low, high, size.prod(1, keepdim=True), total), 1)
        return _Offers(values.T, gain, maker, grid.one)


def _by_region_and_image(found: Candidates, targets: int, levels: int) -> Tensor:
    """The order of the offers."""
    maps, image, *_, target = found.lines
    if len(found.group) == targets:  # one region
        return torch.sort(image, stable=True).indices
    return torch.sort(found.group[maps // levels * targets + target], stable=True).indices


def _class_cost(values: Tensor) -> tuple[Tensor, Tensor]:
    """Raw objectness and classes (n, 1 + C) -> ln(p / (1 - p)) (n, C) and -sum of ln(1 - p) (n, 1).

    p = sqrt(sigmoid(class) * sigmoid(objectness)). The logarithm of p comes first and 1 - p from it, so that neither
    loses its digits where p is near 1; the bound keeps 1 - p above zero for predictions beyond any rounding.
    """
    objectness, classes = F.logsigmoid(values).split((1, values.shape[1] - 1), dim=1)
    log_p = classes.lerp(objectness, 0.5).clamp_(max=-1e-30)
    log_rest = log_p.expm1().neg_().log_()  # ln(1 - p)
    total = log_rest.sum(1, keepdim=True).neg_()
    return log_p.sub_(log_rest), total


def _rows(found: Candidates, targets: Targets) -> _Rows:
    first = found.per_group.cumsum(0) - found.per_group
    number = torch.arange(len(found.group), device=first.device)[:, None]
    group = found.group[:, None]
    target, label, boxes, area = number, targets.label, targets.boxes, targets.area[:, None]
    regions = len(number) // len(targets)
    if regions > 1:
        target, area = number % len(targets), area.repeat(regions, 1)
        label, boxes = label.repeat(regions, 1), boxes.repeat(regions, 1)
    return _Rows(number, target, label, boxes, area, first[group], found.per_group[group], found.most)


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
        columns = (rows.number, rows.target, rows.label, rows.boxes, rows.area, rows.first, rows.count)
        number, target, label, boxes, area, first, count = (column[piece] for column in columns)
        yield _Rows(number, target, label, boxes, area, first, count, counts[start])
        start += len(piece)


def _bid(auction: _Auction, rows: _Rows, offers: _Offers, top: int) -> None:
    """Enter the bids of some rows: for every candidate of their image, and for those that they want."""
    column = torch.arange(rows.most, device=rows.count.device)
    place = (rows.first + column).clamp_(max=len(offers.maker) - 1)  # (R, M)
    outside = column >= rows.count
    iou, total = _iou(rows, offers.values[:, place])
    iou.masked_fill_(outside, 0)
    kept = min(top, rows.most)
    k = iou.topk(kept, dim=1).values.sum(1, keepdim=True).clamp_(offers.one, rows.count)  # (R, 1), to be truncated
    cost = total.sub_(offers.gain[place, rows.label]).sub_(iou.add_(IOU_EPS).log_(), alpha=IOU_WEIGHT)
    # A cost below zero is rounding. The bits of a positive float sort as it does: they go above those of an index.
    price = cost.clamp_(min=0).masked_fill_(outside, torch.inf).view(torch.int32).long() << 32
    del iou, total, cost
    # What lies outside bids on candidates of other images, but no finite bid is that high.
    auction.lowest.scatter_reduce_(0, place.view(-1), (price | rows.number).view(-1), "amin")

    # Own candidates come before others of the same cost.
    price.bitwise_or_(column).add_(offers.maker[place] != rows.target, alpha=OTHERS)
    cheapest = price.topk(kept, dim=1, largest=False).values  # (R, Q)
    wants = torch.arange(1, kept + 1, device=k.device) <= k  # as many as the whole part of k
    bids = torch.where(wants, cheapest & HIGH_HALF | rows.number, NOBODY).view(-1)
    place = place.gather(1, cheapest & COLUMN).view(-1)
    auction.wanting.scatter_reduce_(0, place, bids, "amin")
    auction.wanted.put_(place, wants.long(), accumulate=True)


def _iou(rows: _Rows, values: Tensor) -> tuple[Tensor, Tensor]:
    """IoU (R, M) of the rows' boxes with offers (6, R, M), and the last value of the offers."""
    left, top, right, bottom = rows.boxes[:, None].unbind(2)  # (R, 1) each
    x1, y1, x2, y2, area, total = values.unbind()
    shared = torch.minimum(right, x2).sub_(torch.maximum(left, x1)).clamp_(min=0)
    shared.mul_(torch.minimum(bottom, y2).sub_(torch.maximum(top, y1)).clamp_(min=0))
    return shared / area.add_(rows.area).sub_(shared), total


def _winners(found: Candidates, order: Tensor, auction: _Auction, targets: int) -> Matches:
    """The candidates that somebody wants, by map and target."""
    taken = auction.wanted.nonzero().view(-1)
    target = auction.owners()[taken] & LOW_HALF
    if len(found.group) > targets:
        target = target % targets
    taken = order[taken]
    key, order = torch.sort(found.lines[0][taken] * targets + target, stable=True)
    cells = found.cells[:, taken[order]]
    cells[5] = target[order]
    # Where each map ends among the sorted keys.
    bounds = torch.arange(targets, len(found.counts) * targets + 1, targets, device=key.device)
    ends = torch.searchsorted(key, bounds).tolist()
    counts = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
    return Matches(cells, counts)
