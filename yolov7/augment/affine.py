"""Random affine and perspective maps, and boxes and outlines under them.

Coordinates are continuous: pixel i covers [i, i + 1), so its centre is i + 0.5. A map takes canvas points to output
points; :func:`pixel_matrix` turns it into the one OpenCV wants, whose integers are pixel centres. (The published code
uses one matrix for both, which shifts labels against pixels by up to half a pixel.)

Legend: n objects, Q polygons, P points (as many edges), K corners of a visible region.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from yolov7.augment.sample import Floats
from yolov7.config import Augment
from yolov7.polygons import Polygons

MIN_SIDE = 2.0
"""A box must stay wider and higher than this many pixels (training sheet, section 4.3)."""
MAX_ASPECT = 20.0
"""Its longer side must stay below this many times the shorter."""
BOX_AREA_SHARE = 0.10
"""Share of its scaled area that must stay visible."""
POLYGON_AREA_SHARE = 0.01
"""The same where the visible part was found from an outline."""

_NEAREST = 1e-3
"""Points whose perspective divisor is below this lie at or behind the viewer and are cut away."""


def draw_matrix(rng: np.random.Generator, augment: Augment, canvas: int, size: int) -> tuple[Floats, float]:
    """A random map from a square canvas of side `canvas` to an output of side `size`: (3, 3) matrix and its scale.

    Training sheet, section 4.3: translation * shear * rotation and scale * perspective * centring.
    """
    tilt_x, tilt_y = rng.uniform(-augment.perspective, augment.perspective, 2).tolist()
    angle = math.radians(rng.uniform(-augment.degrees, augment.degrees))
    scale = float(rng.uniform(1 - augment.scale, 1 + augment.scale_surplus + augment.scale))
    slope_x, slope_y = np.tan(np.radians(rng.uniform(-augment.shear, augment.shear, 2))).tolist()
    shift_x, shift_y = (rng.uniform(0.5 - augment.translate, 0.5 + augment.translate, 2) * size).tolist()
    sine, cosine = scale * math.sin(angle), scale * math.cos(angle)
    centring = translation(-canvas / 2, -canvas / 2)
    tilt = np.array([[1, 0, 0], [0, 1, 0], [tilt_x, tilt_y, 1]])
    turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    slant = np.array([[1, slope_x, 0], [slope_y, 1, 0], [0, 0, 1]])
    return translation(shift_x, shift_y) @ slant @ turn @ tilt @ centring, scale


def translation(x: float, y: float) -> Floats:
    """The (3, 3) matrix that moves points by (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def pixel_matrix(matrix: Floats) -> Floats:
    """The same map between pixel numbers (centres at whole numbers) instead of continuous coordinates."""
    return translation(-0.5, -0.5) @ matrix @ translation(0.5, 0.5)


def is_upright(matrix: Floats) -> bool:
    """True if the map only scales and shifts, without mirroring: rectangles stay upright rectangles."""
    tilted = matrix[0, 1] or matrix[1, 0] or matrix[2, 0] or matrix[2, 1]
    return not tilted and matrix[0, 0] > 0 and matrix[1, 1] > 0


def transform_points(points: NDArray[np.floating], matrix: Floats) -> Floats:
    """Points (..., 2) under the map."""
    moved = points @ matrix[:2, :2].T + matrix[:2, 2]
    if matrix[2, 0] or matrix[2, 1]:
        moved /= (points @ matrix[2, :2] + matrix[2, 2])[..., None]
    return moved


def transform_boxes(boxes: Floats, matrix: Floats, size: int) -> Floats:
    """Extents of the four corners of boxes (n, 4) under the map, clipped to the output: (n, 4)."""
    if is_upright(matrix):
        (scale_x, _, shift_x), (_, scale_y, shift_y), _ = matrix.tolist()
        moved = boxes * (scale_x, scale_y, scale_x, scale_y) + (shift_x, shift_y, shift_x, shift_y)
        return np.minimum(np.maximum(moved, 0), size)
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    moved = np.empty_like(boxes)
    front = (corners @ matrix[2, :2] + matrix[2, 2] >= _NEAREST).all(1)
    points = transform_points(corners[front], matrix)
    moved[front, :2], moved[front, 2:] = points.min(1), points.max(1)
    for number in np.flatnonzero(~front):
        region = transform_points(visible_region(boxes[number], matrix, size), matrix)
        moved[number] = [*region.min(0), *region.max(0)] if len(region) else [0, 0, 0, 0]
    return np.clip(moved, 0, size)


def visible_region(rectangle: Floats, matrix: Floats, size: int) -> Floats:
    """The part of a canvas rectangle (xyxy) that is seen in the output: corners (K, 2) of a convex polygon, or none."""
    x1, y1, x2, y2 = (float(value) for value in rectangle)
    if x1 >= x2 or y1 >= y2:
        return np.zeros((0, 2))
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    for a, b, c in _window_lines(matrix, size).tolist():
        kept: list[tuple[float, float]] = []
        for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
            here, there = a * ax + b * ay + c, a * bx + b * by + c
            if here >= 0:
                kept.append((ax, ay))
            if here * there < 0:
                share = here / (here - there)
                kept.append((ax + share * (bx - ax), ay + share * (by - ay)))
        corners = kept
    return np.array(corners).reshape(-1, 2) if len(corners) >= 3 else np.zeros((0, 2))


def _window_lines(matrix: Floats, size: int) -> Floats:
    """Lines (5, 3) in canvas coordinates: the output shows the points with a x + b y + c >= 0 for all of them.

    A side of the output, x' >= 0 say, is the line row0 . p >= 0 of the canvas wherever the divisor row2 . p is
    positive, which the last line demands.
    """
    across, down, divisor = matrix
    return np.stack([divisor - [0, 0, _NEAREST], across, size * divisor - across, down, size * divisor - down])


def visible_extents(polygons: Polygons, clips: Floats, matrix: Floats, size: int) -> Floats:
    """Extents (n, 4) in the output of the visible part of every outlined object; zeros where nothing is seen.

    `clips` (n, 4): the canvas rectangle outside of which an object is cut away. The part of the outline inside the
    rectangle and the output is found exactly, by cutting edges, and corners of the visible region that lie inside the
    object count as well. (The published code samples 1000 points of the outline, and loses an object that surrounds
    the whole output.) Objects without outline get zeros.
    """
    if not len(polygons.counts):
        return np.zeros((len(clips), 4))
    lines = _window_lines(matrix, size)
    if is_upright(matrix):  # the output is a rectangle of the canvas: one intersection replaces four cuts an edge
        scales, shifts = np.diag(matrix)[:2], matrix[:2, 2]
        low, high = -shifts / scales, (size - shifts) / scales
        clips = np.hstack([np.maximum(clips[:, :2], low), np.minimum(clips[:, 2:], high)])
        lines = lines[:0]
        corners = clips[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
        corners[(clips[:, 2:] <= clips[:, :2]).any(1)] = np.nan
    else:
        corners = _region_corners(clips, matrix, size)
    starts = np.asarray(polygons.points, np.float64)
    ends = starts[_next_points(polygons.counts)]
    edge_owners = np.repeat(polygons.owners, polygons.counts)
    first, last = _cut_edges(starts, ends, clips[edge_owners], lines)
    seen = first <= last
    steps = ends - starts
    extents = np.full((len(clips), 4), np.inf)
    for share in (first, last):
        points = transform_points(starts[seen] + share[seen, None] * steps[seen], matrix)
        _widen(extents, points, edge_owners[seen])
    _add_region_corners(extents, polygons, starts, ends, corners, matrix)
    extents[~np.isfinite(extents).all(1)] = 0
    extents[:, 2:] *= -1
    return np.clip(extents, 0, size)


def _next_points(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """For every point the number of the one that follows it on its polygon."""
    following = np.arange(1, int(counts.sum()) + 1)
    ends = np.cumsum(counts)
    following[ends - 1] = ends - counts
    return following


def _cut_edges(starts: Floats, ends: Floats, clips: Floats, lines: Floats) -> tuple[Floats, Floats]:
    """The stretch [first, last] of every edge (as shares of it) that is inside; first > last where none is.

    `clips` (P, 4) is each edge's own rectangle, `lines` (L, 3) are half planes common to all.
    """
    first, last = np.zeros(len(starts)), np.ones(len(starts))
    distances = [(starts - clips[:, :2], ends - clips[:, :2]), (clips[:, 2:] - starts, clips[:, 2:] - ends)]
    pairs = [(here[:, axis], there[:, axis]) for here, there in distances for axis in (0, 1)]
    pairs += [(starts @ line[:2] + line[2], ends @ line[:2] + line[2]) for line in lines]
    for here, there in pairs:
        difference = here - there
        share = np.divide(here, difference, out=np.zeros_like(here), where=difference != 0)
        first = np.where(here < 0, np.maximum(first, share), first)
        last = np.where(there < 0, np.minimum(last, share), last)
        last[(here < 0) & (there < 0)] = -1
    return first, last


def _widen(extents: Floats, points: Floats, owners: NDArray[np.int64]) -> None:
    """Widen extents (n, 4), kept as x1, y1, -x2, -y2, to hold points (m, 2) of owners (m,), which never fall."""
    if not len(points):
        return
    groups = np.flatnonzero(np.diff(owners, prepend=-1))
    low = np.minimum.reduceat(np.hstack([points, -points]), groups)
    whose = owners[groups]
    extents[whose] = np.minimum(extents[whose], low)


def _add_region_corners(
    extents: Floats, polygons: Polygons, starts: Floats, ends: Floats, corners: Floats, matrix: Floats
) -> None:
    """Widen extents by those of each object's region corners (n, K, 2) that lie inside it.

    Inside by the even-odd rule, polygon by polygon; a corner that is not a number is nowhere inside.
    """
    near = corners[np.repeat(polygons.owners, polygons.counts)]  # (P, K, 2)
    x1, y1, x2, y2 = starts[:, 0, None], starts[:, 1, None], ends[:, 0, None], ends[:, 1, None]
    spans = (y1 > near[..., 1]) != (y2 > near[..., 1])
    rise = np.where(y1 == y2, 1.0, y2 - y1)
    crossings = spans & (near[..., 0] < x1 + (near[..., 1] - y1) * (x2 - x1) / rise)
    firsts = np.cumsum(polygons.counts) - polygons.counts
    inside = np.add.reduceat(crossings, firsts, axis=0, dtype=np.int64) % 2 == 1  # (Q, K)
    polygon, corner = np.nonzero(inside)
    owners = polygons.owners[polygon]
    _widen(extents, transform_points(corners[owners, corner], matrix), owners)


def _region_corners(clips: Floats, matrix: Floats, size: int) -> Floats:
    """Corners (n, K, 2) of the visible part of each rectangle (n, 4), filled up with NaN."""
    regions, which = np.unique(clips, axis=0, return_inverse=True)
    shapes = [visible_region(region, matrix, size) for region in regions]
    corners = np.full((len(shapes), max(map(len, shapes), default=0), 2), np.nan)
    for row, shape in zip(corners, shapes, strict=True):
        row[: len(shape)] = shape
    return corners[which.reshape(-1)]


def is_kept(
    before: Floats, after: Floats, scale: float, area_share: Floats | float, max_aspect: float = MAX_ASPECT
) -> NDArray[np.bool_]:
    """(n,) bool: boxes worth keeping, from boxes (n, 4) on the canvas and in the output.

    Training sheet, section 4.3: wider and higher than 2 pixels, more than `area_share` of the scaled area left, and
    the longer side less than `max_aspect` times the shorter.
    """
    sides = after[:, 2:] - after[:, :2]
    old = before[:, 2:] - before[:, :2]
    longer, shorter = sides.max(1, initial=0), sides.min(1, initial=np.inf)
    enough = sides.prod(1) > area_share * old.prod(1) * scale**2
    return (shorter > MIN_SIDE) & enough & (longer < max_aspect * shorter)


def flip_boxes_left_right(boxes: Floats, width: int) -> Floats:
    """Boxes (n, 4) xyxy of the mirrored image: x becomes width - x."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


def flip_boxes_up_down(boxes: Floats, height: int) -> Floats:
    """Boxes (n, 4) xyxy of the image turned upside down: y becomes height - y."""
    return np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1)
