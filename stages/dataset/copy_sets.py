"""Copy a set of annotated images into the pipeline's layout.

The records are COCO's, whatever the format was, and stay as they are. Images keep their bytes, with two exceptions: an
EXIF orientation is applied, and images that programs decode in different ways (CMYK, more than 8 bits, several pictures
in a file, unusual formats) become plain 8-bit RGB, so that no later stage has to handle them. Both are decoded in a
sandbox (`stages.images.plain`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from stages.dataset.layout import SourceReport, annotations_file, images_folder
from stages.dataset.originals import note_copies_apart
from stages.images.depth import Depth, decide, is_deep
from stages.images.plain import Rewrite, rewrite_all
from yolov7.data.depth import PixelRange
from yolov7.data.flags import flag_notes
from yolov7.data.formats.coco import CocoAnnotations, Record, write_coco
from yolov7.data.header import MAX_PIXELS, ImageHeader, read_header
from yolov7.data.image_kind import ImageKind, kind_of_file
from yolov7.data.orientation import UPRIGHT
from yolov7.data.sources.image_set import ImageSet, locate
from yolov7.errors import DataError
from yolov7.text import listed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _File:
    """One image file to copy."""

    source: Path
    target: Path
    record: Record
    header: ImageHeader | None


def copy_sets(
    sets: Mapping[str, ImageSet],
    folder: Path,
    *,
    whole: ImageSet | None = None,
    pixel_range: PixelRange | None = None,
) -> SourceReport:
    """Copy train, val and, if given, test into `folder`.

    `whole`: the set that they are parts of; notes are then about the whole. `pixel_range`: of images with more than 8
    bits a channel; by default it is decided over all sets. Raises :class:`DataError` for missing image files, for file
    names that lead out of the image folder, for images with more pixels than are decoded, and for images that break the
    limits of the sandbox. The validate stage judges the rest.
    """
    files = {split: _files(one, folder, split) for split, one in sets.items()}
    deep = [file for part in files.values() for file in part if is_deep(file.header)]
    depth = decide([(file.record["file_name"], file.source) for file in deep], pixel_range)
    rewritten = {split: _copy_set(one, folder, split, files[split], depth) for split, one in sets.items()}
    turned = {split: sum(map(_is_turned, part)) for split, part in rewritten.items()}
    if whole is None:
        notes = [
            f"{split}: {note}" for split, one in sets.items() for note in _notes(one, files[split], rewritten[split])
        ]
    else:
        notes = _notes(whole, [f for part in files.values() for f in part], [f for p in rewritten.values() for f in p])
    names = {split: [record["file_name"] for record in one.coco.images] for split, one in sets.items()}
    notes += note_copies_apart(names)
    report = SourceReport(turned_upright=turned, notes=(*notes, *depth.notes), pixel_range=depth.describe())
    if "test" in sets:
        return report
    logger.warning("no test split is given: the val split also gives the reported figures")
    shutil.copytree(folder / "val", folder / "test")
    return replace(report, test_is_val=True, turned_upright={**turned, "test": turned["val"]})


def _files(one: ImageSet, folder: Path, split: str) -> list[_File]:
    """The image files of one split with their headers, once each, even if two records name one: validation reports
    that."""
    target = images_folder(folder, split)
    records = {
        target / PurePosixPath(record["file_name"]): (path, record) for path, record in locate(one.coco, one.root)
    }
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        headers = pool.map(lambda path: read_header(path), [source for source, _ in records.values()])
        files = [
            _File(source, place, record, header)
            for (place, (source, record)), header in zip(records.items(), headers, strict=True)
        ]
    _refuse_huge(files, one.coco.path)
    return files


def _copy_set(one: ImageSet, folder: Path, split: str, files: Sequence[_File], depth: Depth) -> list[_File]:
    """Copy one split; returns the files that were rewritten."""
    images_folder(folder, split).mkdir(parents=True)
    for parent in {file.target.parent for file in files}:
        parent.mkdir(parents=True, exist_ok=True)
    special = [file for file in files if not _is_plain(file.header)]
    written = rewrite_all([_rewrite(file, depth) for file in special])
    rewritten = [file for file, done in zip(special, written, strict=True) if done]
    # Undecodable images are copied: validation names them.
    left = {file.target for file in files} - {file.target for file in rewritten}
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        list(pool.map(lambda file: _copy_image(file, link=one.disposable), [f for f in files if f.target in left]))
    write_coco(annotations_file(folder, split), one.coco)
    return rewritten


def _notes(one: ImageSet, files: Sequence[_File], rewritten: Sequence[_File]) -> list[str]:
    """All that is told about one set."""
    flags = flag_notes(one.coco, one.source)
    return [*one.notes, *flags, *_converted_note(rewritten), *_unread_note(files, rewritten), *_case_note(one.coco)]


def _is_turned(file: _File) -> bool:
    return file.header is not None and file.header.orientation != UPRIGHT


def _is_plain(header: ImageHeader | None) -> bool:
    return header is not None and header.orientation == UPRIGHT and header.peculiarity is None


def _refuse_huge(files: Sequence[_File], path: Path) -> None:
    """Raise :class:`DataError` naming images that claim more pixels than are decoded."""
    huge = [file for file in files if file.header is not None and file.header.width * file.header.height > MAX_PIXELS]
    if not huge:
        return
    claims = [
        f"image {file.record['id']}: {file.record['file_name']!r} claims {file.header.width} x {file.header.height}"
        for file in huge
        if file.header is not None
    ]
    message = (
        f"{len(huge)} images have more than the {MAX_PIXELS:,} pixels that are decoded: {listed(claims, joint='; ')}"
    )
    raise DataError(f"{message}; crop, scale or remove them", path=path)


def _rewrite(file: _File, depth: Depth) -> Rewrite:
    """The rewrite of an image to upright, plain RGB.

    The annotations decide which way is up: if they were drawn on the pixels as stored (the record has the stored size,
    not that of the turned image), the pixels stay and only the flag is dropped.
    """
    header, undo = file.header, UPRIGHT
    if header is not None and header.lies_on_its_side:
        size = (file.record["width"], file.record["height"])
        if size == (header.width, header.height) != (header.height, header.width):
            undo = header.orientation
    pixel_range = depth.range if is_deep(header) else None
    return Rewrite(file.source, file.target, None if header is None else header.format, undo, pixel_range)


def _copy_image(file: _File, *, link: bool) -> None:
    try:
        if link:
            with contextlib.suppress(OSError):  # another file system, or one without links
                os.link(file.source, file.target)
                return
        shutil.copyfile(file.source, file.target)
    except OSError as error:
        record = f"image {file.record['id']}"
        raise DataError(f"cannot be copied: {error.strerror}", path=file.source, record=record) from None


def _converted_note(rewritten: Sequence[_File]) -> Iterator[str]:
    """A note per reason on the images that were converted, turned ones apart."""
    reasons: dict[str, list[str]] = {}
    for file in rewritten:
        reason = "an unusual format" if file.header is None else file.header.peculiarity
        if reason is not None:
            reasons.setdefault(reason, []).append(file.record["file_name"])
    for reason, names in reasons.items():
        yield f"{len(names)} images were converted to 8-bit RGB ({reason}): {listed(list(map(repr, names)))}"


def _unread_note(files: Sequence[_File], rewritten: Sequence[_File]) -> Iterator[str]:
    """A note on images of formats that are not read: they are copied, and validation reports each."""
    done = {file.target for file in rewritten}
    found: dict[ImageKind, list[str]] = {}
    for file in files:
        if file.header is None and file.target not in done:
            kind = kind_of_file(file.source)
            if kind is not None and not kind.read:
                found.setdefault(kind, []).append(file.record["file_name"])
    for kind, names in found.items():
        yield f"{len(names)} images: {kind.advice}: {listed(list(map(repr, names)))}"


def _case_note(coco: CocoAnnotations) -> Iterator[str]:
    """A note on file names that clash on systems that ignore case."""
    spellings: dict[str, set[str]] = {}
    for record in coco.images:
        spellings.setdefault(record["file_name"].casefold(), set()).add(record["file_name"])
    clashes = [sorted(names) for names in spellings.values() if len(names) > 1]
    if clashes:
        shown = listed([" and ".join(map(repr, names)) for names in clashes])
        yield f"{len(clashes)} file names differ only in case and clash on other systems: {shown}"
