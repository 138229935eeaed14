"""Depth and orientation of formats that OpenCV leaves to its caller."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from yolov7.data.decode import decode_image
from yolov7.data.depth import PixelRange, is_dark_and_deep
from yolov7.data.orientation import turn_back
from yolov7.errors import ConfigError, DataError

RAMP = np.linspace(0, 4095, 64 * 80).reshape(64, 80)


def encoded(suffix, pixels):
    return cv2.imencode(suffix, pixels)[1].tobytes()


@pytest.mark.parametrize(
    "data",
    [
        encoded(".png", RAMP.astype(np.uint16)),
        encoded(".tiff", RAMP.astype(np.uint16)),
        encoded(".tiff", RAMP.astype(np.int16)),
        encoded(".tiff", RAMP.astype(np.int32)),
        encoded(".tiff", RAMP.astype(np.float32)),
        encoded(".tiff", RAMP.astype(np.float64)),
        encoded(".pgm", RAMP.astype(np.uint16)),
        encoded(".pfm", RAMP.astype(np.float32)),
        encoded(".jp2", RAMP.astype(np.uint16)),
        b"P5\n# twelve bits\n80 64\n4095\n" + RAMP.astype(">u2").tobytes(),
    ],
    ids=["PNG", "TIFF", "TIFF int16", "TIFF int32", "TIFF float", "TIFF double", "PGM", "PFM", "JP2", "PGM of 12 bits"],
)
def test_values_are_scaled_by_the_range(data):
    image = decode_image(data, pixel_range=PixelRange(0, 4095))
    assert image.shape == (64, 80, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image[..., 1], RAMP / 4095 * 255, atol=0.6)
    assert decode_image(data, pixel_range=PixelRange(1000, 2000)).min() == 0


def test_eight_bits_stay_as_they_are_whatever_the_range():
    pixels = np.random.default_rng(1).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    for suffix in (".png", ".bmp", ".tiff", ".jpg"):
        data = encoded(suffix, pixels)
        assert np.array_equal(decode_image(data, pixel_range=PixelRange(0, 4095)), decode_image(data))


def test_values_that_no_reader_can_scale_need_a_range():
    for pixels in (RAMP.astype(np.float32), (RAMP - 1000).astype(np.int16), RAMP.astype(np.int32)):
        with pytest.raises(DataError, match=r"holds values from -?\d+ to \d+, not 8 bits: a range of values"):
            decode_image(encoded(".tiff", pixels))
    unit = decode_image(encoded(".tiff", (RAMP / 4095).astype(np.float32)))
    np.testing.assert_allclose(unit[..., 0], RAMP / 4095 * 255, atol=0.6)
    holes = np.where(RAMP > 4000, np.nan, RAMP / 4095).astype(np.float32)
    assert decode_image(encoded(".tiff", holes)).max() <= 250


def test_a_colour_image_of_floating_values_keeps_its_colours():
    colours = np.dstack([np.full((4, 5), value, np.float32) for value in (0.0, 0.5, 1.0)])  # BGR
    for suffix in (".tiff", ".pfm"):
        assert decode_image(encoded(suffix, colours))[1, 1].tolist() == [255, 128, 0]


def test_a_pnm_of_fewer_than_8_bits_is_scaled_as_it_declares():
    assert decode_image(b"P5\n2 1\n15\n\x00\x0f")[0, :, 0].tolist() == [0, 255]


def test_a_range_that_is_none_is_refused():
    for low, high in ((1, 1), (2, 1), (0, float("nan")), (0, float("inf"))):
        with pytest.raises(ConfigError, match="the smaller first"):
            PixelRange(low, high)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_a_deep_image_that_came_out_nearly_black_is_noticed(suffix):
    for factor, dark in ((1, True), (16, False)):
        data = encoded(suffix, (RAMP * factor).astype(np.uint16))
        assert is_dark_and_deep(data, decode_image(data)) is dark
    night = encoded(".png", np.full((9, 9), 3, np.uint8))
    assert not is_dark_and_deep(night, decode_image(night))


def corners() -> Image.Image:
    pixels = np.full((24, 40, 3), 40, np.uint8)
    pixels[:12, :20], pixels[12:, 20:], pixels[12:, :20] = (220, 30, 30), (30, 30, 220), (30, 220, 30)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "JPEG2000"])
def test_every_orientation_of_every_format_is_applied_and_undone(kind, orientation):
    exif, same, file = Image.Exif(), Image.Exif(), io.BytesIO()
    exif[0x0112] = same[0x0112] = orientation
    if kind == "JPEG2000":
        corners().save(file, kind)
        body = b"JpgTiffExif->JP2" + exif.tobytes().removeprefix(b"Exif\0\0")
        file.write(struct.pack(">I4s", 8 + len(body), b"uuid") + body)
    else:
        corners().save(file, kind, exif=exif)
    image = decode_image(file.getvalue())
    plain = io.BytesIO()
    corners().save(plain, "PNG", exif=same)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(plain)).convert("RGB"))
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 9
    assert np.array_equal(turn_back(upright, orientation), np.asarray(corners()))


def test_boxes_that_lie_do_no_harm():
    file = io.BytesIO()
    corners().save(file, "AVIF", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
    data = file.getvalue()
    for at in range(8, 400, 3):
        broken = data[:at] + b"\xff\xff" + data[at + 2 :]
        try:
            decode_image(broken)
        except DataError:
            continue
