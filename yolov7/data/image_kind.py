"""The files that are images, told by their content: one list for every source of data and for prediction.

Names lie: phones save HEIC as `.jpg`, browsers save JPEG as `.jfif`, and cameras number files in place of an extension.
A name counts only where the content does not tell: a file called `.jpg` is one that should have been an image.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

# fmt: off
SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif",
        ".tiff", ".btf", ".tf8", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf", ".jpm", ".pnm",
        ".ppm", ".pgm", ".pbm", ".pam", ".pxm", ".pfm", ".hdr", ".pic", ".rgbe", ".ras", ".sr",
    }
)
# fmt: on
"""Usual extensions of the formats that are read."""

READ = "JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, JPEG 2000, PNM, PAM, PFM, Radiance HDR and Sun raster"
"""The formats that are read, for messages."""

# fmt: off
_RAW = frozenset(
    {
        ".dng", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".cr2", ".cr3", ".crw", ".pef", ".iiq", ".3fr", ".raf",
        ".orf", ".rw2", ".erf", ".mef", ".mos",
    }
)
# fmt: on
_ONLY_BY_NAME = {".tga": "TGA", ".pcx": "PCX", ".heic": "HEIC", ".heif": "HEIC", ".jxl": "JPEG XL", ".exr": "OpenEXR"}
"""Formats that are not read, by extension, where the content does not tell."""

_START = 1024
"""Bytes that tell every format."""

_READ_HERE: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"P7\n", "PAM"),
)
_NOT_READ: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (b"II*\0\x10\0\0\0CR", "a raw photograph"),
    (b"IIRO", "a raw photograph"),
    (b"IIRS", "a raw photograph"),
    (b"MMOR", "a raw photograph"),
    (b"IIU\0", "a raw photograph"),
    (b"FUJIFILMCCD-RAW", "a raw photograph"),
    (b"\0MRM", "a raw photograph"),
    (b"FOVb", "a raw photograph"),
    (b"II\xbc", "JPEG XR"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"8BPS", "PSD"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"\x01\xda", "SGI"),
    (b"icns", "ICNS"),
    (b"\0\0\x01\0", "ICO"),
    (b"FLIF", "FLIF"),
    (b"BPG\xfb", "BPG"),
    (b"AT&TFORM", "DjVu"),
    (b"gimp xcf", "XCF"),
    (b"SIMPLE  =", "FITS"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
)
_BRANDS: Mapping[bytes, str] = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"miaf"), "HEIC"),
    b"crx ": "a raw photograph",
}
"""Of ISO base media files (ISO/IEC 23008-12); AVIF files list `mif1` too."""
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_APPLE_DOUBLE = b"\0\x05\x16\x07"
"""Start of the `._` files that macOS writes beside others: they have the name of an image, and no image."""
_PNM = re.compile(rb"P[1-6]\s+(#[^\n]*\n\s*)*[0-9]")
_PFM = re.compile(rb"P[Ff]\s+(#[^\n]*\n\s*)*[0-9]")
_SVG = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]", re.DOTALL)


@dataclass(frozen=True)
class ImageKind:
    """The format of an image file."""

    name: str
    """For messages: `JPEG`, `HEIC`."""
    read: bool
    """It is read here."""

    @property
    def advice(self) -> str:
        """The reason and the remedy for a format that is not read."""
        return f"{self.name} is not read here; convert it to JPEG, PNG or TIFF"


DAMAGED = ImageKind("damaged", read=True)
"""Named as an image, but with another content: reading it says so."""


def kind_of(start: bytes, name: str | os.PathLike[str] = "") -> ImageKind | None:
    """The format of an image by its first bytes (1 KiB tells all); None for a file that is not an image.

    `name` decides for raw photographs, which look like TIFF, and where the content is of no known format.
    """
    suffix = PurePath(os.fspath(name)).suffix.lower()
    if start.startswith(_APPLE_DOUBLE):
        return None
    by_content = _by_content(start)
    if by_content is not None and by_content.name == "TIFF" and suffix in _RAW:
        return ImageKind("a raw photograph", read=False)
    if by_content is not None:
        return by_content
    if suffix in _RAW:
        return ImageKind("a raw photograph", read=False)
    if suffix in _ONLY_BY_NAME:
        return ImageKind(_ONLY_BY_NAME[suffix], read=False)
    return DAMAGED if suffix in SUFFIXES else None


def kind_of_file(path: Path) -> ImageKind | None:
    """The format of an image file, as :func:`kind_of`; by its name alone where it cannot be opened."""
    start = b""
    with contextlib.suppress(OSError):
        if path.is_file():  # opening a pipe would block
            with path.open("rb") as file:
                start = file.read(_START)
    return kind_of(start, path)


def _by_content(start: bytes) -> ImageKind | None:
    if start[4:8] == b"ftyp":
        return _by_brand(start)
    for magic, name in _NOT_READ:  # the more exact ones
        if start.startswith(magic):
            return ImageKind(name, read=False)
    for magic, name in _READ_HERE:
        if start.startswith(magic):
            return ImageKind(name, read=True)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return ImageKind("WebP", read=True)
    if start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in _BMP_HEADERS:
        return ImageKind("BMP", read=True)
    if _PNM.match(start):
        return ImageKind("PNM", read=True)
    if _PFM.match(start):
        return ImageKind("PFM", read=True)
    if start[128:132] == b"DICM":
        return ImageKind("DICOM", read=False)
    return ImageKind("SVG", read=False) if _SVG.match(start) else None


def _by_brand(start: bytes) -> ImageKind | None:
    """An ISO base media file (ISO/IEC 14496-12, section 4.3): brands that images have; videos have others."""
    length = min(int.from_bytes(start[:4], "big"), len(start))
    brands = [start[8:12], *(start[at : at + 4] for at in range(16, length - 3, 4))]
    names = {_BRANDS[brand] for brand in brands if brand in _BRANDS}
    for name in ("AVIF", "a raw photograph", "HEIC"):
        if name in names:
            return ImageKind(name, read=name == "AVIF")
    return None
