"""Names of classes as the pipeline keeps them: in one line, without control characters.

They are drawn, logged, and written to tables, pages and model files. What a terminal or a spreadsheet would act on is
replaced here, before anything is written, and the report says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from stages.dataset.image_set import ImageSet
from yolov7.errors import DataError
from yolov7.text import listed, printable


def with_plain_names(sets: Mapping[str, ImageSet]) -> dict[str, ImageSet]:
    """The sets with plain class names, and a note in each whose names were changed.

    Line breaks and tabs become blanks; other control characters, and those that turn the direction of writing, become
    their escapes. Raises :class:`DataError` where two names become the same.
    """
    return {name: _plain(images) for name, images in sets.items()}


def _plain(images: ImageSet) -> ImageSet:
    coco = images.coco
    names = [str(category["name"]) for category in coco.categories]
    plain = [printable(name) for name in names]
    changed = [(old, new) for old, new in zip(names, plain, strict=True) if old != new]
    if not changed:
        return images
    counts = Counter(plain)
    twice = [f"{old!r} and another name both become {new!r}" for old, new in changed if counts[new] > 1]
    if twice:
        message = "names of classes hold line breaks or control characters, and without them some are equal"
        raise DataError(f"{message}: {listed(twice, joint='; ')}; rename them", path=coco.path)
    shown = listed([f"{old!r} is now {new!r}" for old, new in changed])
    note = f"{len(changed)} class names held line breaks or control characters: {shown}"
    categories = [{**category, "name": new} for category, new in zip(coco.categories, plain, strict=True)]
    return replace(images, coco=replace(coco, categories=categories), notes=(*images.notes, note))
