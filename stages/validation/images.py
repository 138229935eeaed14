"""Every image file, decoded to its last pixel in worker processes; what was decoded once is remembered by its content.

OpenCV fills what a damaged JPEG lacks with grey and returns an image; its decoder does say so, on the error output of
the process. The workers catch what it says there, which finds files cut short as well as files with a hole in them.
The files are a stranger's: a worker may take little more memory than the largest image that is accepted needs.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from stages.images.header import MAX_PIXELS, read_header
from stages.validation.image_cache import ImageCache
from yolov7.errors import DataError
from yolov7.files import sha256_file

if TYPE_CHECKING:
    from yolov7.data.decode import Image

logger = logging.getLogger(__name__)

_IMAGES_PER_WORKER = 200
"""A worker takes over a second to start; fewer images than this are not worth another one."""
_WORKER_MEMORY = 1 << 30
"""Bytes a worker may take beyond what it holds when it starts; an image of MAX_PIXELS needs half of that."""
_SECONDS = 60.0
"""Processor time one image may take."""
_HARMLESS = ("libpng warning: iCCP", "[")
"""Starts of lines that say nothing about the pixels: colour profiles, OpenCV's own log."""


@dataclass(frozen=True)
class ImageCheck:
    """What became of one image file."""

    exists: bool
    sha256: str | None = None
    """Of the bytes; None where they could not be read or were not looked at."""
    defect: str | None = None
    """Why the pixels cannot be trusted."""
    complaint: str | None = None
    """What the decoder said although it delivered every pixel."""
    width: int | None = None
    """Of the decoded image, upright; None where there is none."""
    height: int | None = None
    format: str | None = None
    """As Pillow names it: JPEG, PNG."""
    mode: str | None = None
    """How the pixels are stored, as Pillow names it: RGB, L, CMYK, I;16."""
    is_animated: bool | None = None
    brightness: float | None = None
    """Mean of the grey image, 0 to 255."""
    contrast: float | None = None
    """Standard deviation of the grey image."""
    hash: str | None = None
    """Difference hash, hexadecimal (see `stages.images.near_duplicates`)."""


@dataclass(frozen=True)
class CheckedImages:
    """The results, one a path in the same order, and how many files were decoded to get them."""

    checks: list[ImageCheck]
    decoded: int


def check_images(paths: Sequence[Path], *, decode: bool, cache: Path | None = None) -> CheckedImages:
    """Look at every file; with `decode`, decode those whose content is not known from `cache` or another path."""
    if not decode:
        return CheckedImages([ImageCheck(exists=path.is_file()) for path in paths], 0)
    with ThreadPoolExecutor(min(8, 2 * _processors())) as pool:
        sums = list(pool.map(_sha256, paths))
    first: dict[str, Path] = {}
    for path, digest in zip(paths, sums, strict=True):
        if digest is not None:
            first.setdefault(digest, path)
    with ImageCache(cache) as known:
        results = {digest: ImageCheck(**found) for digest, found in known.read(first).items()}
        unknown = {digest: path for digest, path in first.items() if digest not in results}
        for digest, check in zip(unknown, _decode_all(list(unknown.values())), strict=True):
            results[digest] = check
            known.add(digest, check)
    checks = [
        _unreadable(path) if digest is None else replace(results[digest], sha256=digest)
        for path, digest in zip(paths, sums, strict=True)
    ]
    return CheckedImages(checks, len(unknown))


def _sha256(path: Path) -> str | None:
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
    """The results in order. An image that ends its worker is named as what did it."""
    if not paths:
        return
    workers = max(1, min(_processors(), len(paths) // _IMAGES_PER_WORKER))
    done = 0
    try:
        with _pool(workers) as pool:
            for check in pool.map(check_image, paths, chunksize=max(1, min(64, len(paths) // (4 * workers)))):
                done += 1
                yield check
        return
    except BrokenProcessPool:
        logger.warning("an image ended the process that decoded it; the rest is decoded one by one to find it")
    yield from _decode_one_by_one(paths[done:])


def _decode_one_by_one(paths: Sequence[Path]) -> Iterator[ImageCheck]:
    """As :func:`_decode_all`. Raises :class:`DataError` where workers die without any image."""
    pool = _pool(1)
    try:
        for path in paths:
            try:
                pool.submit(os.getpid).result()
            except BrokenProcessPool:
                raise DataError("the processes that decode images end as soon as they start") from None
            try:
                yield pool.submit(check_image, path).result()
            except BrokenProcessPool:
                pool.shutdown()
                pool = _pool(1)
                yield ImageCheck(exists=True, defect="decoding it took too long, too much memory, or crashed")
    finally:
        pool.shutdown()


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the parent may hold threads, and the child must own its error output.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare_worker)


def _processors() -> int:
    """Processors this process may use; not every system can tell, and then those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare_worker() -> None:
    """Catch what C libraries write to the error output in a file that is read after every image; limit memory."""
    import cv2
    import PIL.Image

    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    PIL.Image.MAX_IMAGE_PIXELS = None  # our own limit comes before anything is decoded
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    held = Path("/proc/self/statm")
    if held.is_file():  # systems that cannot tell keep the limit on pixels
        limit = int(held.read_text().split()[0]) * resource.getpagesize() + _WORKER_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def check_image(path: Path) -> ImageCheck:
    """Decode one image strictly. Runs in a worker whose error output is a file (see above)."""
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)  # nobody handles its signal: it ends the process
    try:
        return _check_image(path)
    except OSError as error:
        return ImageCheck(exists=path.is_file(), defect=f"cannot be read: {error.strerror}")
    except MemoryError:
        return ImageCheck(exists=True, defect="takes more memory to read than an image is given")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _check_image(path: Path) -> ImageCheck:
    from yolov7.data.decode import decode_image

    data = path.read_bytes()
    check = _identify(path, data)
    if check.defect is not None:
        return check
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    try:
        image = decode_image(data)
    except DataError as error:
        return replace(check, defect=str(error))
    said = list(_said())
    lacking = next((line for line in said if "premature" in line.lower()), None)
    return replace(
        _measure(check, image, path),
        defect=f"pixels are missing and were filled in ({lacking})" if lacking else None,
        complaint=None if lacking or not said else said[0],
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
        pass  # Pillow does not know it; whether it is an image the decoder decides
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


def _said() -> Iterator[str]:
    """The lines on the error output since it was last emptied."""
    os.lseek(2, 0, os.SEEK_SET)
    text = os.read(2, 65536).decode("utf-8", "replace")
    for line in text.splitlines():
        if line.strip() and not line.startswith(_HARMLESS):
            yield line.strip()
