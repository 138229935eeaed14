"""The embedded data set: real handwritten digits composited onto crops of real photographs.

Both come with scikit-learn, a pinned package, so nothing is fetched: 1797 scans of 8x8 cells (each cell counts the ink
in a 4x4 block of the original scan) and two photographs under CC BY 2.0.

**Splits share nothing.** The scans of each class are dealt to train, val and test, and each photograph is cut into
three vertical bands, one a split; a crop never leaves its band. (The scans carry no writer, so one person's hand may
appear in two splits.) Every annotation names its scan and every image its photograph and crop, so this can be checked.

**Same seed, same bytes.** The generator of an image is built from (seed, split, number) alone: asking for more images
leaves the first ones as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.dataset.layout import SPLITS, annotations_file, images_folder
from stages.project.params_data import Digits
from yolov7.data.formats.coco import CocoAnnotations, write_coco

# Cumulative shares of each split in the scans of a class and in the columns of a photograph.
SCAN_SHARES = (0.62, 0.77, 1.0)
BAND_SHARES = (0.60, 0.78, 1.0)

CROP_SIDE = (56, 115)
"""Smallest and largest side of a crop in pixels of the photograph; the narrowest band is 115 wide."""
MAX_ROTATION = 15.0
"""Degrees either way: a 6 stays a 6."""
MAX_IOU = 0.05
"""Largest overlap of two boxes."""
MAX_COVERED = 0.10
"""Largest share of the smaller of two boxes that the other one covers."""
MIN_CONTRAST = 70.0
"""Smallest difference of luma (0 to 255) between a digit and the mean of its background."""
VISIBLE = 0.3
"""Smallest coverage of a pixel that belongs to the visible stroke, and so to the box."""
JPEG_QUALITY = 92
PLACEMENT_TRIES = 40
_CELL = 16
"""A scan's cell is enlarged to this many pixels, then warped and shrunk to its final size."""

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

INFO = {
    "description": "Handwritten digits composited onto crops of photographs; made by the ingest stage",
    "version": "1",
    "contributor": "Digits: E. Alpaydin, C. Kaynak (Optical Recognition of Handwritten Digits, UCI, CC BY 4.0). "
    "Photographs: danielbuechele (china.jpg), vultilion (flower.jpg), Flickr, CC BY 2.0. "
    "Both as shipped with scikit-learn; cropped, enlarged, mirrored, recoloured and drawn over.",
    "url": "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
}
LICENSES = [
    {
        "id": 1,
        "name": "CC BY 2.0, photograph by danielbuechele (Flickr 6061409035)",
        "url": "https://creativecommons.org/licenses/by/2.0/",
    },
    {
        "id": 2,
        "name": "CC BY 2.0, photograph by vultilion (Flickr 6056698931)",
        "url": "https://creativecommons.org/licenses/by/2.0/",
    },
    {
        "id": 3,
        "name": "CC BY 4.0, handwritten digits by E. Alpaydin and C. Kaynak (UCI)",
        "url": "https://creativecommons.org/licenses/by/4.0/",
    },
]
PHOTOS = ("china.jpg", "flower.jpg")
"""In the order of their licences above."""
CATEGORIES = [{"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)]

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom exclusive."""


@dataclass(frozen=True)
class _Material:
    """The scans and bands of one split."""

    bands: tuple[Image, ...]
    """One band (H, W, 3) RGB of each photograph."""
    band_lefts: tuple[int, ...]
    """First column of each band in its photograph."""
    scans: NDArray[np.float32]
    """All scans (1797, 8, 8), ink from 0 to 1."""
    scans_of: tuple[NDArray[np.int64], ...]
    """Numbers of this split's scans, by digit."""


def make_digits(parameters: Digits, folder: Path) -> None:
    """Write `train`, `val` and `test` into `folder`, each with `annotations.json` and `images/`.

    Image ids are unique across the splits. Annotations carry `scan`, images `photo` and `crop` (left, top, side in
    pixels of the photograph), beside the usual fields.
    """
    counts = (parameters.train_images, parameters.val_images, parameters.test_images)
    for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
        material = _material(parameters.seed, number)
        target = images_folder(folder, split)
        target.mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(count):
            rng = np.random.default_rng([parameters.seed, number, i])
            pixels, image, marks = _compose(parameters, material, rng)
            image = {"id": 1_000_000 * number + i + 1, "file_name": f"{split}-{i + 1:05d}.jpg", **image}
            for mark in marks:
                identity = 10_000_000 * number + len(annotations) + 1
                annotations.append({"id": identity, "image_id": image["id"], **mark})
            images.append(image)
            _write_jpeg(target / image["file_name"], pixels)
        coco = CocoAnnotations(
            path=annotations_file(folder, split),
            info=INFO,
            licenses=LICENSES,
            images=images,
            annotations=annotations,
            categories=CATEGORIES,
        )
        write_coco(coco.path, coco)


def _write_jpeg(path: Path, pixels: Image) -> None:
    encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    path.write_bytes(encoded.tobytes())


def _material(seed: int, number: int) -> _Material:
    from sklearn.datasets import load_digits, load_sample_image

    source = load_digits()
    scans_of = []
    for digit in range(10):
        # The shuffle depends on the seed and the digit only, so the three splits cut the same order.
        order = np.random.default_rng([seed, 100 + digit]).permutation(np.flatnonzero(source.target == digit))
        scans_of.append(order[slice(*_span(SCAN_SHARES, number, len(order)))])
    bands, lefts = [], []
    for name in PHOTOS:
        photo = load_sample_image(name)
        left, right = _span(BAND_SHARES, number, photo.shape[1])
        bands.append(photo[:, left:right])
        lefts.append(left)
    return _Material(tuple(bands), tuple(lefts), (source.images / 16.0).astype(np.float32), tuple(scans_of))


def _span(shares: tuple[float, ...], number: int, total: int) -> tuple[int, int]:
    """The range of split `number` among `total`: first, and one past the last."""
    first = shares[number - 1] if number else 0.0
    return round(first * total), round(shares[number] * total)


def _compose(
    parameters: Digits, material: _Material, rng: np.random.Generator
) -> tuple[Image, dict[str, Any], list[dict[str, Any]]]:
    """One image (H, W, 3) RGB, its record, and the records of its digits, both without ids."""
    side = parameters.image_size
    canvas, record = _background(material, side, rng)
    low, high = parameters.digits_per_image
    boxes: list[Box] = []
    marks: list[dict[str, Any]] = []
    for _ in range(int(rng.integers(low, high + 1))):
        digit = int(rng.integers(10))
        scan = int(rng.choice(material.scans_of[digit]))
        coverage = _draw_scan(material.scans[scan], max(8.0, rng.uniform(*parameters.digit_size) * side), rng)
        corner = _place(coverage, canvas, boxes, rng)
        if corner is None:
            continue
        left, top = corner
        _blend(canvas, coverage, left, top, rng)
        box = _visible_box(coverage, left, top)
        boxes.append(box)
        width, height = box[2] - box[0], box[3] - box[1]
        marks.append(
            {
                "category_id": digit + 1,
                "bbox": [box[0], box[1], width, height],
                "area": width * height,
                "iscrowd": 0,
                "scan": scan,
            }
        )
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), {"width": side, "height": side, **record}, marks


def _background(material: _Material, side: int, rng: np.random.Generator) -> tuple[Floats, dict[str, Any]]:
    """A crop of one of the split's bands, enlarged to the image side, mirrored and recoloured at random."""
    which = int(rng.integers(len(material.bands)))
    band = material.bands[which]
    crop_side = round(float(np.exp(rng.uniform(*np.log(CROP_SIDE)))))
    top = int(rng.integers(band.shape[0] - crop_side + 1))
    left = int(rng.integers(band.shape[1] - crop_side + 1))
    crop = band[top : top + crop_side, left : left + crop_side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.25:
        crop = crop[::-1]
    enlarged = cv2.resize(np.ascontiguousarray(crop), (side, side), interpolation=cv2.INTER_CUBIC)
    canvas: Floats = enlarged.astype(np.float32)
    mean = canvas.mean(axis=(0, 1))
    canvas = (canvas - mean) * np.float32(rng.uniform(0.5, 1.0)) + mean
    canvas = canvas * rng.uniform(0.85, 1.15, size=3).astype(np.float32) + np.float32(rng.uniform(-25, 25))
    crop_box = [left + material.band_lefts[which], top, crop_side]
    return np.clip(canvas, 0, 255), {"license": which + 1, "photo": PHOTOS[which], "crop": crop_box}


def _draw_scan(scan: Floats, longer_side: float, rng: np.random.Generator) -> Floats:
    """Coverage of each pixel by the stroke (h, w): slanted, rotated, its longer side `longer_side` pixels.

    The scan's cells are coverages already: enlarged with a cubic kernel and cut at half coverage, they yield a smooth
    outline; shrinking by area softens its edges.
    """
    padded = np.pad(scan, 3)
    large_side = padded.shape[0] * _CELL
    large = cv2.resize(padded, (large_side, large_side), interpolation=cv2.INTER_CUBIC)
    angle = np.radians(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    slant, stretch = rng.uniform(-0.12, 0.12), rng.uniform(0.9, 1.12)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1.0, slant], [0.0, stretch]])
    centre = np.full(2, (large_side - 1) / 2)
    shift = centre - matrix @ centre
    warped = cv2.warpAffine(large, np.column_stack([matrix, shift]), (large_side, large_side), flags=cv2.INTER_LINEAR)
    edge = np.clip((warped - 0.25) / 0.35, 0.0, 1.0)
    ink = edge * edge * (3.0 - 2.0 * edge)
    rows, columns = np.flatnonzero(ink.max(axis=1) > 0.5), np.flatnonzero(ink.max(axis=0) > 0.5)
    tight = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = longer_side / max(tight.shape)
    size = (max(1, round(tight.shape[1] * scale)), max(1, round(tight.shape[0] * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    drawn = cv2.resize(tight, size, interpolation=interpolation)
    return np.clip(np.asarray(drawn, dtype=np.float32), 0.0, 1.0)


def _place(coverage: Floats, canvas: Floats, boxes: list[Box], rng: np.random.Generator) -> tuple[int, int] | None:
    """Left and top of a free place where a contrasting colour exists, or None if the image is too full.

    The first digit always finds a place: where all that were tried are too busy, it takes the calmest.
    """
    height, width = coverage.shape
    calmest: tuple[float, int, int] | None = None
    for _ in range(PLACEMENT_TRIES):
        left = int(rng.integers(1, max(2, canvas.shape[1] - width)))
        top = int(rng.integers(1, max(2, canvas.shape[0] - height)))
        if any(_overlap_too_much((left, top, left + width, top + height), box) for box in boxes):
            continue
        mean, spread = _luma_under(canvas, left, top, height, width)
        if max(mean, 255.0 - mean) >= MIN_CONTRAST + 1.5 * spread:
            return left, top
        if calmest is None or spread < calmest[0]:
            calmest = (spread, left, top)
    return calmest[1:] if calmest is not None and not boxes else None


def _overlap_too_much(first: Box, second: Box) -> bool:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return False
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    shared = width * height
    return shared / (sum(areas) - shared) > MAX_IOU or shared / min(areas) > MAX_COVERED


def _luma_under(canvas: Floats, left: int, top: int, height: int, width: int) -> tuple[float, float]:
    """Mean and standard deviation of the luma under a digit."""
    luma = canvas[top : top + height, left : left + width] @ LUMA
    return float(luma.mean()), float(luma.std())


def _blend(canvas: Floats, coverage: Floats, left: int, top: int, rng: np.random.Generator) -> None:
    """Draw the stroke in a random colour whose luma is clearly different from its background."""
    height, width = coverage.shape
    mean, spread = _luma_under(canvas, left, top, height, width)
    least = MIN_CONTRAST + spread
    ranges = [(0.0, mean - least), (mean + least, 255.0)]
    usable = [(low, high) for low, high in ranges if high > low]
    if usable:
        low, high = usable[int(rng.integers(len(usable)))]
        luma = rng.uniform(low, high)
    else:
        luma = 255.0 if mean < 127.5 else 0.0
    colour = _colour_of_luma(luma, rng)
    alpha = coverage[..., None] * np.float32(rng.uniform(0.88, 1.0))
    under = canvas[top : top + height, left : left + width]
    canvas[top : top + height, left : left + width] = under * (1 - alpha) + colour * alpha


def _colour_of_luma(luma: float, rng: np.random.Generator) -> Floats:
    """A random hue at exactly this luma, mixed with as little grey as keeps it inside RGB."""
    tint = rng.uniform(-1.0, 1.0, size=3) * 160.0
    tint -= tint @ LUMA
    room = np.where(tint > 0, (255.0 - luma) / np.maximum(tint, 1e-6), luma / np.maximum(-tint, 1e-6))
    return np.asarray(luma + tint * min(1.0, float(room.min())), dtype=np.float32)


def _visible_box(coverage: Floats, left: int, top: int) -> Box:
    """Edges of the pixels that show ink, right and bottom exclusive."""
    rows, columns = np.flatnonzero(coverage.max(axis=1) >= VISIBLE), np.flatnonzero(coverage.max(axis=0) >= VISIBLE)
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1
