"""Mosaics, warped straight into the output.

A mosaic is first only planned: which image lies where on a canvas of twice the output's side, and which part of it the
canvas keeps. Its labels follow from the plan. For the pixels, each image is warped once, by its placement and the
random map in one matrix, into the part of the output that it covers; the canvas itself never exists, and an image
that the map leaves outside of the output is not even decoded.

Legend: S output side; canvas 2S x 2S for mosaics, S x S for a single image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.augment.affine import (
    BOX_AREA_SHARE,
    MAX_ASPECT,
    POLYGON_AREA_SHARE,
    is_kept,
    is_upright,
    transform_boxes,
    transform_points,
    translation,
    visible_extents,
    visible_region,
)
from yolov7.augment.sample import Floats, Image, SampleSource
from yolov7.letterbox import FILL, centre_pad
from yolov7.polygons import Polygons, join_polygons

Rectangle = tuple[int, int, int, int]
"""x1, y1, x2, y2 in whole pixels."""


@dataclass(frozen=True)
class Tile:
    """One image on the canvas."""

    source: int
    """Number of the image."""
    x: int
    """Canvas position of the image's left edge; may lie outside."""
    y: int
    """Canvas position of its top edge."""
    clip: Rectangle
    """The part of the canvas it fills; what reaches beyond is cut away. Tiles never overlap."""


@dataclass(frozen=True)
class Overlay:
    """Some outlines of a tile's image, shown once more in another place."""

    tile: Tile
    placement: Floats
    """(3, 3) map from the canvas to where on the canvas the copy lies."""
    outlines: list[Floats]
    """(k, 2) xy points each, on the canvas, before `placement`."""


@dataclass
class Scene:
    """A planned canvas with its objects."""

    side: int
    """Side of the square canvas in pixels."""
    tiles: list[Tile]
    boxes: Floats
    """(n, 4) xyxy on the canvas, clipped to their tile's part of the canvas."""
    labels: NDArray[np.int64]
    """(n,) class numbers."""
    tile_numbers: NDArray[np.int64]
    """(n,) the tile each object belongs to."""
    clips: Floats
    """(n, 4) xyxy: the canvas rectangle each object is cut to."""
    polygons: Polygons | None
    """Outlines on the canvas, not cut."""
    overlays: list[Overlay] = field(default_factory=list)


@dataclass
class Rendered:
    """A scene seen through a map."""

    image: Image
    """(S, S, 4) RGB and one channel without meaning (OpenCV warps four channels several times faster than three)."""
    content: Rectangle
    """Rectangle outside of which there is only grey."""
    boxes: Floats
    """(m, 4) xyxy in the output."""
    labels: NDArray[np.int64]
    """(m,) class numbers."""


def plan_single(source: SampleSource, index: int, size: int) -> list[Tile]:
    """One image centred on a canvas of S x S."""
    height, width = source.size(index)
    x, y = centre_pad(size - width), centre_pad(size - height)
    return [Tile(index, x, y, (x, y, x + width, y + height))]


def plan_mosaic4(
    source: SampleSource, index: int, size: int, rng: np.random.Generator, shuffle: bool = False
) -> list[Tile]:
    """Four images around a random centre of a canvas of 2S x 2S (training sheet, section 4.1).

    The image itself lies top left, three random ones top right, bottom left and bottom right; each touches the centre
    with its inner corner. With `shuffle` all four lie anywhere (reference sheet: yolov9-training, section 3).
    """
    centre_y, centre_x = (int(value) for value in rng.uniform(size // 2, size + size // 2, 2))
    images = [index, *(int(other) for other in rng.integers(len(source), size=3))]
    if shuffle:
        rng.shuffle(images)
    tiles = []
    for place, image in enumerate(images):
        height, width = source.size(image)
        x = centre_x if place % 2 else centre_x - width
        y = centre_y if place >= 2 else centre_y - height
        tiles.append(_tile(image, x, y, height, width, 2 * size))
    return tiles


def plan_mosaic9(source: SampleSource, index: int, size: int, rng: np.random.Generator) -> list[Tile]:
    """A random crop of 2S x 2S out of nine images on 3S x 3S (training sheet, section 4.2).

    The image itself lies in the middle; eight random ones go round it clockwise from the top, each edge to edge with
    the middle one and with the one before.
    """
    images = [index, *(int(other) for other in rng.integers(len(source), size=8))]
    crop_x, crop_y = (int(value) for value in rng.integers(0, size, 2))
    heights, widths = zip(*(source.size(image) for image in images), strict=True)
    h0, w0 = heights[0], widths[0]
    places = [
        (0, 0),
        (0, -heights[1]),  # top
        (widths[1], -heights[2]),  # top right, beside the top one
        (w0, 0),  # right
        (w0, heights[3]),  # bottom right, under the right one
        (w0 - widths[5], h0),  # bottom
        (w0 - widths[5] - widths[6], h0),  # bottom left, beside the bottom one
        (-widths[7], h0 - heights[7]),  # left
        (-widths[8], h0 - heights[7] - heights[8]),  # top left, above the left one
    ]
    return [
        _tile(image, size + x - crop_x, size + y - crop_y, height, width, 2 * size)
        for image, (x, y), height, width in zip(images, places, heights, widths, strict=True)
    ]


def _tile(image: int, x: int, y: int, height: int, width: int, side: int) -> Tile:
    return Tile(image, x, y, (max(x, 0), max(y, 0), min(x + width, side), min(y + height, side)))


def gather(source: SampleSource, tiles: list[Tile], side: int) -> Scene:
    """The objects of all tiles in canvas coordinates; boxes are cut to their tile's part of the canvas."""
    boxes, labels = [np.zeros((0, 4))], [np.zeros(0, np.int64)]
    counts: list[int] = []
    polygons: list[tuple[Polygons | None, int]] = []
    for tile in tiles:
        x1, y1, x2, y2 = tile.clip
        counts.append(0)
        objects = source.objects(tile.source)
        if not len(objects) or x1 >= x2 or y1 >= y2:
            continue
        moved = np.add(objects.boxes, (tile.x, tile.y, tile.x, tile.y))
        boxes.append(np.minimum(np.maximum(moved, (x1, y1, x1, y1)), (x2, y2, x2, y2)))
        labels.append(objects.labels)
        counts[-1] = len(objects)
        if objects.polygons is not None:
            polygons.append((objects.polygons.mapped((1, 1), (tile.x, tile.y)), len(objects)))
        else:
            polygons.append((None, len(objects)))
    numbers = np.repeat(np.arange(len(tiles)), counts)
    return Scene(
        side=side,
        tiles=tiles,
        boxes=np.concatenate(boxes),
        labels=np.concatenate(labels),
        tile_numbers=numbers,
        clips=np.array([tile.clip for tile in tiles], np.float64)[numbers],
        polygons=join_polygons(polygons),
    )


def render(
    source: SampleSource, scene: Scene, matrix: Floats, scale: float, size: int, max_aspect: float = MAX_ASPECT
) -> Rendered:
    """Pixels and labels of the scene under the map `matrix` (3, 3), of the given scale, in an output of `size`.

    Objects whose longer side reaches `max_aspect` times the shorter one are left out of the labels.
    """
    boxes, labels = _labels(scene, matrix, scale, size, max_aspect)
    image = np.empty((size, size, 4), np.uint8)
    image[:] = FILL
    painted = [paint_tile(image, source, tile, matrix) for tile in scene.tiles]
    painted += [_paint_overlay(image, source, overlay, matrix) for overlay in scene.overlays]
    return Rendered(image, bounding_rectangle(painted), boxes, labels)


def bounding_rectangle(rectangles: list[Rectangle]) -> Rectangle:
    """The smallest rectangle around all that are not empty; (0, 0, 0, 0) if there is none."""
    real = [(x1, y1, x2, y2) for x1, y1, x2, y2 in rectangles if x1 < x2 and y1 < y2]
    if not real:
        return 0, 0, 0, 0
    x1, y1, x2, y2 = zip(*real, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _labels(
    scene: Scene, matrix: Floats, scale: float, size: int, max_aspect: float
) -> tuple[Floats, NDArray[np.int64]]:
    """Boxes and labels in the output that pass the filter of section 4.3; outlines decide where there are any."""
    after = transform_boxes(scene.boxes, matrix, size)
    share = np.full(len(after), BOX_AREA_SHARE)
    if scene.polygons is not None:
        outlined = np.zeros(len(after), np.bool_)
        outlined[scene.polygons.owners] = True
        share[outlined] = POLYGON_AREA_SHARE
        # An outline may reach beyond its box, but not from far outside of the output to the inside.
        near = outlined & (after[:, 2:] > after[:, :2]).all(1)
        after[near] = visible_extents(scene.polygons.take(near), scene.clips[near], matrix, size)
        after[outlined & ~near] = 0
    kept = is_kept(scene.boxes, after, scale, share, max_aspect)
    return after[kept], scene.labels[kept]


def paint_tile(image: Image, source: SampleSource, tile: Tile, matrix: Floats) -> Rectangle:
    """Warp the part of a tile that the canvas keeps into `image` (S, S, 4); returns the rectangle it may have touched.

    The source's pixels are asked for only if some of them are seen.
    """
    return (_paint_upright if is_upright(matrix) else _paint_tilted)(image, source, tile, matrix)


def _paint_upright(image: Image, source: SampleSource, tile: Tile, matrix: Floats) -> Rectangle:
    """Without rotation or shear a tile covers a rectangle of whole output pixels: those whose centres fall into it."""
    spans, crops, places = [], [], []
    for axis, start in enumerate((tile.x, tile.y)):
        scale, shift = float(matrix[axis, axis]), float(matrix[axis, 2])
        low, high = tile.clip[axis], tile.clip[axis + 2]
        first = max(math.ceil(low * scale + shift - 0.5), 0)
        end = min(math.ceil(high * scale + shift - 0.5), len(image))
        if low >= high or first >= end:
            return 0, 0, 0, 0
        # OpenCV gets only the visible stretch of the image, plus the margin that interpolation needs.
        crop = max(math.floor((first + 0.5 - shift) / scale) - 2, low) - start
        crop_end = min(math.ceil((end - 0.5 - shift) / scale) + 2, high) - start
        spans.append((first, end))
        crops.append((crop, crop_end))
        places.append((first + 0.5 - shift) / scale - start)
    (x1, x2), (y1, y2) = spans
    shown = source.shown(tile.source, float(max(matrix[0, 0], matrix[1, 1])))
    inverse = np.zeros((2, 3))
    slices = []
    for axis, ((crop, crop_end), share) in enumerate(zip(crops, shown.scale, strict=True)):
        # A margin of two pixels of load size need not be one of these.
        low = max(math.floor(crop * share - (1 - share)), 0)
        slices.append(slice(low, math.ceil(crop_end * share + (1 - share))))
        inverse[axis, axis], inverse[axis, 2] = share / matrix[axis, axis], share * places[axis] - low - 0.5
    pixels = cv2.cvtColor(shown.image[slices[1], slices[0]], cv2.COLOR_RGB2RGBA)
    cv2.warpAffine(
        pixels,
        inverse,
        (x2 - x1, y2 - y1),
        dst=image[y1:y2, x1:x2],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return x1, y1, x2, y2


def _paint_tilted(image: Image, source: SampleSource, tile: Tile, matrix: Floats) -> Rectangle:
    """With rotation, shear or perspective: the fourth channel is warped along and tells which centres fall into it.

    It is 255 on the tile and 0 on a frame of one repeated pixel around it, so that colours at the edge blend only with
    themselves. Interpolated, it is at least a quarter of 255 wherever the centre lies on the tile, corners
    included, and falls below that within a quarter of a canvas pixel outside: neighbours leave no gap between them.
    """
    size = len(image)
    clip = np.array(tile.clip, np.float64)
    region = visible_region(clip, matrix, size)
    if not len(region):
        return 0, 0, 0, 0
    seen = transform_points(region, matrix)
    x1, y1 = (int(value) for value in np.maximum(np.floor(seen.min(0)), 0))
    x2, y2 = (int(value) for value in np.minimum(np.ceil(seen.max(0)), size))
    if x1 >= x2 or y1 >= y2:
        return 0, 0, 0, 0
    # OpenCV gets only the visible part of the image, plus the margin that interpolation needs.
    left, top = (int(value) for value in np.maximum(np.floor(region.min(0)) - 2, clip[:2]))
    right, bottom = (int(value) for value in np.minimum(np.ceil(region.max(0)) + 2, clip[2:]))
    pixels = source.image(tile.source)[top - tile.y : bottom - tile.y, left - tile.x : right - tile.x]
    framed = cv2.copyMakeBorder(cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    framed[[0, -1], :, 3] = 0
    framed[:, [0, -1], 3] = 0
    shifted = translation(-x1 - 0.5, -y1 - 0.5) @ matrix @ translation(left - 0.5, top - 0.5)
    patch = _warp(framed, shifted, x2 - x1, y2 - y1, cv2.BORDER_CONSTANT)
    _, mask = cv2.threshold(cv2.extractChannel(patch, 3), 62, 255, cv2.THRESH_BINARY)
    corners = clip[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)
    if (corners @ matrix[2, :2] + matrix[2, 2]).min() < 0:  # what lies behind the viewer must not show up mirrored
        mask &= outline_mask([seen], x1, y1, x2 - x1, y2 - y1)
    cv2.copyTo(patch, mask, image[y1:y2, x1:x2])
    return x1, y1, x2, y2


def _warp(pixels: Image, matrix: Floats, width: int, height: int, border: int) -> Image:
    """Bilinear warp by a (3, 3) matrix between pixel numbers."""
    if matrix[2, 0] or matrix[2, 1]:
        return cv2.warpPerspective(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border)
    return cv2.warpAffine(pixels, matrix[:2], (width, height), flags=cv2.INTER_LINEAR, borderMode=border)


def _paint_overlay(image: Image, source: SampleSource, overlay: Overlay, matrix: Floats) -> Rectangle:
    """Warp the outlined parts of a tile to their second place, cut where the canvas cuts the tile."""
    size, tile, placed = len(image), overlay.tile, matrix @ overlay.placement
    region = visible_region(np.array(tile.clip, np.float64), placed, size)
    if not len(region):
        return 0, 0, 0, 0
    limit = transform_points(region, placed)
    outlines = [transform_points(points, placed) for points in overlay.outlines]
    points = np.concatenate(outlines)
    low = np.maximum(np.floor(np.maximum(limit.min(0), points.min(0))), 0).astype(int)
    high = np.minimum(np.ceil(np.minimum(limit.max(0), points.max(0))), size).astype(int)
    (x1, y1), (x2, y2) = low.tolist(), high.tolist()
    if x1 >= x2 or y1 >= y2:
        return 0, 0, 0, 0
    mask = outline_mask(outlines, x1, y1, x2 - x1, y2 - y1) & outline_mask([limit], x1, y1, x2 - x1, y2 - y1)
    shown = source.shown(tile.source, float(max(matrix[0, 0], matrix[1, 1])) if is_upright(matrix) else 1.0)
    enlarged = np.diag([1 / shown.scale[0], 1 / shown.scale[1], 1.0])
    onto_canvas = translation(tile.x, tile.y) @ enlarged @ translation(0.5, 0.5)
    shifted = translation(-x1 - 0.5, -y1 - 0.5) @ placed @ onto_canvas
    pixels = cv2.cvtColor(shown.image, cv2.COLOR_RGB2RGBA)
    cv2.copyTo(_warp(pixels, shifted, x2 - x1, y2 - y1, cv2.BORDER_REPLICATE), mask, image[y1:y2, x1:x2])
    return x1, y1, x2, y2


def outline_mask(outlines: list[Floats], x: int, y: int, width: int, height: int) -> Image:
    """(height, width) mask, 255 inside any of the outlines (k, 2), of the window whose corner is (x, y)."""
    mask = np.zeros((height, width), np.uint8)
    for points in outlines:
        # OpenCV's whole numbers are pixel centres; four binary places keep a sixteenth of a pixel.
        corners = np.rint((points - [x + 0.5, y + 0.5]) * 16).clip(-(2**26), 2**26).astype(np.int32)
        cv2.fillPoly(mask, [corners], 255, lineType=cv2.LINE_8, shift=4)
    return mask
