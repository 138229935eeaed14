"""The image of every XML file: by the file's own name, its `<filename>`, `<folder>` and `<path>`, compared."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from yolov7.data.formats.voc import VocImage
from yolov7.data.sources.file_names import FileNames
from yolov7.data.sources.image_folder import ImageFiles, shown, stem_of
from yolov7.errors import DataError


@dataclass
class MatchedImages:
    """The images of many XML files."""

    names: list[str] = field(default_factory=list)
    """The image of every file, in their order."""
    notes: list[str] = field(default_factory=list)
    """Facts of the files that disagree."""


@dataclass
class _Disagreements:
    """Files that name one image in one place and another one in another, in words."""

    two_images: list[str] = field(default_factory=list)
    no_such_image: list[str] = field(default_factory=list)
    by_file_name: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)


class _Images:
    """The images of a folder, found by stems and by written names."""

    def __init__(self, names: Sequence[str], root: Path) -> None:
        self.exact = set(names)
        self.by_name = FileNames(names, root=root)
        self.stems: dict[str, list[str]] = defaultdict(list)
        self._by_base: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self.stems[_stem(name)].append(name)
            self._by_base[PurePosixPath(_stem(name)).name].append(name)

    def of_stem(self, own: str) -> list[str]:
        """Images of the same name below the folder; failing that, of the same base name in any subfolder."""
        return self.stems.get(_stem(own)) or self._by_base.get(PurePosixPath(_stem(own)).name, [])

    def of_file_name(self, own: str, file: VocImage) -> str | None:
        """The image that `<filename>` names, with `<folder>` where there are several; None if there is none."""
        last = _last(file.file_name)
        if not last:
            return None
        beside = str(PurePosixPath(own).parent / last)
        for candidate in (beside, last):
            if candidate in self.exact:
                return candidate
        for written in (file.file_name, f"{file.folder}/{last}", last):
            match = self.by_name.find(written)
            if match.name is not None:
                return match.name
        for stem in (_composed(beside), _composed(last), _stem(beside), _stem(last)):
            if len(self.stems.get(stem, ())) == 1:
                return self.stems[stem][0]
        return None

    def elsewhere(self, file: VocImage, chosen: str) -> str | None:
        """Another image that exists and that `<path>`, or `<folder>` with `<filename>`, names."""
        last = _last(file.full_path)
        for written in (last, f"{_last(file.folder)}/{_last(file.file_name)}"):
            if written in self.exact and written != chosen and _last(written) != _last(chosen):
                return written
        return None


def match_images(
    own_names: Sequence[str],
    files: Sequence[VocImage],
    images: ImageFiles,
    root: Path,
    image_by: Literal["stem", "filename"],
) -> MatchedImages:
    """The image of every XML file.

    Raises :class:`DataError` naming the files that have no image, and those that have two of their own name.
    """
    known = _Images(images.names, root)
    result, found = MatchedImages(), _Disagreements()
    missing: list[str] = []
    ambiguous: list[str] = []
    for own, file in zip(own_names, files, strict=True):
        same, named = known.of_stem(own), known.of_file_name(own, file)
        if named is not None and (named in same or not same or image_by == "filename"):
            chosen = named
        elif len(same) == 1:
            chosen = same[0]
        elif same:
            ambiguous.append(f"{own} (filename {file.file_name or 'not given'}) could be {' or '.join(same[:5])}")
            continue
        else:
            several = known.by_name.find(_last(file.file_name)).candidates if file.file_name else ()
            words = f"{own} (filename {file.file_name or 'not given'})"
            if several:
                ambiguous.append(f"{words} could be {' or '.join(several[:5])}")
            else:
                missing.append(words)
            continue
        result.names.append(chosen)
        _compare(own, file, known, named, chosen, found)
    reasons = []
    if missing:
        instead = images.instead({stem_of(own) for own in own_names})
        reasons.append(f"{len(missing)} of {len(files)} XML files have no image here: {shown(missing)}{instead}")
    if ambiguous:
        reasons.append(f"{len(ambiguous)} XML files have more than one image here: {shown(ambiguous)}")
    if reasons:
        raise DataError("; ".join(reasons), path=root)
    result.notes = _notes(found, image_by)
    return result


def _compare(own: str, file: VocImage, known: _Images, named: str | None, chosen: str, found: _Disagreements) -> None:
    same = known.of_stem(own)
    written = _last(file.file_name)
    agrees = not written or _base_stem(own) in (_composed(written), _stem(written)) or named in same
    if named is not None and same and named not in same:
        found.two_images.append(f"{own} (filename {written}): {chosen}")
    elif named is None and not agrees:
        found.no_such_image.append(f"{own} (filename {written}): {chosen}")
    elif not same and not agrees:
        found.by_file_name.append(f"{own} (filename {written})")
    other = known.elsewhere(file, chosen)
    if other is not None and other != named:
        found.elsewhere.append(f"{own}: {chosen}, not {other}")


def _notes(found: _Disagreements, image_by: str) -> list[str]:
    notes: list[str] = []
    if found.two_images:
        rule = "their own name counts" if image_by == "stem" else "<filename> counts"
        notes.append(
            f"{len(found.two_images)} XML files name another image by <filename> than by their own name; {rule} "
            f"(data.voc.image_by): {shown(found.two_images)}"
        )
    if found.no_such_image:
        notes.append(
            f"{len(found.no_such_image)} XML files have a <filename> that is not an image here; the image of their own "
            f"name was taken: {shown(found.no_such_image)}"
        )
    if found.by_file_name:
        notes.append(
            f"{len(found.by_file_name)} XML files have no image of their own name; that of <filename> was taken: "
            f"{shown(found.by_file_name)}"
        )
    if found.elsewhere:
        notes.append(
            f"{len(found.elsewhere)} XML files name another image by <path> or <folder>; it was not taken: "
            f"{shown(found.elsewhere)}"
        )
    return notes


def _base_stem(own: str) -> str:
    return PurePosixPath(_stem(own)).name


def _stem(name: str) -> str:
    """The stem in composed letters: an archive of a Mac may have those of images or of labels decomposed."""
    return _composed(stem_of(name))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _last(written: str) -> str:
    return PurePosixPath(written.replace("\\", "/")).name
