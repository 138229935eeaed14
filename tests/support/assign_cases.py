"""Random heads, maps and targets for the tests of assignment and loss, and plain float64 versions of the method."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from yolov7.config import AnchorLoss, parse
from yolov7.loss import AnchorCriterion, anchor_criterion

ANCHORS = [[(12, 16), (19, 36), (40, 28)], [(36, 75), (76, 55), (72, 146)], [(142, 110), (192, 243), (459, 401)]]
PLACES = [(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)]


@dataclass
class Head:
    """The part of a model that a criterion needs."""

    anchors: torch.Tensor
    strides: tuple[int, ...] = (8, 16, 32)
    num_classes: int = 5
    has_auxiliary: bool = False

    @property
    def num_levels(self):
        return len(self.strides)


def head(classes=5, *, auxiliary=False, shrink=1.0):
    return Head(torch.tensor(ANCHORS) * shrink, num_classes=classes, has_auxiliary=auxiliary)


def criterion_of(model, *, image_size, totals=None, **fields) -> AnchorCriterion:
    """The criterion of a head that belongs to no network; `fields` are those of the parameter group."""
    return anchor_criterion(model, parse(AnchorLoss, fields, where="loss"), image_size=image_size, totals=totals)


def raw_maps(model, images, height, width, *, seed=0, dtype=torch.float32, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    strides = model.strides * (2 if model.has_auxiliary else 1)
    shapes = [(images, 3, height // s, width // s, 5 + model.num_classes) for s in strides]
    return [(torch.randn(shape, generator=generator) * spread).to(dtype) for shape in shapes]


def random_targets(images, most, height, width, classes, *, seed=0, exact=False):
    """Rows image, class, x1, y1, x2, y2; some are copies of others with another class, some images have none."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for image in range(images):
        for _ in range(int(torch.randint(0, most + 1, (), generator=generator)) if not exact else most):
            cx, cy, w, h = torch.rand(4, generator=generator).tolist()
            side = (min(height, width) * 0.6 * w + 4, min(height, width) * 0.6 * h + 4)
            box = (
                cx * width - side[0] / 2,
                cy * height - side[1] / 2,
                cx * width + side[0] / 2,
                cy * height + side[1] / 2,
            )
            label = int(torch.randint(0, classes, (), generator=generator))
            clipped = (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
            if rows and rows[-1][0] == image and torch.rand((), generator=generator) < 0.2:
                clipped = tuple(rows[-1][2:])
            rows.append((image, label, *clipped))
    order = torch.randperm(len(rows), generator=generator)
    return torch.tensor(rows, dtype=torch.float32).view(-1, 6)[order]


def plain_candidates(model, maps, targets, bias, threshold=4.0):
    """(map, image, anchor, row, column, target), level by level in the published order."""
    found = []
    for level, stride in enumerate(model.strides):
        rows, columns = maps[level].shape[2:4]
        for dx, dy in PLACES:
            for anchor in range(model.anchors.shape[1]):
                for t, (image, _, x1, y1, x2, y2) in enumerate(targets.double().tolist()):
                    aw, ah = model.anchors[level, anchor].double().tolist()
                    w, h = x2 - x1, y2 - y1
                    if not (0 < w < math.inf and 0 < h < math.inf) or max(w / aw, aw / w, h / ah, ah / h) >= threshold:
                        continue
                    x, y = (x1 + x2) / 2 / stride, (y1 + y2) / 2 / stride
                    ends = {(1, 0): x, (0, 1): y, (-1, 0): columns - x, (0, -1): rows - y}
                    end = ends.get((dx, dy))
                    if end is not None and not (end % 1 < bias and end > 1):
                        continue
                    column = min(max(int(x - dx * bias), 0), columns - 1)
                    row = min(max(int(y - dy * bias), 0), rows - 1)
                    found.append((level, int(image), anchor, row, column, t))
    return found


def plain_ota(model, maps, targets, bias, top, *, margin=1e-3, spread=2.0):
    """Matches (as `plain_candidates`), image by image in float64; None where a decision is a matter of rounding."""
    candidates = plain_candidates(model, maps, targets, bias)
    matches = []
    for image in range(maps[0].shape[0]):
        cells = [c for c in candidates if c[1] == image]
        mine = [t for t, row in enumerate(targets.tolist()) if row[0] == image and usable(row)]
        if not cells or not mine:
            continue
        cost, iou = plain_costs(model, maps, targets, cells, mine, spread)
        wants = [[] for _ in cells]
        for i, t in enumerate(mine):
            total = sum(sorted(iou[i], reverse=True)[:top])
            if total > 1 and abs(total - round(total)) < margin:
                return None
            k = max(int(total), 1)
            order = sorted(range(len(cells)), key=lambda j: (cost[i][j], cells[j][5] != t, j))
            if k < len(order):
                # Equal costs have a rule; those that differ by rounding may stand on either side of the cut.
                last = cost[i][order[k - 1]]
                near = {value for value in cost[i] if abs(value - last) < margin}
                if len(near) > 1 and cost[i][order[k]] - last < margin:
                    return None
            for j in order[:k]:
                wants[j].append(i)
        for j, wanting in enumerate(wants):
            if not wanting:
                continue
            owner = wanting[0]
            if len(wanting) > 1:
                ranked = sorted(range(len(mine)), key=lambda i: (cost[i][j], i))
                if 0 < cost[ranked[1]][j] - cost[ranked[0]][j] < margin:
                    return None
                owner = ranked[0]
            matches.append((*cells[j][:5], mine[owner]))
    return matches


def usable(row):
    return 0 < row[4] - row[2] < math.inf and 0 < row[5] - row[3] < math.inf


def plain_costs(model, maps, targets, cells, mine, spread=2.0):
    values = torch.stack([maps[m][b, a, y, x].double() for m, b, a, y, x, _ in cells])
    s = values.sigmoid()
    boxes = []
    for (m, _, a, y, x, _), p in zip(cells, s.tolist(), strict=True):
        stride, (aw, ah) = model.strides[m], model.anchors[m, a].tolist()
        shift = (spread - 1) / 2
        cx, cy = (p[0] * spread - shift + x) * stride, (p[1] * spread - shift + y) * stride
        w, h = (2 * p[2]) ** 2 * aw, (2 * p[3]) ** 2 * ah
        boxes.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    p = (s[:, 5:] * s[:, 4:5]).sqrt()
    cost, iou = [], []
    for t in mine:
        row = targets[t].double().tolist()
        hot = torch.zeros_like(p)
        hot[:, int(row[1])] = 1
        entropy = (hot * -p.log() - (1 - hot) * torch.log1p(-p)).sum(1).tolist()
        overlaps = [plain_iou(row[2:], box) for box in boxes]
        iou.append(overlaps)
        cost.append([e - 3 * math.log(o + 1e-8) for e, o in zip(entropy, overlaps, strict=True)])
    return cost, iou


def plain_iou(a, b):
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
