"""Images are told by their content, whatever they are called."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from yolov7.data.decode import decode_image
from yolov7.data.image_kind import DAMAGED, kind_of, kind_of_file
from yolov7.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def saved(kind: str, **settings) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **settings)
    return file.getvalue()


def encoded(suffix: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def brand(*brands: bytes) -> bytes:
    body = brands[0] + b"\0\0\0\0" + b"".join(brands[1:])
    return (8 + len(body)).to_bytes(4, "big") + b"ftyp" + body + bytes(64)


READ = {
    "JPEG": saved("JPEG"), "PNG": saved("PNG"), "GIF": saved("GIF"), "WebP": saved("WEBP"), "BMP": saved("BMP"),
    "TIFF": saved("TIFF"), "TIFF, large": saved("TIFF", big_tiff=True), "AVIF": saved("AVIF"),
    "JPEG 2000": saved("JPEG2000"), "JPEG 2000, bare": saved("JPEG2000", no_jp2=True), "PNM": saved("PPM"),
    "PFM": encoded(".pfm", PIXELS[..., 0] / np.float32(255)), "Sun raster": encoded(".ras", PIXELS),
    "Radiance HDR": encoded(".hdr", PIXELS / np.float32(255)),
    "PAM": b"P7\nWIDTH 2\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(range(6)),
}  # fmt: skip
UNREAD = {
    "HEIC": brand(b"heic", b"mif1"), "HEIC, by another brand": brand(b"mif1", b"heic"), "JPEG XR": b"II\xbc\1",
    "JPEG XL": b"\xff\x0a" + bytes(9),
    "JPEG XL, boxed": b"\0\0\0\x0cJXL \r\n\x87\n", "OpenEXR": b"\x76\x2f\x31\x01" + bytes(9), "PSD": b"8BPS\0\1",
    "QOI": b"qoif" + bytes(9), "DICOM": bytes(128) + b"DICM", "a raw photograph": brand(b"crx "),
    "SVG": b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "ICO": b"\0\0\1\0\1\0", "DDS": b"DDS |", "FITS": b"SIMPLE  = T",
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("called", ["x", "x.dat", "x.jpg", "x.0001", "x.txt"])
def test_a_format_that_is_read_is_told_by_content_and_decodes(name, called):
    kind = kind_of(READ[name][:1024], called)
    assert kind is not None and kind.read and kind.name == name.partition(",")[0]
    image = decode_image(READ[name], path=called)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@pytest.mark.parametrize("name", UNREAD)
@pytest.mark.parametrize("called", ["x", "x.jpg"])
def test_a_format_that_is_not_read_is_named_with_a_remedy(name, called):
    kind = kind_of(UNREAD[name], called)
    assert kind is not None and not kind.read and kind.name == name.partition(",")[0]
    with pytest.raises(DataError, match=f"{kind.name} is not read here; convert it"):
        decode_image(UNREAD[name], path=called)


def test_a_name_decides_only_where_the_content_does_not(tmp_path):
    assert kind_of(READ["TIFF"][:1024], "x.DNG").name == "a raw photograph"
    assert kind_of(bytes(40), "x.TGA").name == "TGA"
    assert kind_of(b"hello", "x.JFIF") == DAMAGED
    assert kind_of_file(tmp_path / "missing.png") == DAMAGED
    for content, name in [
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "._x.jpg"), (b"BMW 3 series\n" * 9, "classes.txt"), (b"P5 is a class", "x.txt"),
        (b"0 0.5 0.5 0.2 0.2\n", "a.txt"), (b"\xd0\xcf\x11\xe0", "Thumbs.db"), (b"\0\0\0\1Bud1", ".DS_Store"),
        (b"<annotation/>", "a.xml"), (brand(b"isom", b"mp42"), "clip.mp4"), (b"", "empty"),
    ]:  # fmt: skip
        assert kind_of(content, name) is None, name


def test_transparency_that_a_pam_reader_gets_wrong_is_refused():
    with pytest.raises(DataError, match="transparency is not read here; convert it to PNG"):
        decode_image(b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n\1\2\3\4")
