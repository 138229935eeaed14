"""The source `voc`: Pascal VOC, a folder of XML files and a folder of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.formats.label_files import collected, raise_together
from yolov7.data.formats.voc import VocImage, read_voc_file, unknown_class, voc_to_coco
from yolov7.data.header import read_header
from yolov7.data.sources.image_folder import by_stem, files_below, image_sizes, images_below, shown
from yolov7.data.sources.image_set import ImageSet
from yolov7.data.sources.lists import choose_listed
from yolov7.data.sources.parameters import Voc, VocSplit
from yolov7.data.sources.voc_classes import listed_classes, unused_note
from yolov7.data.sources.voc_images import MatchedImages, match_images
from yolov7.data.sources.voc_notes import object_notes
from yolov7.errors import DataError


@dataclass(frozen=True)
class _Matched:
    """The XML files of a set."""

    files: list[tuple[VocImage, str, tuple[int, int]]]
    """Each with its image's name, height and width."""
    notes: list[str]


def read_voc_sets(parameters: Voc, base: Path) -> dict[str, ImageSet]:
    """The sets of `parameters`, by split or `all`; paths are relative to `base`.

    Without named classes, the names that occur in any set are the classes of all, sorted. Raises one
    :class:`DataError` for all problems of all sets: bad files (:func:`yolov7.data.formats.voc.read_voc_file`), unknown
    classes, files whose image is missing or ambiguous.
    """
    given = parameters.given("data.voc")
    problems: list[DataError] = []
    named: Sequence[str] | None = None
    with collected(problems):
        named = parameters.classes
        named = listed_classes(base / named) if isinstance(named, str) else named
    matched: dict[str, _Matched] = {}
    for name, one in given.items():
        with collected(problems):
            matched[name] = _matched(one, base, f"data.voc.{name}", parameters, named)
    occurring = {item.name for found in matched.values() for image, _, _ in found.files for item in image.objects}
    beside = [folder for one in given.values() for folder in ((base / one.annotations).parent, base)]
    more = unused_note(beside, occurring) if named is None else []
    classes = sorted(occurring) if named is None else named
    sets: dict[str, ImageSet] = {}
    first = (1, 1)
    for name, found in matched.items():
        with collected(problems):
            coco = _joined(found, classes, base / given[name].annotations, parameters, first)
            first = (first[0] + len(coco.images), first[1] + len(coco.annotations))
            notes = found.notes + object_notes([file for file, _, _ in found.files], parameters)
            notes += more if not sets else []
            sets[name] = ImageSet(coco, base / given[name].images, f"data.voc.{name}", tuple(notes))
    raise_together(problems)
    return sets


def _joined(
    found: _Matched, classes: Sequence[str], path: Path, parameters: Voc, first: tuple[int, int]
) -> CocoAnnotations:
    return voc_to_coco(
        found.files,
        classes,
        path=path,
        one_based=parameters.one_based,
        difficult_is_crowd=parameters.difficult_is_crowd,
        rotated=parameters.rotated,
        first_image_id=first[0],
        first_annotation_id=first[1],
    )


def _matched(one: VocSplit, base: Path, key: str, parameters: Voc, classes: Sequence[str] | None) -> _Matched:
    """The XML files of a set with their images, and notes. Raises :class:`DataError` with all problems of the set."""
    root, annotations = base / one.images, base / one.annotations
    known = by_stem(files_below(annotations, (".xml",), key=f"{key}.annotations"), annotations)
    if not known:
        raise DataError(f"no XML files here; see {key}.annotations", path=annotations)
    notes: list[str] = []
    problems: list[DataError] = []
    chosen = list(known.values())
    if one.listed_in is not None:
        with collected(problems):
            listed = choose_listed(base / one.listed_in, known)
            chosen = listed.files
            notes += listed.notes
    images = images_below(root, key=f"{key}.images")
    read = _read_files(annotations, chosen, problems)
    files = list(read.values())
    if classes is not None:
        for file in files:
            items = enumerate(file.objects, 1)
            problems += [unknown_class(file, place, item, classes) for place, item in items if item.name not in classes]
    found = MatchedImages()
    with collected(problems):
        found = match_images(list(read), files, images, root, parameters.image_by)
    notes += found.notes
    sizes: list[tuple[int, int]] = []
    with collected(problems):
        sizes = _sizes(files, found.names, root, parameters, notes)
    raise_together(problems)
    if one.listed_in is None:
        unused = sorted(set(images.names) - set(found.names))
        notes += [f"{len(unused)} images have no XML file and were left out: {shown(unused)}"] if unused else []
        notes += images.notes()
    return _Matched(list(zip(files, found.names, sizes, strict=True)), notes)


def _read_files(folder: Path, names: Sequence[str], problems: list[DataError]) -> dict[str, VocImage]:
    """The files that can be read, by name."""

    def read(name: str) -> VocImage | DataError:
        try:
            return read_voc_file(folder / name)
        except DataError as error:
            return error

    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        results = dict(zip(names, pool.map(read, names), strict=True))
    problems += [result for result in results.values() if isinstance(result, DataError)]
    return {name: result for name, result in results.items() if isinstance(result, VocImage)}


def _sizes(
    files: Sequence[VocImage], names: Sequence[str], root: Path, parameters: Voc, notes: list[str]
) -> list[tuple[int, int]]:
    """Height and width of every image; adds notes on sizes that the files lack, or give otherwise than the image."""
    pairs = list(zip(files, names, strict=False))
    from_image = parameters.size_from == "image"
    unsized = [name for file, name in pairs if file.size is None]
    sizes = image_sizes(root, [name for _, name in pairs] if from_image else unsized)
    if unsized:
        notes.append(f"{len(unsized)} files give no image size; it was read from the image: {shown(unsized)}")
    sized = [(file, name) for file, name in pairs if file.size is not None]
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        headers = list(pool.map(lambda pair: read_header(root / pair[1]), sized))
    other: list[str] = []
    for (file, name), header in zip(sized, headers, strict=True):
        # Boxes may be drawn on the image as stored, or as its EXIF orientation turns it.
        ways = () if header is None else ((header.height, header.width), (header.width, header.height))
        if header is not None and file.size not in (ways if header.lies_on_its_side else ways[:1]):
            assert file.size is not None
            written = f"{file.size[1]} x {file.size[0]}"
            other.append(f"{file.path.name} says {written}, {name} is {header.width} x {header.height}")
    if other:
        rule = "that of the image was taken" if from_image else "see data.voc.size_from"
        notes.append(f"{len(other)} XML files give another size than their image; {rule}: {shown(other)}")
    return [file.size if file.size is not None and not from_image else sizes[name] for file, name in pairs]
