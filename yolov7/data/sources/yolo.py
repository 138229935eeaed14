"""The source `yolo`: images with YOLO text labels, a folder of each per set, or sets that data.yaml declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from yolov7.data.formats.label_files import collected, raise_together
from yolov7.data.formats.yolo_rows import RawRow, RowFormat, settle
from yolov7.data.formats.yolo_txt import RowCounts, join_rows, read_label_files, repeated_note
from yolov7.data.sources.image_folder import image_class_lists
from yolov7.data.sources.image_set import ImageSet
from yolov7.data.sources.parameters import Yolo
from yolov7.data.sources.yolo_names import find_names
from yolov7.data.sources.yolo_splits import SetFiles, contradictions, declared_files, given_files
from yolov7.data.tally import named_counts
from yolov7.errors import DataError

_CONVERTED = {
    "polygon": "outlines became the boxes around them",
    "obb": "oriented boxes became upright",
    "rotated": "outlines are turned rectangles, whose upright boxes are larger",
}
"""Words for the kinds of rows whose objects look other than their boxes."""


def read_yolo_sets(parameters: Yolo, base: Path) -> dict[str, ImageSet]:
    """The sets of `parameters`, by split or `all`; paths are relative to `base`.

    An image without a label file has no objects; notes count such images, everything that was converted or left out,
    and files that contradict each other. Raises one :class:`DataError` for all problems of all sets: bad or ambiguous
    rows (:mod:`yolov7.data.formats.yolo_rows`), images whose size cannot be read, label files without an image, images
    that would share a label file.
    """
    given = parameters.given("data.yolo")
    declared, notes = find_names(parameters.names, base, [base / one.labels for one in given.values()])
    problems: list[DataError] = []
    files: dict[str, SetFiles] = {}
    if given:
        notes += contradictions(declared, given, base)
        for name, one in given.items():
            with collected(problems):
                files[name] = given_files(one, base, f"data.yolo.{name}", problems)
            problems += image_class_lists([base / one.images, base / one.labels], base)
    else:
        with collected(problems):
            files, more = declared_files(declared, base, problems)
            notes += more
        folders = {(found.root / image.file_name).parent for found in files.values() for image in found.images}
        problems += image_class_lists([declared.path.parent, *sorted(folders)], base)
    raw: dict[str, list[list[RawRow]]] = {}
    for name, found in files.items():
        with collected(problems):
            raw[name] = read_label_files(found.images)
    wanted = RowFormat(parameters.rows, parameters.keypoints or declared.keypoints, parameters.extra_column)
    if wanted.kind == "pose" and wanted.keypoints is None:
        problems.append(DataError("data.yolo.rows is pose; give data.yolo.keypoints, for example [17, 3]", path=base))
    if declared.keypoints is not None and wanted.kind not in ("auto", "pose"):
        notes.append(f"`kpt_shape` {list(declared.keypoints)} does not count: data.yolo.rows is {wanted.kind}")
    rows, guessed, ambiguous = settle(chain.from_iterable(chain.from_iterable(raw.values())), wanted)
    if ambiguous is not None:
        problems.append(DataError(ambiguous, path=base))
    sets = _join({name: files[name] for name in raw}, raw, declared.names, rows, [*notes, *guessed], problems)
    raise_together(problems)
    return sets


def _join(
    files: Mapping[str, SetFiles],
    raw: Mapping[str, Sequence[Sequence[RawRow]]],
    names: Mapping[int, str],
    rows: RowFormat,
    notes: Sequence[str],
    problems: list[DataError],
) -> dict[str, ImageSet]:
    """The sets with their annotations; `notes` are about all of them and go to the first."""
    sets: dict[str, ImageSet] = {}
    bad = RowCounts()
    first = (1, 1)
    for name, found in files.items():
        coco, counts = join_rows(found.images, raw[name], names, rows, path=found.labels, first=first)
        bad.bad += counts.bad
        own = (*_notes(found, counts, rows), *found.notes, *(notes if not sets else ()))
        sets[name] = ImageSet(coco, found.root, found.key, own)
        first = (first[0] + len(coco.images), first[1] + len(coco.annotations))
    refusal = bad.refusal()
    if refusal is not None:
        problems.append(refusal)
        problems += _from_one(chain.from_iterable(chain.from_iterable(raw.values())), names)
    return sets


def _from_one(rows: chain[RawRow], names: Mapping[int, str]) -> list[DataError]:
    """A hint for class numbers that seem to count from 1."""
    numbers = {int(row.columns[0]) for row in rows if row.columns[0].isascii() and row.columns[0].isdigit()}
    if list(names) == list(range(len(names))) and numbers and min(numbers) == 1 and max(numbers) == len(names):
        message = f"no row has class 0, and the largest is {len(names)}: the numbers seem to count from 1; subtract 1"
        return [DataError(f"{message}, or name a class 0 that does not occur")]
    return []


def _notes(found: SetFiles, counts: RowCounts, rows: RowFormat) -> list[str]:
    """Rows left out and converted, with counts."""
    notes = repeated_note(counts)
    without = sum(image.label is None for image in found.images)
    if without:
        notes.append(f"{without} of {len(found.images)} images have no label file: taken as images without objects")
    if counts.empty_files:
        note = f"{counts.empty_files} of {len(found.images)} label files are empty: taken as images without objects"
        if counts.empty_files + without == len(found.images):
            note += "; that is all of them: did the export leave shapes out (CVAT writes unrotated boxes only)?"
        notes.append(note)
    for kind, words in _CONVERTED.items():
        converted = counts.kinds[kind]
        if number := converted.total():
            notes.append(f"{number} {words} ({named_counts(sorted(converted.items()))})")
    if counts.kinds["pose"]:
        notes.append(f"the keypoints of {counts.kinds['pose'].total()} objects were left out, their boxes were read")
        if boxes := counts.kinds["box"].total():
            notes.append(f"{boxes} rows without keypoints beside them were read as boxes (data.yolo.rows: pose)")
    if counts.cut:
        notes.append(f"{counts.cut} oriented boxes reach beyond their image and were cut")
    if counts.extra:
        kind = "track number" if rows.extra == "track_id" else "confidence"
        notes.append(f"the {kind} of {counts.extra} rows was left out")
    if counts.mixed_files:
        notes.append(f"{counts.mixed_files} files mix boxes and outlines; other trainers misread boxes in such files")
    if counts.shared_boxes:
        notes.append(f"{counts.shared_boxes} boxes repeat one of another class in the same file")
    return notes
