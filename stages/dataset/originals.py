"""Augmented copies of one original in several splits: the figures on val and test are then too good."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from yolov7.text import listed

_COPY = re.compile(r"(?:.*/)?([^/]+)\.rf\.[0-9a-f]{32}(?:\.[^./]+)?")
"""Roboflow's name of a version of an image: original, hash, extension."""


def note_copies_apart(splits: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """A note on originals whose copies are in more than one split, by the file names of each split."""
    places: dict[str, list[str]] = {}
    for split, names in splits.items():
        for original in {match[1] for match in map(_COPY.fullmatch, names) if match is not None}:
            places.setdefault(original, []).append(split)
    apart = sorted((original, found) for original, found in places.items() if len(found) > 1)
    if not apart:
        return
    shown = listed([f"{original!r} ({', '.join(found)})" for original, found in apart])
    yield (
        f"{len(apart)} originals have copies (Roboflow: NAME.rf.HASH) in more than one split, so the figures will be "
        f"too good: {shown}; give all images as one set, and data.split.group_pattern: '([^/]*)[.]rf[.]'"
    )
