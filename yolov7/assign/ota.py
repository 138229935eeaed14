"""Dynamic matching by cost: SimOTA within the candidate cells, for the whole batch at once.

Source: reference sheet: training, section 7. Each target takes its k cheapest candidates, with k from their IoUs. A
candidate wanted by several targets goes to the one of its image with the lowest cost, even one that did not ask for it
(as in the published losses). Everything runs without gradient and in float32, whatever the type of the predictions.
`plain_ota` in tests/support/assign_cases.py is the same method image by image, to hold against the paper.

Ties are settled the same way on every device. Targets that share a prediction each list it among the candidates, at
equal cost; a target then prefers the copy it made itself, so that each can have its own. After that the earlier
candidate and the earlier target win. Matches of one map are ordered by target.

A row of the cost table is one target in one region, a column one candidate of its image; rows of images with fewer
candidates are filled up. There is no table over images and none over classes: the class part of the cost needs only
the sum over classes of a candidate and the one column of the target's class. Crowded batches are processed in chunks
of rows.

Cost and tie break travel in one int64, so that one comparison decides. The cost is a non-negative float32, whose bits
sort as it does:

    bits   63 ......... 32 | 31 ....... | 30 ........ 0
    price  cost            | not own    | column            a row's choice among its candidates
    bid    cost            | row .....................      a candidate's choice among the rows that want it

Legend: S regions, L levels, K = S * L maps, B images, T targets, R = S * T rows, N candidates, M columns, Q best kept
of a row, C classes. Names end in the shape of their tensor: `cost_RM` is (R, M), `k_R1` (R, 1).
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
TABLE = 1 << 22  # entries of a table in memory at once: 16 MiB in float32
NOBODY = torch.iinfo(torch.int64).max  # a bid that loses against every other
ROW = (1 << 32) - 1
COST = ~ROW
NOT_OWN = 1 << 31
COLUMN = NOT_OWN - 1


@dataclass(frozen=True)
class _Offers:
    """The candidates' predictions, ordered by region and image, and by candidate inside an image."""

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
    """Demand for each candidate, gathered over the chunks. For bids see the module."""

    wanted: Tensor  # (N,) how many rows want the candidate
    wanting: Tensor  # (N,) the lowest bid of a row that wants it
    lowest: Tensor  # (N,) the lowest bid of any row of its image

    @classmethod
    def of(cls, like: Tensor) -> _Auction:
        return cls(torch.zeros_like(like), torch.full_like(like, NOBODY), torch.full_like(like, NOBODY))

    def owners(self) -> Tensor:
        """(N,) the bid that gets the candidate, if any row wants it."""
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
    column_M = torch.arange(rows.most, device=rows.count.device)
    place_RM = (rows.first + column_M).clamp_(max=len(offers.maker) - 1)
    outside_RM = column_M >= rows.count
    iou_RM, total_RM = _iou(rows, offers.values[:, place_RM])
    iou_RM.masked_fill_(outside_RM, 0)
    Q = min(top, rows.most)
    best_RQ = iou_RM.topk(Q, dim=1).values
    k_R1 = best_RQ.sum(1, keepdim=True).clamp_(offers.one, rows.count)  # to be truncated
    gain_RM = offers.gain[place_RM, rows.label]
    cost_RM = total_RM.sub_(gain_RM).sub_(iou_RM.add_(IOU_EPS).log_(), alpha=IOU_WEIGHT)
    # A cost below zero is rounding.
    price_RM = cost_RM.clamp_(min=0).masked_fill_(outside_RM, torch.inf).view(torch.int32).long() << 32
    del iou_RM, total_RM, gain_RM, cost_RM  # tables are large
    # Columns outside bid on candidates of other images, but no finite bid is that high.
    auction.lowest.scatter_reduce_(0, place_RM.view(-1), (price_RM | rows.number).view(-1), "amin")

    price_RM.bitwise_or_(column_M).add_(offers.maker[place_RM] != rows.target, alpha=NOT_OWN)
    cheapest_RQ = price_RM.topk(Q, dim=1, largest=False).values
    wants_RQ = torch.arange(1, Q + 1, device=k_R1.device) <= k_R1  # as many as the whole part of k
    bids_RQ = torch.where(wants_RQ, cheapest_RQ & COST | rows.number, NOBODY)
    place = place_RM.gather(1, cheapest_RQ & COLUMN).view(-1)  # (R * Q,)
    auction.wanting.scatter_reduce_(0, place, bids_RQ.view(-1), "amin")
    auction.wanted.put_(place, wants_RQ.long(), accumulate=True)


def _iou(rows: _Rows, values_6RM: Tensor) -> tuple[Tensor, Tensor]:
    """IoU (R, M) of the rows' boxes with offers (6, R, M), and the last value of the offers."""
    left_R1, top_R1, right_R1, bottom_R1 = rows.boxes[:, None].unbind(2)
    x1_RM, y1_RM, x2_RM, y2_RM, area_RM, total_RM = values_6RM.unbind()
    shared_RM = torch.minimum(right_R1, x2_RM).sub_(torch.maximum(left_R1, x1_RM)).clamp_(min=0)
    shared_RM.mul_(torch.minimum(bottom_R1, y2_RM).sub_(torch.maximum(top_R1, y1_RM)).clamp_(min=0))
    return shared_RM / area_RM.add_(rows.area).sub_(shared_RM), total_RM


def _winners(found: Candidates, order: Tensor, auction: _Auction, targets: int) -> Matches:
    """The candidates that any row wants, by map and target."""
    taken = auction.wanted.nonzero().view(-1)
    target = auction.owners()[taken] & ROW
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
