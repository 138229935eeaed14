"""Divide one set of annotated images into train, val and test.

Images that must stay together form a unit: near-duplicates, images of one group, records of one file or one id. Units
are dealt class by class, the rarest first, each to the split that lacks most of that class (iterative stratification:
Sechidis et al., ECML PKDD 2011). Their order follows from a hash of the seed and a file name: no generator, and no
dependence on the order of the records.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.images.near_duplicates import difference_hashes, near_pairs
from stages.project.params_data import Split
from yolov7.data.formats.coco import CocoAnnotations, Record
from yolov7.data.sources.image_set import ImageSet, locate
from yolov7.errors import DataError

logger = logging.getLogger(__name__)

_GROUPS_LISTED = 1000
_FILES_LISTED = 20
"""Entries listed in dataset.json; its counts are always exact."""
_NOTHING = -1
"""The class of images without objects: they are divided evenly too."""
_LARGE = 0.5
"""A unit with more than this share of the images makes the ratios meaningless: a warning says so."""

NEAR_DUPLICATE = "near-duplicate"
PATTERN = "group_pattern"
FIELD = "group_field"
SAME_FILE = "same file"
SAME_ID = "same id"


@dataclass(frozen=True)
class Unit:
    """Images that stay together."""

    members: tuple[int, ...]
    """Positions of the image records, ascending."""
    because: tuple[str, ...]
    """The reasons to keep them together."""


def make_splits(one: ImageSet, parameters: Split) -> tuple[dict[str, ImageSet], dict[str, Any]]:
    """Divide a set; returns the splits and their description for dataset.json.

    Every split keeps the categories, licences and info of the whole, and every record as it is. Raises
    :class:`DataError` if an image file is missing, a group matches nothing, or there are too few units.
    """
    coco = one.coco
    ratios = {name: getattr(parameters, name) for name in ("train", "val", "test") if getattr(parameters, name) > 0}
    units = find_units(one, parameters)
    if len(units) < len(ratios):
        message = f"{len(coco.images)} images in {len(units)} groups cannot be divided into {len(ratios)} splits"
        raise DataError(f"{message}; add images, or loosen data.split", path=coco.path)
    classes = _classes(coco)
    place = assign_units(coco, units, classes, ratios, parameters)
    splits = {name: replace(one, coco=_part(coco, units, place, name), notes=()) for name in ratios}
    return splits, _report(coco, units, place, ratios, parameters)


def find_units(one: ImageSet, parameters: Split) -> list[Unit]:
    """All images, each in one unit; units in the order of their first image."""
    images = one.coco.images
    ties: list[tuple[int, int, str]] = []
    ties += _same([record["id"] for record in images], SAME_ID)
    ties += _same([record["file_name"] for record in images], SAME_FILE)
    if parameters.group_pattern is not None:
        ties += _same(_pattern_keys(one, parameters.group_pattern), PATTERN)
    if parameters.group_field is not None:
        ties += _same(_field_keys(one, parameters.group_field), FIELD)
    if parameters.near_duplicate_bits is not None:
        files = [path for path, _ in locate(one.coco, one.root)]
        pairs = near_pairs(difference_hashes(files), parameters.near_duplicate_bits)
        ties += ((first, second, NEAR_DUPLICATE) for first, second, _ in pairs)
    return _joined(len(images), ties)


def _same(keys: Sequence[Any], reason: str) -> Iterator[tuple[int, int, str]]:
    """Ties between records with the same key, None excepted."""
    first: dict[Any, int] = {}
    for position, key in enumerate(keys):
        if key is not None and first.setdefault(key, position) != position:
            yield first[key], position, reason


def _pattern_keys(one: ImageSet, pattern: str) -> list[tuple[str | None, ...] | None]:
    expression = re.compile(pattern)
    matches = [expression.search(record["file_name"]) for record in one.coco.images]
    if not any(matches):
        example = one.coco.images[0]["file_name"] if one.coco.images else "there are no images"
        message = f"data.split.group_pattern {pattern!r} matches no file name (the first one: {example!r})"
        raise DataError(message, path=one.coco.path)
    return [None if match is None else (match.groups() or (match.group(),)) for match in matches]


def _field_keys(one: ImageSet, field: str) -> list[str | None]:
    images = one.coco.images
    if not any(field in record for record in images):
        raise DataError(f"no image record has the field {field!r} of data.split.group_field", path=one.coco.path)
    values = (record.get(field) for record in images)
    return [None if value is None else json.dumps(value, sort_keys=True) for value in values]


def _joined(count: int, ties: Sequence[tuple[int, int, str]]) -> list[Unit]:
    """The connected components of images, in the order of their first image."""
    firsts, seconds = [first for first, _, _ in ties], [second for _, second, _ in ties]
    graph = coo_array((np.ones(len(ties), np.int8), (firsts, seconds)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1].tolist()
    members: dict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        members[label].append(position)
    reasons: dict[int, set[str]] = defaultdict(set)
    for first, _, reason in ties:
        reasons[labels[first]].add(reason)
    return [Unit(tuple(group), tuple(sorted(reasons[label]))) for label, group in members.items()]


def _classes(coco: CocoAnnotations) -> dict[int, set[int]]:
    """Category ids on each image, by image id; crowds do not count: nothing is learnt from them."""
    classes: dict[int, set[int]] = defaultdict(set)
    for annotation in coco.annotations:
        if not annotation.get("iscrowd"):
            classes[annotation["image_id"]].add(annotation["category_id"])
    return classes


def assign_units(
    coco: CocoAnnotations,
    units: Sequence[Unit],
    classes: Mapping[int, set[int]],
    ratios: Mapping[str, float],
    parameters: Split,
) -> list[str]:
    """The split of every unit; every split gets at least one."""
    counts = [_class_counts(coco, unit, classes, parameters.stratify) for unit in units]
    totals: Counter[int] = sum(counts, Counter())
    lacking = {name: {key: ratio * total for key, total in totals.items()} for name, ratio in ratios.items()}
    room = {name: ratio * len(coco.images) for name, ratio in ratios.items()}
    with_class: dict[int, list[int]] = defaultdict(list)
    for number in _order(coco, units, parameters.seed):
        for key in counts[number]:
            with_class[key].append(number)
    place: dict[int, str] = {}
    remaining = Counter(totals)
    while remaining:
        rarest = min(remaining, key=lambda key: (remaining[key], key))
        for number in with_class[rarest]:
            if number in place:
                continue
            name = max(ratios, key=lambda split: (lacking[split][rarest], room[split]))
            place[number] = name
            room[name] -= len(units[number].members)
            for key, count in counts[number].items():
                lacking[name][key] -= count
                remaining[key] -= count
        del remaining[rarest]
    return _none_empty([place[number] for number in range(len(units))], units, ratios)


def _class_counts(coco: CocoAnnotations, unit: Unit, classes: Mapping[int, set[int]], stratify: bool) -> Counter[int]:
    """Number of images of the unit by class; without stratification all images have one class."""
    if not stratify:
        return Counter({_NOTHING: len(unit.members)})
    found = (classes.get(coco.images[position]["id"]) or {_NOTHING} for position in unit.members)
    return Counter(key for keys in found for key in keys)


def _order(coco: CocoAnnotations, units: Sequence[Unit], seed: int) -> list[int]:
    """Large units first, while every split has room; equal ones by a hash of seed and name."""

    def rank(number: int) -> tuple[int, bytes]:
        name = min(coco.images[position]["file_name"] for position in units[number].members)
        return -len(units[number].members), hashlib.sha256(f"{seed}\0{name}".encode()).digest()

    return sorted(range(len(units)), key=rank)


def _none_empty(place: list[str], units: Sequence[Unit], ratios: Mapping[str, float]) -> list[str]:
    """Give a split that rounding left empty the smallest unit of the split with the most units."""
    for name in ratios:
        if name not in place:
            richest = max(ratios, key=place.count)
            smallest = min(
                (number for number, split in enumerate(place) if split == richest),
                key=lambda number: len(units[number].members),
            )
            place[smallest] = name
    return place


def _part(coco: CocoAnnotations, units: Sequence[Unit], place: Sequence[str], name: str) -> CocoAnnotations:
    """The records of one split, in their order; annotations without an image go to train: validation names them."""
    positions = sorted(
        position for unit, split in zip(units, place, strict=True) if split == name for position in unit.members
    )
    images: list[Record] = [coco.images[position] for position in positions]
    own = {record["id"] for record in images}
    known = {record["id"] for record in coco.images}
    stray = name == "train"
    annotations = [
        annotation
        for annotation in coco.annotations
        if annotation["image_id"] in own or (stray and annotation["image_id"] not in known)
    ]
    return replace(coco, images=images, annotations=annotations)


def _report(
    coco: CocoAnnotations, units: Sequence[Unit], place: Sequence[str], ratios: Mapping[str, float], parameters: Split
) -> dict[str, Any]:
    """The description of the splits for dataset.json."""
    together = [(unit, split) for unit, split in zip(units, place, strict=True) if len(unit.members) > 1]
    together.sort(key=lambda pair: -len(pair[0].members))
    if together and len(together[0][0].members) > _LARGE * len(coco.images):
        unit = together[0][0]
        logger.warning(
            "%d of %d images stay together (%s), so the splits cannot have their shares; see data.split",
            len(unit.members), len(coco.images), ", ".join(unit.because),
        )  # fmt: skip
    groups = [
        {
            "split": split,
            "because": list(unit.because),
            "images": len(unit.members),
            "files": sorted(coco.images[position]["file_name"] for position in unit.members)[:_FILES_LISTED],
        }
        for unit, split in together[:_GROUPS_LISTED]
    ]
    logger.info("%d images are kept together in %d groups", sum(len(u.members) for u, _ in together), len(together))
    return {
        "parameters": {**parameters.model_dump(), **{name: ratios.get(name, 0.0) for name in ("train", "val", "test")}},
        "units": len(units),
        "groups_of_several": len(together),
        "images_in_groups_of_several": sum(len(unit.members) for unit, _ in together),
        "groups": groups,
    }
