"""Sources of images for prediction: a file, a folder, a glob pattern, a video, a camera or a stream.

A source is checked when it is opened, so that a mistyped path is reported before any work is done. An unreadable image
among many goes to the caller, who decides whether to continue.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from yolov7.data.decode import read_image
from yolov7.errors import DataError
from yolov7.redaction import bare_address

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".jpe", ".jp2", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})

STREAM_TIMEOUT_MS = 10_000
"""Time limit for a stream to answer."""

_COMPLETE = 0.9
"""Share of the announced frames below which a video counts as incomplete."""

_STREAM = re.compile(r"^(rtsp|rtsps|rtmp|rtp|udp|tcp|http|https)://", re.IGNORECASE)

_LIVE = re.compile(r"^(rtsp|rtsps|rtmp|rtp|udp|tcp)://", re.IGNORECASE)
"""Live streams have no end: one that ends has broken off."""

OnError = Callable[[DataError], None]


@dataclass(frozen=True)
class Frame:
    """One image of a source."""

    name: str
    """Unique inside the source and fit for a relative file name: `street/0001.jpg`, or `clip.mp4/000017.jpg`."""
    origin: str
    """The file or stream it comes from."""
    image: np.ndarray
    """uint8 HWC RGB."""


@dataclass(frozen=True)
class Source:
    """An opened source; iterate with :meth:`frames`."""

    name: str
    """For messages: an address without user, password and query, which often hold secrets."""
    files: tuple[Path, ...] = ()
    """Image files by name; empty for a video."""
    root: Path = Path()
    """Folder that frame names are relative to."""
    video: str | int | None = None
    """Video file, stream address or camera number."""

    def __len__(self) -> int:
        """Number of images; 0 if unknown (a video, a stream)."""
        return len(self.files)

    @property
    def names(self) -> list[str]:
        """Names of the frames to come; none for a video or stream."""
        return [file.relative_to(self.root).as_posix() for file in self.files]

    @property
    def stem(self) -> str:
        """Folder name for a video's frames: a plain name for any address, without `..` or slashes."""
        text = f"camera{self.video}" if isinstance(self.video, int) else self.name.rsplit("/", 1)[-1]
        return re.sub(r"[^\w.-]+", "_", text).strip("._")[:100] or "stream"

    def frames(self, on_error: OnError | None = None) -> Iterator[Frame]:
        """Read image after image. A :class:`DataError` of one image goes to `on_error`; without it, it is raised."""
        return self._frames_of_video(self.video) if self.video is not None else self._frames_of_files(on_error)

    def _frames_of_files(self, on_error: OnError | None) -> Iterator[Frame]:
        for file in self.files:
            try:
                image = read_image(file)
            except DataError as error:
                if on_error is None:
                    raise
                on_error(error)
                continue
            yield Frame(file.relative_to(self.root).as_posix(), str(file), image)

    def _frames_of_video(self, video: str | int) -> Iterator[Frame]:
        capture = _open_video(video, self.name)
        stem = self.stem
        number = 0
        try:
            while True:
                ok, frame = capture.read()
                if not ok:
                    break
                yield Frame(f"{stem}/{number:06d}.jpg", self.name, np.ascontiguousarray(frame[:, :, ::-1]))
                number += 1
            announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)  # 0 or less if the container does not say
        finally:
            capture.release()
        if number == 0:
            raise DataError("no frame can be read; is it a video, and a complete one?", path=self.name)
        if announced <= 0 and (isinstance(video, int) or _LIVE.match(video)):
            raise DataError(f"the stream stopped after {number} frames; start again to continue", path=self.name)
        # Some containers estimate the number from the duration.
        if number < _COMPLETE * announced - 1:
            raise DataError(f"ends after {number} of {announced:.0f} frames: cut off, or damaged there", path=self.name)


def open_source(source: str | os.PathLike[str], *, exclude: Sequence[Path] = ()) -> Source:
    """Open an image, a folder (searched recursively), a glob, a video, `rtsp://...` or a camera number.

    Files below the folders in `exclude` (an earlier output, for example) are left out of folders and globs, unless the
    whole source lies in there. Raises :class:`DataError` if there is nothing to read.
    """
    text = os.fspath(source)
    if _STREAM.match(text):
        return Source(bare_address(text), video=text)
    path = Path(text)
    if path.is_dir():
        return _images_of(text, path.rglob("*"), path, exclude)
    if path.is_file():
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return Source(text, video=text)
        return Source(text, (path,), path.parent)  # any suffix: the decoder decides
    if text.isdecimal():
        return Source(f"camera {text}", video=int(text))
    if glob.has_magic(text):
        found = [Path(name) for name in glob.iglob(text, recursive=True)]  # noqa: PTH207 - from any root
        roots = {str(file.parent) for file in found}
        return _images_of(text, found, Path(os.path.commonpath(roots)) if roots else path, exclude)
    raise DataError("no such image, folder or video, and not a pattern, stream address or camera number", path=text)


def _images_of(name: str, found: Iterator[Path] | Sequence[Path], root: Path, exclude: Sequence[Path]) -> Source:
    here = root.resolve()
    shut = [folder.resolve() for folder in exclude]
    shut = [folder for folder in shut if folder != here and folder not in here.parents]
    files = sorted(
        file
        for file in found
        if file.suffix.lower() in IMAGE_SUFFIXES
        and file.is_file()
        and not any(folder in file.resolve().parents for folder in shut)
    )
    if not files:
        raise DataError(f"no images there (looked for {', '.join(sorted(IMAGE_SUFFIXES))})", path=name)
    return Source(name, tuple(files), root)


def _open_video(video: str | int, name: str) -> cv2.VideoCapture:
    """Open a video within the time limit, or raise :class:`DataError`; OpenCV's own messages are silenced."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        if isinstance(video, int):
            capture = cv2.VideoCapture(video)
        else:
            limits = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
                STREAM_TIMEOUT_MS,
                cv2.CAP_PROP_READ_TIMEOUT_MSEC,
                STREAM_TIMEOUT_MS,
            ]
            capture = cv2.VideoCapture(video, cv2.CAP_FFMPEG, limits)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if capture.isOpened():
        return capture
    if isinstance(video, int):
        raise DataError("no such camera, or it is in use", path=name)
    if _STREAM.match(video):
        raise DataError(
            f"the stream does not answer within {STREAM_TIMEOUT_MS // 1000} s, or not with a video", path=name
        )
    raise DataError("not readable as a video", path=name)
