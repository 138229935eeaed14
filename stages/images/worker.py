"""A process that decodes images nobody has vouched for, so that what they do to a decoder stays here.

Started by `stages.images.pool`, never by hand. It reads a job a line from its standard input and answers each with a
line, both JSON. Its memory is limited to what it has after start plus a fixed amount, its processor time per job too:
an image that wants more is refused, or ends this process, and the one that asked knows by which file.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolov7.data.decode import decode_image
from yolov7.errors import DataError

MEMORY = 1 << 30
"""Bytes that decoding, turning and encoding one image may take: enough for the largest that is decoded at all."""
_TOO_MUCH = f"takes more than {MEMORY >> 20} MiB to decode and write again"
_JPEG_QUALITY = 95
_LOSSLESS_WEBP = 101
_ENCODINGS: dict[str, tuple[str, list[int]]] = {
    "jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]),
    "webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, _LOSSLESS_WEBP]),
    "bmp": (".bmp", []),
    "tiff": (".tiff", []),
}
_PNG: tuple[str, list[int]] = (".png", [])
"""What all other formats become: nothing is lost, and every program reads it."""


def main() -> None:
    """Answer jobs until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a C library prints must not pass for an answer
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    with tempfile.TemporaryFile() as complaints:
        os.dup2(complaints.fileno(), 2)
    _limit_memory()
    for line in sys.stdin:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, job["seconds"])  # nobody handles its signal: it ends the process
        answer = _answer(job)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _limit_memory() -> None:
    """Limit the address space; systems that know no such limit keep the one on pixels."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    except (OSError, ValueError):
        return


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return _TASKS[job["task"]](job)
    except MemoryError:
        return {"refused": _TOO_MUCH}
    except cv2.error as error:
        return _judge(error)


def _judge(error: BaseException | None) -> dict[str, Any]:
    """Whether a decoder gave up because of the image's size: other defects are for validation to report."""
    if not isinstance(error, cv2.error):
        return {}
    if error.code == cv2.Error.StsNoMem:
        return {"refused": _TOO_MUCH}
    if "MAX_IMAGE" in error.err:  # OpenCV's own limits, which the pool sets
        return {"refused": "claims more pixels than are decoded"}
    return {}


def _plain(job: dict[str, Any]) -> dict[str, Any]:
    """Write `source` to `target` as it is seen: upright, 8 bits, RGB, one picture; no `done` where it is damaged."""
    data = Path(job["source"]).read_bytes()
    os.ftruncate(2, 0)
    try:
        pixels = decode_image(data)
    except DataError as error:
        return _judge(error.__context__)
    # Decoders fill holes with grey and only say so: written anew, the image would pass for a whole one.
    if b"premature" in os.pread(2, 65536, 0).lower():
        return {}
    if job["as_stored"]:
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if stored is None or stored.shape[:2] == pixels.shape[:2]:
            return {}  # the decoder turns images of this format whatever it is told
        pixels = stored.astype(np.uint8, copy=False)
    else:
        cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR, dst=pixels)
    extension, settings = _ENCODINGS.get(job["format"], _PNG)
    encoded, content = cv2.imencode(extension, pixels, settings)
    if not encoded:
        raise MemoryError  # the only thing an encoder lacks for an image that was decoded
    Path(job["target"]).write_bytes(content.tobytes())
    return {"done": True}


def _hash(job: dict[str, Any]) -> dict[str, Any]:
    """The difference hash of `source`, as text; null where it has none."""
    from stages.images.near_duplicates import difference_hash

    value = difference_hash(Path(job["source"]))
    return {"hash": None if value is None else value.tobytes().hex()}


_TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"plain": _plain, "hash": _hash}


if __name__ == "__main__":
    main()
