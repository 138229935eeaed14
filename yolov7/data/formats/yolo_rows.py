"""Rows of YOLO text labels. The same columns mean different things; what the data set declares decides.

| columns | meaning |
| --- | --- |
| 5 | `class x y w h`: a box |
| 7, 9, 11, ... | `class x1 y1 x2 y2 ...`: an outline; with 9, also the corners of an oriented box |
| 5 + points x values | `class x y w h` and keypoints, if `kpt_shape` is declared, which no other row then fits |
| one more | a confidence or a track number; or, of 6, `class confidence x y w h` |

All numbers but the class are shares of the image's sides.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from yolov7.data.formats.label_files import finite_number, read_text, text_lines

TOLERANCE = 1e-5
"""Tolerance outside 0 to 1: the error of rounding to six decimals."""

RowKind = Literal["auto", "box", "polygon", "obb", "pose"]
ExtraColumn = Literal["confidence", "track_id", "confidence_second"]


@dataclass(frozen=True)
class RowFormat:
    """What the rows of a data set hold."""

    kind: RowKind = "auto"
    """`auto`: boxes and outlines, told apart by their columns; only boxes with keypoints if there are `keypoints`.
    `pose`: boxes with keypoints, and boxes beside them."""
    keypoints: tuple[int, int] | None = None
    """Number of keypoints, and 2 or 3 values for each."""
    extra: ExtraColumn | None = None
    """Meaning of a column beyond those of the kind; None: no such column."""
    boxes_beside: bool = False
    """Rows of `pose` may be boxes: set by :func:`settle` if others have keypoints."""

    @property
    def pose_columns(self) -> int:
        """Columns of a box with its keypoints; 0 without `keypoints`."""
        return 0 if self.keypoints is None else 5 + self.keypoints[0] * self.keypoints[1]


@dataclass(frozen=True)
class RawRow:
    """A row as written."""

    line: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A row that is understood."""

    line: int
    label: int
    kind: Literal["box", "polygon", "obb", "pose"]
    values: tuple[float, ...]
    """Four for a box (also of a pose, whose points are not kept), six or more for an outline."""
    extra: bool = False
    """It had a confidence or a track number, which is not kept."""


def read_rows(path: Path) -> list[RawRow]:
    """The rows of a file that are not blank. Raises :class:`yolov7.errors.DataError` if it cannot be read."""
    rows = ((line, text.split()) for line, text in enumerate(text_lines(read_text(path)), 1))
    return [RawRow(line, tuple(columns)) for line, columns in rows if columns]


def settle(rows: Iterable[RawRow], declared: RowFormat) -> tuple[RowFormat, list[str], str | None]:
    """Settle what `declared` leaves open, from all rows of a data set.

    Returns the format, notes on what was guessed, and the reason why the rows are ambiguous (None: they are not).
    """
    if declared.kind == "pose" and declared.keypoints is not None:
        widths = {declared.pose_columns, declared.pose_columns + (declared.extra is not None)}
        return replace(declared, boxes_beside=any(len(row.columns) in widths for row in rows)), [], None
    if declared.kind not in ("auto", "box"):
        return declared, [], None
    sixth: list[str] = []
    longer: dict[int, list[RawRow]] = defaultdict(list)
    for row in rows:
        if len(row.columns) == 6:
            sixth.append(row.columns[5])
        elif len(row.columns) >= 11:
            longer[len(row.columns)].append(row)
    if declared.extra is None and sixth and _are_track_numbers(sixth):
        note = (
            f"{len(sixth)} rows have a sixth column of whole numbers, taken for track numbers and left out "
            "(say so by data.yolo.extra_column: track_id)"
        )
        return replace(declared, extra="track_id"), [note], None
    if declared.kind == "auto" and declared.keypoints is None:
        for columns, group in longer.items():
            if columns % 2 and (columns - 5) % 3 == 0 and all(map(_may_be_pose, group)):
                points = (columns - 5) // 3
                reason = (
                    f"all {len(group)} rows of {columns} columns fit an outline, and also a box with {points} "
                    "keypoints and their visibility; set data.yolo.rows: polygon, or data.yolo.rows: pose and "
                    f"data.yolo.keypoints: [{points}, 3]"
                )
                return declared, [], reason
    return declared, [], None


def _are_track_numbers(texts: Sequence[str]) -> bool:
    """Whole numbers that are not all 0 and 1, which a confidence could be too."""
    return all(re.fullmatch(r"\d{1,18}", text, re.ASCII) for text in texts) and any(int(text) > 1 for text in texts)


def _may_be_pose(row: RawRow) -> bool:
    """True if the row may hold a box inside the image, and points in it, each with a visibility of 0, 1 or 2."""
    numbers = [finite_number(column) for column in row.columns[1:]]
    values = [number for number in numbers if number is not None]
    if len(values) < len(numbers):
        return False
    x, y, w, h = values[:4]
    if w <= 0 or h <= 0 or min(x - w / 2, y - h / 2) < -TOLERANCE or max(x + w / 2, y + h / 2) > 1 + TOLERANCE:
        return False
    slack = 0.05  # annotators set points a little outside the box
    for px, py, visible in zip(values[4::3], values[5::3], values[6::3], strict=True):
        near = abs(px - x) <= w / 2 + slack and abs(py - y) <= h / 2 + slack
        if visible not in (0, 1, 2) or not (near or px == py == 0):
            return False
    return True


def parse_row(raw: RawRow, names: Mapping[int, str], rows: RowFormat) -> Row | str:
    """One row, or the reason why it is bad."""
    kind, extra = _kind(len(raw.columns), rows)
    if kind is None:
        return _wrong_count(len(raw.columns), rows)
    values: list[float] = []
    for column in raw.columns:
        number = finite_number(column)
        if number is None:
            return f"{_shown(column)} is not a finite number"
        values.append(number)
    label, columns = values.pop(0), list(raw.columns[1:])
    if label != int(label) or int(label) not in names:
        return f"class {_shown(raw.columns[0])}; expected {_known(names)}"
    if extra:
        place = 0 if rows.extra == "confidence_second" else -1
        more, text = values.pop(place), columns.pop(place)
        if rows.extra == "track_id" and (more < 0 or more != int(more)):
            return f"{_shown(text)} is not a track number; data.yolo.extra_column says there is one"
        if rows.extra != "track_id" and not 0 <= more <= 1:
            return f"{_shown(text)} is not a confidence from 0 to 1; data.yolo.extra_column says there is one"
    if kind == "pose":
        contradiction = _not_visibilities(columns, values, rows)
        if contradiction is not None:
            return contradiction
        del values[4:], columns[4:]
    # The corners of an oriented box may lie outside.
    low, high = (-1.0, 2.0) if rows.kind == "obb" else (-TOLERANCE, 1 + TOLERANCE)
    for column, value in zip(columns, values, strict=True):
        if not low <= value <= high:
            hint = "; for oriented boxes set data.yolo.rows: obb" if kind == "polygon" and len(values) == 8 else ""
            return f"{_shown(column)} is not within 0 to 1; divide by the image's width or height{hint}"
    return Row(raw.line, int(label), kind, tuple(values), extra)


def _not_visibilities(columns: Sequence[str], values: Sequence[float], rows: RowFormat) -> str | None:
    """Why a row is not the keypoints that only `kpt_shape` declares: outlines have as many columns."""
    if rows.kind != "auto" or rows.keypoints is None or rows.keypoints[1] != 3:
        return None
    other = next((place for place in range(6, len(values), 3) if values[place] not in (0, 1, 2)), None)
    if other is None:
        return None
    return (
        f"{_shown(columns[other])} is not the visibility of a keypoint (0, 1 or 2), which `kpt_shape` declares; set "
        "data.yolo.rows: polygon if the rows are outlines, pose if they are keypoints all the same"
    )


def _kind(count: int, rows: RowFormat) -> tuple[Literal["box", "polygon", "obb", "pose"] | None, bool]:
    """The kind of a row with this number of columns, and whether one of them is extra."""
    candidates = [(count, False)] if rows.extra is None else [(count, False), (count - 1, True)]
    for plain, extra in candidates:
        if extra and rows.extra == "confidence_second" and plain != 5:
            continue
        if rows.kind in ("auto", "pose") and rows.keypoints is not None:
            if plain == rows.pose_columns:
                return "pose", extra
        elif rows.kind in ("auto", "polygon") and plain >= 7 and plain % 2:
            return "polygon", extra
        if rows.kind == "obb" and plain == 9:
            return "obb", extra
        may_be_box = rows.kind == "box" or (rows.kind == "auto" and rows.keypoints is None) or rows.boxes_beside
        if may_be_box and plain == 5:
            return "box", extra
    return None, False


def _wrong_count(count: int, rows: RowFormat) -> str:
    if rows.kind == "obb":
        expected = "an oriented box has 9 (class and four corners)"
    elif rows.kind in ("auto", "pose") and rows.keypoints is not None:
        number, values = rows.keypoints
        expected = f"a box has {rows.pose_columns} with its {number} keypoints of {values} values, as "
        expected += "`kpt_shape` declares" if rows.kind == "auto" else "data.yolo.rows: pose declares"
        if count == 5:
            expected += "; set data.yolo.rows: box if the rows are boxes"
            expected += ", pose if only some have keypoints" if rows.kind == "auto" else ""
        elif count >= 7 and count % 2:
            expected += "; set data.yolo.rows: polygon if the rows are outlines, obb if they are oriented boxes"
    elif rows.kind == "box":
        expected = "a box has 5 (class x y w h), and data.yolo.rows is box"
    elif rows.kind == "polygon":
        expected = "a polygon has 7 or more, an odd number (class x1 y1 x2 y2 ...), and data.yolo.rows is polygon"
    else:
        expected = "a box has 5 (class x y w h), a polygon 7 or more, an odd number (class x1 y1 x2 y2 ...)"
    hint = ""
    if rows.extra is None and count >= 6 and count % 2 == 0:
        hint = "; if one column is a confidence or a track number, set data.yolo.extra_column (docs/data.md)"
        if rows.keypoints is None and count >= 8:
            hint += "; if these are keypoints, set data.yolo.rows: pose"
    return f"{count} columns; {expected}{hint}"


def _known(names: Mapping[int, str]) -> str:
    if list(names) == list(range(len(names))):
        return f"a whole number from 0 to {len(names) - 1}: {len(names)} classes are named"
    numbers = ", ".join(map(str, list(names)[:20])) + (", ..." if len(names) > 20 else "")
    return f"one of {numbers}: {len(names)} classes are named"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
