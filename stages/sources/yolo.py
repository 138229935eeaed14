"""The source `yolo`: images with YOLO text labels, a folder of each per set."""

from __future__ import annotations

from pathlib import Path

from stages.dataset.image_set import ImageSet
from stages.project.params_data import Yolo, YoloSplit
from stages.sources.image_folder import by_stem, files_below, image_sizes, images_below, select_listed, shown, stem_of
from yolov7.data.formats.yolo_txt import YoloImage, read_class_names, read_yolo
from yolov7.errors import DataError

_NO_LABELS = ("classes.txt", "notes.txt")
"""Files that labelling tools leave among the labels."""


def read_yolo_sets(parameters: Yolo, base: Path) -> dict[str, ImageSet]:
    """The sets of `parameters`, by split or `all`; paths are relative to `base`.

    An image without a label file has no objects; notes count such images. Raises :class:`DataError` for bad rows
    (:func:`yolov7.data.formats.yolo_txt.read_yolo`), images whose size cannot be read, label files without an image,
    and images that would share a label file.
    """
    named = parameters.names
    names = read_class_names(base / named) if isinstance(named, str) else list(named)
    sets: dict[str, ImageSet] = {}
    image_id = annotation_id = 1
    for name, one in parameters.given("data.yolo").items():
        key = f"data.yolo.{name}"
        images, left_out = _images(one, base, key)
        coco, notes = read_yolo(
            images, names, path=base / one.labels, first_image_id=image_id, first_annotation_id=annotation_id
        )
        notes += left_out
        without = sum(image.label is None for image in images)
        if without:
            notes.append(f"{without} of {len(images)} images have no label file: taken as images without objects")
        sets[name] = ImageSet(coco, base / one.images, key, tuple(notes))
        image_id += len(coco.images)
        annotation_id += len(coco.annotations)
    return sets


def _images(one: YoloSplit, base: Path, key: str) -> tuple[list[YoloImage], list[str]]:
    """Every image of a set with its size and its label file, and notes on images that are left out."""
    root, label_root = base / one.images, base / one.labels
    files = images_below(root, key=f"{key}.images")
    known = by_stem(files.names, root)
    labels = {
        stem_of(label): label_root / label
        for label in files_below(label_root, (".txt",), key=f"{key}.labels")
        if label.rpartition("/")[2] not in _NO_LABELS
    }
    orphans = {stem: label for stem, label in labels.items() if stem not in known}
    if orphans:
        names = [path.relative_to(label_root).as_posix() for path in orphans.values()]
        message = (
            f"{len(orphans)} label files have no image in {root}: {shown(names)}{files.instead(orphans)};"
            " add the images or remove the labels"
        )
        raise DataError(message, path=label_root)
    chosen = list(known.values()) if one.listed_in is None else select_listed(base / one.listed_in, known)
    if not chosen:
        left_out = "; ".join(files.notes())
        raise DataError(f"no images here; see {key}.images in params.yaml{left_out and f' ({left_out})'}", path=root)
    sizes = image_sizes(root, chosen)
    images = [YoloImage(image, *sizes[image], labels.get(stem_of(image))) for image in chosen]
    return images, [] if one.listed_in is not None else list(files.notes())
