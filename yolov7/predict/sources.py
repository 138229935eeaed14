"""Where images to predict come from: a file, a folder, a glob pattern, a video, a camera or a stream.

What the source names is checked when it is opened, so that a mistyped path is reported before any work is done; one bad
image among many is handed to the caller, who decides whether to go on.
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

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".jpe", ".jp2", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})

STREAM_TIMEOUT_MS = 10_000
"""A stream that does not answer within this time is unreachable."""

_COMPLETE = 0.9
"""A video with fewer than this share of the frames it announces is not whole."""

_STREAM = re.compile(r"^(rtsp|rtsps|rtmp|rtp|udp|tcp|http|https)://", re.IGNORECASE)

_LIVE = re.compile(r"^(rtsp|rtsps|rtmp|rtp|udp|tcp)://", re.IGNORECASE)
"""Streams that announce no length have no end either: one that ends has broken off."""

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
    """As it is told: of an address without user, password and query, which often holds a key."""
    files: tuple[Path, ...] = ()
    """Image files, in order of their names; empty for a video."""
    root: Path = Path()
    """Folder that frame names are relative to."""
    video: str | int | None = None
    """Video file, stream address or camera number."""

    def __len__(self) -> int:
        """Number of images; 0 where it is not known beforehand (a video, a stream)."""
        return len(self.files)

    @property
    def names(self) -> list[str]:
        """Names of the frames to come, as far as they are known beforehand (not of a video, a stream)."""
        return [file.relative_to(self.root).as_posix() for file in self.files]

    @property
    def stem(self) -> str:
        """Folder of a video's frames: a plain name, whatever the address is. It leads neither up nor to the root."""
        text = f"camera{self.video}" if isinstance(self.video, int) else self.name.rsplit("/", 1)[-1]
        return re.sub(r"[^\w.-]+", "_", text).strip("._")[:100] or "stream"

    def frames(self, on_error: OnError | None = None) -> Iterator[Frame]:
        """Read image after image. A :class:`DataError` of one image goes to `on_error`, or is raised without one."""
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
            announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)  # 0, or less, where the container does not say
        finally:
            capture.release()
        if number == 0:
            raise DataError("no frame can be read; is it a video, and a complete one?", path=self.name)
        if announced <= 0 and (isinstance(video, int) or _LIVE.match(video)):
            raise DataError(f"the picture has stopped after {number} frames; start again to go on", path=self.name)
        # Some containers only estimate it, from the duration.
        if number < _COMPLETE * announced - 1:
            raise DataError(f"ends after {number} of {announced:.0f} frames: cut off, or damaged there", path=self.name)


def open_source(source: str | os.PathLike[str], *, exclude: Sequence[Path] = ()) -> Source:
    """What `source` names: an image, a folder (searched to the bottom), a glob, a video, `rtsp://...`, a camera number.

    Files below the folders in `exclude` are left out of folders and globs (an earlier output, say), unless the whole
    source lies in there.
    Raises :class:`DataError` where there is nothing to read.
    """
    text = os.fspath(source)
    if _STREAM.match(text):
        return Source(_without_secrets(text), video=text)
    path = Path(text)
    if path.is_dir():
        return _images_of(text, path.rglob("*"), path, exclude)
    if path.is_file():
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return Source(text, video=text)
        return Source(text, (path,), path.parent)  # whatever its suffix: the decoder judges
    if text.isdecimal():
        return Source(f"camera {text}", video=int(text))
    if glob.has_magic(text):
        found = [Path(name) for name in glob.iglob(text, recursive=True)]  # noqa: PTH207 - from any root
        roots = {str(file.parent) for file in found}
        return _images_of(text, found, Path(os.path.commonpath(roots)) if roots else path, exclude)
    raise DataError("no such image, folder or video; nor is it a pattern, a stream or a camera number", path=text)


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


def _without_secrets(address: str) -> str:
    """Scheme, host and path of an address: the user, the password and the query are nobody's who reads a log."""
    scheme, rest = address.split("://", 1)
    host, slash, path = rest.partition("/")
    if "@" in host:
        rest = host.rpartition("@")[2] + slash + path
    elif re.fullmatch(r"(\[[^\]]*\]|[^:?#]*)(:\d*)?([?#].*)?", host) is None:  # a slash inside the password
        rest = rest.rpartition("@")[2]
    return f"{scheme}://{re.split('[?#]', rest, maxsplit=1)[0]}"


def _open_video(video: str | int, name: str) -> cv2.VideoCapture:
    """Open or say why not, within the time limit; OpenCV's own chatter about it is silenced."""
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
