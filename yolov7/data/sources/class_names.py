"""Names of classes as the pipeline keeps them: in one line, without control characters.

They are drawn, logged, and written to tables, pages and model files. What a terminal or a spreadsheet would act on is
replaced here, before anything is written, and the report says so.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from yolov7.data.sources.image_set import ImageSet
from yolov7.errors import DataError
from yolov7.text import listed, printable


def with_plain_names(sets: Mapping[str, ImageSet]) -> dict[str, ImageSet]:
    """The sets with plain class names, and a note in each whose names were changed.

    Names that look alike, in one set or across sets, are noted in the first set.

    Line breaks and tabs become blanks; other control characters, and those that turn the direction of writing, become
    their escapes. Raises :class:`DataError` where two names become the same.
    """
    result = {name: _plain(images) for name, images in sets.items()}
    names = dict.fromkeys(str(one["name"]) for images in result.values() for one in images.coco.categories)
    notes = _alike(list(names))
    for name in list(result)[:1] if notes else []:
        result[name] = replace(result[name], notes=(*result[name].notes, *notes))
    return result


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


def _alike(names: Sequence[str]) -> list[str]:
    """A note on classes whose names differ only in case, blanks, or composed and decomposed letters."""
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for name in names:
        key = " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).split())
        groups[key][name] = None
    pairs = [" and ".join(map(ascii, group)) for group in groups.values() if len(group) > 1]
    if not pairs:
        return []
    return [
        "names of classes that differ only in case, blanks, or composed and decomposed letters are kept apart: "
        f"{listed(pairs)}; if one is meant, write it in one way"
    ]
