"""Video files, told by their content: playlists in a video's clothes are refused.

FFmpeg chooses its reader by content, and some of its readers open other files and addresses: a text file called
`holiday.mp4` may be a list that plays any file of the disk.
"""

from __future__ import annotations

from pathlib import Path

from yolov7.errors import DataError

_START = 4096
_PACKETS = (0, 4)
"""Places of the first packet of an MPEG transport stream; 4: with time codes."""
_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"moof", b"uuid"})
"""First boxes of MP4 and QuickTime."""
_MAGIC = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"FLV\x01",
    b"OggS",
    b"\0\0\x01\xba",  # MPEG program stream
    b"\0\0\x01\xb3",  # MPEG video
    b"\0\0\x01\xb0",  # MPEG-4 video
    b"\0\0\x01\x09",  # H.264 and HEVC without a container
    b"\0\0\x01\x67",
    b"\0\0\0\x01",
    b"\0\0\x01\x40",
    b"\x06\x0e\x2b\x34",  # MXF
    b"YUV4MPEG2 ",
    b"DKIF",  # IVF
    b"\x1f\x07\0",  # DV
    b".RMF",
    b"nut/multimedia container\0",
)
_NAMES = frozenset(
    {".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv"}
    | {".qt", ".rm", ".ts", ".vob", ".webm", ".wmv", ".y4m", ".3gp", ".3g2"}
)
_LISTS = frozenset({".asx", ".cpl", ".ffconcat", ".m3u", ".m3u8", ".mpd", ".pls", ".ram", ".sdp", ".smil", ".xspf"})


def is_video(path: Path) -> bool:
    """True for a file that is a video by its content, and for one that is named as a video or a playlist.

    Raises :class:`DataError` for the latter, unless its content is a video's: they may open other files.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    if _is_video(start):
        return True
    suffix = path.suffix.lower()
    if not start and suffix in _NAMES:
        raise DataError("the video is empty", path=path)
    if suffix in _NAMES or suffix in _LISTS or _is_playlist(start):
        if _is_playlist(start):
            raise DataError("not a video but a playlist, which opens other files; give those by their names", path=path)
        raise DataError("not readable as a video: of no known format, or damaged", path=path)
    return False


def is_named_as_video(path: Path) -> bool:
    """True for a file whose extension is a video's."""
    return path.suffix.lower() in _NAMES


def _is_video(start: bytes) -> bool:
    if start.startswith(_MAGIC) or start[4:8] in _BOXES:
        return True
    if start[:4] == b"RIFF" and start[8:12] in (b"AVI ", b"AVIX"):
        return True
    for first in _PACKETS:
        length = 188 + first
        packets = range(first, len(start), length)
        if len(packets) > 2 and all(start[at] == 0x47 for at in packets):
            return True
    return False


def _is_playlist(start: bytes) -> bool:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    starts = (b"ffconcat", b"#extm3u", b"[playlist]", b"[reference]", b"v=0", b"<asx", b"<smil", b"<mpd", b"rtsp://")
    marks = (b"<mpd", b"<playlist", b"<asx", b"<smil", b"<compositionplaylist", b"#ext-x-")
    return text.startswith(starts) or any(mark in text for mark in marks if text.startswith((b"<", b"#")))
