"""Rewrite an image as every program reads it: upright, 8 bits, RGB, one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2

from yolov7.data.decode import decode_image
from yolov7.data.depth import PixelRange
from yolov7.data.header import MAX_PIXELS
from yolov7.data.orientation import UPRIGHT, turn_back
from yolov7.data.sandbox import Died, breaks_out, clear_complaints, complaints, run_limited
from yolov7.errors import DataError

_PER_PROCESS = 16
_JPEG_QUALITY = 95
_LOSSLESS_WEBP = 101
_Encoding = tuple[str, list[int], int]
"""Extension, settings, and the longest side that the encoder takes."""
_BMP: _Encoding = (".bmp", [], 1 << 20)
"""For images that are too long for the others."""
_PNG: _Encoding = (".png", [], 1_000_000)
"""For all other formats: nothing is lost, and every program reads it."""
_ENCODINGS: dict[str | None, _Encoding] = {
    "jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY], 65_500),
    "webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, _LOSSLESS_WEBP], 16_383),
    "bmp": _BMP,
    "tiff": (".tiff", [], 1 << 20),
}

Result = Literal["written", "damaged", "too large"]


@dataclass(frozen=True)
class Rewrite:
    """One image file to rewrite."""

    source: Path
    target: Path
    format: str | None
    """Of the source (`yolov7.data.header`); it is kept where every program reads it."""
    undo_orientation: int = UPRIGHT
    """EXIF orientation to drop instead of applying it: the pixels stay as they are stored."""
    pixel_range: PixelRange | None = None
    """Of images with more than 8 bits a channel (`stages.images.depth`)."""


def rewrite_all(images: Sequence[Rewrite]) -> list[bool]:
    """Write every target, in processes with limits; False where the source is damaged and nothing was written.

    Raises :class:`DataError` naming an image that breaks the limits or its decoder.
    """
    written: list[bool] = []
    for image, result in zip(images, run_limited(rewrite, images, per_process=_PER_PROCESS), strict=True):
        if isinstance(result, Died):
            raise breaks_out(image.source, result)
        if result == "too large":
            message = f"the image claims more pixels than are decoded ({MAX_PIXELS:,}); remove it, or save it smaller"
            raise DataError(message, path=image.source)
        written.append(result == "written")
    return written


def rewrite(image: Rewrite) -> Result:
    """Write one target. Runs under :func:`run_limited`."""
    data = image.source.read_bytes()
    clear_complaints()
    try:
        pixels = decode_image(data, pixel_range=image.pixel_range)
    except DataError as error:
        return _judge(error.__context__)
    # Decoders fill holes with grey and only print a warning: rewritten, the image would pass for a whole one.
    if "premature" in complaints().lower():
        return "damaged"
    if image.undo_orientation != UPRIGHT:  # not by the decoder's flag, which TIFF ignores
        pixels = turn_back(pixels, image.undo_orientation)
    cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR, dst=pixels)
    try:
        _encode(pixels, image)
    except cv2.error as error:
        return _judge(error)
    return "written"


def _encode(pixels: cv2.typing.MatLike, image: Rewrite) -> None:
    extension, settings, longest = _ENCODINGS.get(image.format, _PNG)
    if max(pixels.shape[:2]) > longest:
        extension, settings, longest = _BMP
    encoded, content = cv2.imencode(extension, pixels, settings)
    if not encoded:
        raise MemoryError  # an encoder has no other reason to fail on a decoded image
    image.target.write_bytes(content.tobytes())


def _judge(error: BaseException | None) -> Result:
    """True if a decoder gave up because of the image's size: other defects are for validation to report."""
    if not isinstance(error, cv2.error):
        return "damaged"
    if error.code == cv2.Error.StsNoMem:
        raise MemoryError from None
    return "too large" if "MAX_IMAGE" in error.err else "damaged"  # OpenCV's own limits, which the sandbox sets
