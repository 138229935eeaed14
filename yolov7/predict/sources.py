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

from yolov7.data.decode import decode_image, read_file
from yolov7.data.depth import PixelRange, is_dark_and_deep
from yolov7.data.image_kind import DAMAGED, READ, kind_of_file
from yolov7.errors import DataError
from yolov7.predict.names import named_for_libraries, readable_names
from yolov7.predict.video_kind import is_named_as_video, is_video
from yolov7.redaction import bare_address

STREAM_TIMEOUT_MS = 10_000
"""Time limit for a stream to answer."""

_COMPLETE = 0.9
"""Share of the announced frames below which a video counts as incomplete."""

_STREAM = re.compile(r"^(rtsp|rtsps|rtmp|rtp|udp|tcp|http|https)://", re.IGNORECASE)

_RANGE = "--pixel-range LOW HIGH"

_LIVE = re.compile(r"^(rtsp|rtsps|rtmp|rtp|udp|tcp)://", re.IGNORECASE)
"""Live streams have no end: one that ends has broken off."""

OnError = Callable[[DataError], None]
OnNote = Callable[[str], None]


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
    pixel_range: PixelRange | None = None
    """Of images with more than 8 bits a channel: the values that become black and white."""
    left_out: tuple[str, ...] = ()
    """Notes on files of the folder that are not predicted."""

    def __len__(self) -> int:
        """Number of images; 0 if unknown (a video, a stream)."""
        return len(self.files)

    @property
    def names(self) -> list[str]:
        """Names of the frames to come; none for a video or stream."""
        return readable_names([file.relative_to(self.root).as_posix() for file in self.files])

    @property
    def stem(self) -> str:
        """Folder name for a video's frames: a plain name for any address, without `..` or slashes."""
        text = f"camera{self.video}" if isinstance(self.video, int) else self.name.rsplit("/", 1)[-1]
        return re.sub(r"[^\w.-]+", "_", text).strip("._")[:100] or "stream"

    def frames(self, on_error: OnError | None = None, on_note: OnNote | None = None) -> Iterator[Frame]:
        """Read image after image. A :class:`DataError` of one image goes to `on_error`; without it, it is raised.

        `on_note` is told, at the end, of images that came out nearly black.
        """
        if self.video is not None:
            return self._frames_of_video(self.video)
        return self._frames_of_files(on_error, on_note or (lambda note: None))

    def _frames_of_files(self, on_error: OnError | None, on_note: OnNote) -> Iterator[Frame]:
        dark: list[str] = []
        for file, name in zip(self.files, self.names, strict=True):
            try:
                data = read_file(file)
                image = self._decode(data, file)
            except DataError as error:
                if on_error is None:
                    raise
                on_error(error)
                continue
            if self.pixel_range is None and is_dark_and_deep(data, image):
                dark.append(name)
            yield Frame(name, str(file), image)
        if dark:
            on_note(
                f"{len(dark)} images have more than 8 bits a channel and are nearly black, {dark[0]!r} among them: give"
                f" the range of values that training used, {_RANGE} (pixel_range in its dataset.json)"
            )

    def _decode(self, data: bytes, file: Path) -> np.ndarray:
        try:
            return decode_image(data, path=file, pixel_range=self.pixel_range)
        except DataError as error:
            if "a range of values" in str(error):
                raise DataError(f"{str(error).removeprefix(f'{file}: ')}: {_RANGE}", path=file) from None
            raise

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
        if announced <= 0 and (isinstance(video, int) or (_LIVE.match(video) and _is_address(video))):
            raise DataError(f"the stream stopped after {number} frames; start again to continue", path=self.name)
        # Some containers estimate the number from the duration.
        if number < _COMPLETE * announced - 1:
            raise DataError(f"ends after {number} of {announced:.0f} frames: cut off, or damaged there", path=self.name)


def open_source(
    source: str | os.PathLike[str], *, exclude: Sequence[Path] = (), pixel_range: PixelRange | None = None
) -> Source:
    """Open an image, a folder (searched recursively), a glob, a video, `rtsp://...` or a camera number.

    A path that exists is a path, whatever it looks like. Images and videos are told by their content. Files below the
    folders in `exclude` (an earlier output, for example) are left out of folders and globs, unless the whole source
    lies in there. `pixel_range`: see :class:`Source`. Raises :class:`DataError` if there is nothing to read, and for
    playlists: they open other files.
    """
    text = os.fspath(source)
    path = Path(text)
    if os.path.isdir(text):  # noqa: PTH112 - no error for names that are too long
        return _images_of(text, path.rglob("*"), path, exclude, pixel_range)
    if os.path.isfile(text):  # noqa: PTH113
        kind = kind_of_file(path)
        if (kind is None or kind == DAMAGED) and is_video(path):
            return Source(text, video=text)
        return Source(text, (path,), path.parent, pixel_range=pixel_range)  # any suffix: the decoder decides
    if _STREAM.match(text):
        return Source(bare_address(text), video=text)
    if text.isdecimal() and text.isascii():
        return Source(f"camera {text}", video=int(text))
    if glob.has_magic(text):
        found = [Path(name) for name in glob.iglob(_literal_start(text), recursive=True)]  # noqa: PTH207 - any root
        roots = {str(file.parent) for file in found}
        root = Path(os.path.commonpath(roots)) if roots else path
        return _images_of(text, found, root, exclude, pixel_range)
    raise DataError("no such image, folder or video, and not a pattern, stream address or camera number", path=text)


def _literal_start(pattern: str) -> str:
    """The pattern with the folders at its start that exist taken as they are: `[` is a letter of many names."""
    parts = pattern.split("/")
    for count in range(len(parts) - 1, 0, -1):
        start = "/".join(parts[:count])
        if start and os.path.isdir(start):  # noqa: PTH112
            return "/".join([glob.escape(start), *parts[count:]])
    return pattern


def _images_of(
    name: str,
    found: Iterator[Path] | Sequence[Path],
    root: Path,
    exclude: Sequence[Path],
    pixel_range: PixelRange | None,
) -> Source:
    """The images among files, by their content; those of formats that are not read are errors of their own later."""
    here = root.resolve()
    shut = [folder.resolve() for folder in exclude]
    shut = [folder for folder in shut if folder != here and folder not in here.parents]
    files: list[Path] = []
    videos: list[str] = []
    for file in sorted(set(found)):
        if not file.is_file() or any(folder in file.resolve().parents for folder in shut):
            continue
        if kind_of_file(file) is not None:
            files.append(file)
        elif is_named_as_video(file):
            videos.append(file.relative_to(root).as_posix())
    note = f"{len(videos)} videos were left out, {videos[0]!r} among them: give each by its name" if videos else ""
    if not files:
        raise DataError(f"no images there (read are {READ}){note and f'; {note}'}", path=name)
    return Source(name, tuple(files), root, pixel_range=pixel_range, left_out=(note,) if note else ())


def _is_address(video: str) -> bool:
    """True for the address of a stream; False for a file, whatever its name."""
    return _STREAM.match(video) is not None and not os.path.isfile(video)  # noqa: PTH113


def _capture(place: str) -> cv2.VideoCapture:
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, STREAM_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, STREAM_TIMEOUT_MS]
    return cv2.VideoCapture(place, cv2.CAP_FFMPEG, limits)


def _open_video(video: str | int, name: str) -> cv2.VideoCapture:
    """Open a video within the time limit, or raise :class:`DataError`; OpenCV's own messages are silenced."""
    address = isinstance(video, str) and _is_address(video)
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        if isinstance(video, int):
            capture = cv2.VideoCapture(video)
        elif address:
            capture = _capture(video)
        else:
            with named_for_libraries(video) as place:
                capture = _capture(place)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if capture.isOpened():
        return capture
    if isinstance(video, int):
        raise DataError("no such camera, or it is in use", path=name)
    if address:
        raise DataError(
            f"the stream does not answer within {STREAM_TIMEOUT_MS // 1000} s, or not with a video", path=name
        )
    raise DataError("not readable as a video", path=name)
