"""Check every image file: decoded to its last pixel in worker processes, with results cached by content.

OpenCV fills the missing part of a damaged JPEG with grey and returns an image; its decoder only prints a warning on
the error output. The sandbox (`yolov7.data.sandbox`) keeps that output, which shows files cut short as well as files
with a hole in them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from stages.validation.image_cache import ImageCache, ImageCheck, stamp_of
from stages.validation.progress import Progress
from yolov7.data.header import MAX_PIXELS, read_header
from yolov7.data.sandbox import Died, clear_complaints, complaints, run_limited
from yolov7.errors import DataError
from yolov7.files import sha256_file

if TYPE_CHECKING:
    from yolov7.data.decode import Image

_IMAGES_PER_PROCESS = 200
"""A process takes over a second to start; fewer images than this are not worth another one."""
_FILES_AT_ONCE = 500
"""Files whose digests are looked up together."""
_HARMLESS = ("libpng warning: iCCP", "[")
"""Starts of lines that say nothing about the pixels: colour profiles, OpenCV's own log."""


@dataclass(frozen=True)
class CheckedImages:
    """The results, one a path in the same order, and how many files were decoded to get them."""

    checks: list[ImageCheck]
    decoded: int


def check_images(paths: Iterable[str | Path], *, decode: bool, cache: Path | None = None) -> CheckedImages:
    """Look at every file; with `decode`, decode those whose content is not known from `cache` or another path.

    A file that has not changed since `cache` was written is not read. What is found goes to `cache` on the way: after
    an interruption the next call resumes.
    """
    if not decode:
        there, missing = ImageCheck(exists=True), ImageCheck(exists=False)
        return CheckedImages([there if Path(path).is_file() else missing for path in paths], 0)
    files = [str(path) for path in paths]
    with ImageCache(cache) as known:
        digests = _take_digests(files, known)
        first: dict[str, str] = {}
        for file, digest in zip(files, digests, strict=True):
            if digest is not None:
                first.setdefault(digest, file)
        results = known.read(first)
        unknown = {digest: Path(file) for digest, file in first.items() if digest not in results}
        progress = Progress("decoding images", len(unknown))
        for digest, check in zip(unknown, _decode_all(list(unknown.values())), strict=True):
            results[digest] = replace(check, sha256=digest)
            known.add(digest, check)
            progress.add()
    checks = [
        _unreadable(Path(file)) if digest is None else results[digest]
        for file, digest in zip(files, digests, strict=True)
    ]
    return CheckedImages(checks, len(unknown))


def _take_digests(files: Sequence[str], known: ImageCache) -> list[str | None]:
    """The sha256 of every file: as remembered where it has not changed, otherwise of its bytes; None if unreadable."""
    digests: list[str | None] = []
    progress = Progress("reading images", len(files))
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        for start in range(0, len(files), _FILES_AT_ONCE):
            some = files[start : start + _FILES_AT_ONCE]
            stamps = list(pool.map(stamp_of, some))
            found: dict[str, str | None] = {**known.digests(some, stamps)}
            changed = [(file, stamp) for file, stamp in zip(some, stamps, strict=True) if file not in found]
            for (file, stamp), digest in zip(changed, pool.map(_sha256, [file for file, _ in changed]), strict=True):
                found[file] = digest
                if stamp is not None and digest is not None:
                    known.add_file(file, stamp, digest)
            digests += [found[file] for file in some]
            progress.add(len(some))
    return digests


def _sha256(path: str) -> str | None:
    try:
        return sha256_file(path)
    except OSError:
        return None


def _unreadable(path: Path) -> ImageCheck:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        exists = path.exists() or path.is_symlink()
        return ImageCheck(exists=path.is_file(), defect=f"cannot be read: {error.strerror}" if exists else None)
    return ImageCheck(exists=True, defect="could not be read to its end")


def _decode_all(paths: Sequence[Path]) -> Iterator[ImageCheck]:
    """The results in order. An image that ends its process is reported as a defect."""
    for check in run_limited(check_image, paths, per_process=_IMAGES_PER_PROCESS):
        if isinstance(check, Died):
            yield ImageCheck(exists=True, defect=f"the process that decoded it {check.why}")
        else:
            yield check


def check_image(path: Path) -> ImageCheck:
    """Decode one image strictly. Runs under :func:`run_limited`."""
    from yolov7.data.decode import decode_image

    try:
        data = path.read_bytes()
    except OSError as error:
        return ImageCheck(exists=path.is_file(), defect=f"cannot be read: {error.strerror}")
    check = _identify(path, data)
    if check.defect is not None:
        return check
    clear_complaints()
    try:
        image = decode_image(data)
    except DataError as error:
        return replace(check, defect=str(error))
    messages = list(_messages())
    lacking = next((line for line in messages if "premature" in line.lower()), None)
    return replace(
        _measure(check, image, path),
        defect=f"pixels are missing and were filled in ({lacking})" if lacking else None,
        complaint=None if lacking or not messages else messages[0],
    )


def _identify(path: Path, data: bytes) -> ImageCheck:
    """Format and mode as the header tells them; a defect where it claims more pixels than are decoded."""
    from PIL import Image

    header = read_header(path)
    size = None if header is None else (header.width, header.height)
    check = ImageCheck(exists=True)
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            size = size or image.size
            animated = bool(getattr(image, "is_animated", False))
            check = replace(check, format=image.format, mode=image.mode, is_animated=animated)
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError):
        pass  # unknown to Pillow; the decoder decides whether it is an image
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        claim = f"claims {size[0]} x {size[1]} pixels, more than the {MAX_PIXELS:,} that are decoded"
        return replace(check, defect=claim)
    return check


def _measure(check: ImageCheck, image: Image, path: Path) -> ImageCheck:
    import cv2

    from stages.images.near_duplicates import difference_hash

    height, width = image.shape[:2]
    mean, deviation = cv2.meanStdDev(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    found = difference_hash(path)
    return replace(
        check,
        width=width,
        height=height,
        brightness=round(float(mean[0][0]), 2),
        contrast=round(float(deviation[0][0]), 2),
        hash=None if found is None else found.tobytes().hex(),
    )


def _messages() -> Iterator[str]:
    """Lines that the decoder has printed, without those that say nothing about the pixels."""
    for line in complaints().splitlines():
        if line.strip() and not line.startswith(_HARMLESS):
            yield line.strip()
