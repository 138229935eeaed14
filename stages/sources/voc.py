"""The source `voc`: Pascal VOC, a folder of XML files and a folder of images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from stages.dataset.image_set import ImageSet
from stages.project.params_data import Voc, VocSplit
from stages.sources.image_folder import (
    ImageFiles,
    files_below,
    image_sizes,
    images_below,
    select_listed,
    shown,
    stem_of,
)
from yolov7.data.formats.voc import VocImage, read_voc_file, voc_to_coco
from yolov7.errors import DataError

_Matched = list[tuple[VocImage, str, tuple[int, int]]]
"""Files with their image's name, height and width."""


def read_voc_sets(parameters: Voc, base: Path) -> dict[str, ImageSet]:
    """The sets of `parameters`, by split or `all`; paths are relative to `base`.

    Without named classes, the names that occur in any set are the classes of all, sorted. Raises :class:`DataError`
    for a bad file (:func:`yolov7.data.formats.voc.read_voc_file`), an unknown class, and a file whose image is missing.
    """
    given = parameters.given("data.voc")
    matched = {name: _matched(one, base, f"data.voc.{name}") for name, one in given.items()}
    occurring = {item.name for files, _ in matched.values() for image, _, _ in files for item in image.objects}
    classes = sorted(occurring) if parameters.classes is None else parameters.classes
    sets: dict[str, ImageSet] = {}
    image_id = annotation_id = 1
    for name, (files, notes) in matched.items():
        coco = voc_to_coco(
            files,
            classes,
            path=base / given[name].annotations,
            one_based=parameters.one_based,
            difficult_is_crowd=parameters.difficult_is_crowd,
            first_image_id=image_id,
            first_annotation_id=annotation_id,
        )
        sets[name] = ImageSet(coco, base / given[name].images, f"data.voc.{name}", notes)
        image_id += len(coco.images)
        annotation_id += len(coco.annotations)
    return sets


def _matched(one: VocSplit, base: Path, key: str) -> tuple[_Matched, tuple[str, ...]]:
    """The XML files of a set with their images, and notes."""
    root, annotations = base / one.images, base / one.annotations
    known = {stem_of(name): name for name in files_below(annotations, (".xml",), key=f"{key}.annotations")}
    if not known:
        raise DataError(f"no XML files here; see {key}.annotations in params.yaml", path=annotations)
    chosen = list(known.values()) if one.listed_in is None else select_listed(base / one.listed_in, known)
    found = images_below(root, key=f"{key}.images")
    images = found.names
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        files = list(pool.map(lambda name: read_voc_file(annotations / name), chosen))
    names = _image_names(chosen, files, found, root)
    unsized = [name for name, file in zip(names, files, strict=True) if file.size is None]
    sizes = image_sizes(root, unsized)
    notes: list[str] = []
    if unsized:
        notes.append(f"{len(unsized)} files give no image size; it was read from the image: {shown(unsized)}")
    if one.listed_in is None and len(set(images)) > len(set(names)):
        unused = sorted(set(images) - set(names))
        notes.append(f"{len(unused)} images have no XML file and were left out: {shown(unused)}")
    if one.listed_in is None:
        notes += found.notes()
    return [(file, name, file.size or sizes[name]) for file, name in zip(files, names, strict=True)], tuple(notes)


def _image_names(chosen: list[str], files: list[VocImage], images: ImageFiles, root: Path) -> list[str]:
    """The image of every XML file: named by its `<filename>`, or, as that is often stale, by the file's own name."""
    exact = set(images.names)
    stems: dict[str, str] = {}
    for name in images.names:
        stems.setdefault(stem_of(name), name)
    names: list[str] = []
    missing: list[str] = []
    for own, file in zip(chosen, files, strict=True):
        image = _image_name(own, file.file_name, exact, stems)
        if image is None:
            missing.append(f"{own} (filename {file.file_name or 'not given'})")
        else:
            names.append(image)
    if missing:
        instead = images.instead({stem_of(name) for name in chosen})
        message = f"{len(missing)} of {len(chosen)} XML files have no image here: {shown(missing)}{instead}"
        raise DataError(message, path=root)
    return names


def _image_name(own: str, file_name: str, exact: set[str], stems: Mapping[str, str]) -> str | None:
    last = PurePosixPath(file_name.replace("\\", "/")).name
    candidates = [str(PurePosixPath(own).parent / last), last] if last else []
    for candidate in candidates:
        if candidate in exact:
            return candidate
    for stem in (*candidates, stem_of(own)):
        if stem in stems:
            return stems[stem]
    return None
