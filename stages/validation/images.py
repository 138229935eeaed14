"""Every image file, decoded to its last pixel in worker processes.

OpenCV fills what a damaged JPEG lacks with grey and returns an image; its decoder does say so, on the error output of
the process. The workers catch what it says there, which finds files cut short as well as files with a hole in them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from stages.image_header import MAX_PIXELS, read_header
from yolov7.errors import DataError

_IMAGES_PER_WORKER = 200
"""A worker takes over a second to start; fewer images than this are not worth another one."""
_HARMLESS = ("libpng warning: iCCP", "[")
"""Starts of lines that say nothing about the pixels: colour profiles, OpenCV's own log."""


@dataclass(frozen=True)
class ImageCheck:
    """What became of one image file."""

    exists: bool
    defect: str | None = None
    """Why the pixels cannot be trusted."""
    complaint: str | None = None
    """What the decoder said although it delivered every pixel."""
    width: int | None = None
    """Of the decoded image, upright; None where there is none."""
    height: int | None = None


def check_images(paths: Sequence[Path], *, decode: bool) -> list[ImageCheck]:
    """Look at every file; with `decode`, decode it too. One result a path, in the same order.

    Raises :class:`DataError` when a worker dies, as the system ends a process that takes too much memory.
    """
    if not decode:
        return [ImageCheck(exists=path.is_file()) for path in paths]
    if not paths:
        return []
    workers = max(1, min(_processors(), len(paths) // _IMAGES_PER_WORKER))
    # Spawned, not forked: the parent may hold threads, and the child must own its error output.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_catch_error_output) as pool:
        chunk = max(1, min(64, len(paths) // (4 * workers)))
        try:
            return list(pool.map(check_image, paths, chunksize=chunk))
        except BrokenProcessPool:
            message = "a process that decodes images was ended by the system, probably for lack of memory"
            raise DataError(message, path=_common_folder(paths)) from None


def _processors() -> int:
    """Processors this process may use; not every system can tell, and then those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _common_folder(paths: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([str(path.parent) for path in paths]))


def _catch_error_output() -> None:
    """In a worker: what C libraries write to the error output goes to a file that is read after every image."""
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)


def check_image(path: Path) -> ImageCheck:
    """Decode one image strictly. Runs in a worker whose error output is a file (see above)."""
    from yolov7.data.decode import decode_image

    try:
        data = path.read_bytes()
    except OSError as error:
        exists = path.is_file()
        return ImageCheck(exists=exists, defect=f"cannot be read: {error.strerror}" if exists else None)
    header = read_header(path)
    if header is not None and header.width * header.height > MAX_PIXELS:
        claim = f"claims {header.width} x {header.height} pixels, more than the {MAX_PIXELS:,} that are decoded"
        return ImageCheck(exists=True, defect=claim)
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    try:
        image = decode_image(data)
    except DataError as error:
        return ImageCheck(exists=True, defect=str(error))
    said = list(_said())
    lacking = next((line for line in said if "premature" in line.lower()), None)
    height, width = image.shape[:2]
    return ImageCheck(
        exists=True,
        defect=f"pixels are missing and were filled in ({lacking})" if lacking else None,
        complaint=None if lacking or not said else said[0],
        width=width,
        height=height,
    )


def _said() -> Iterator[str]:
    """The lines on the error output since it was last emptied."""
    os.lseek(2, 0, os.SEEK_SET)
    text = os.read(2, 65536).decode("utf-8", "replace")
    for line in text.splitlines():
        if line.strip() and not line.startswith(_HARMLESS):
            yield line.strip()
