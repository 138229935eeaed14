"""Annotation files read in pieces into columns: the same values, and the same refusals, as from whole records."""

import json
import math
import random
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.data.columns import CocoColumns, Outlines, columns_of
from yolov7.data.formats import coco_stream
from yolov7.data.formats.coco import CocoAnnotations, read_coco, write_coco
from yolov7.data.read_columns import read_columns
from yolov7.errors import DataError


def assert_same(one: CocoColumns, other: CocoColumns) -> None:
    assert one.path == other.path and one.categories == other.categories
    for name in ("images", "annotations"):
        for field in fields(getattr(one, name)):
            values = [getattr(getattr(columns, name), field.name) for columns in (one, other)]
            parts = [arrays_in(value) for value in values]
            for left, right in zip(*parts, strict=True):
                assert left.dtype == right.dtype and left.shape == right.shape, (name, field.name)
                if left.dtype == object:  # NaN is not equal to itself
                    assert list(map(repr, left)) == list(map(repr, right))
                else:
                    np.testing.assert_array_equal(left, right, err_msg=f"{name}.{field.name}")


def arrays_in(value: Outlines | np.ndarray) -> list[np.ndarray]:
    return [value.polygon_starts, value.point_starts, value.points] if isinstance(value, Outlines) else [value]


def outcome(read, path: Path):
    try:
        return read(path)
    except DataError as error:
        return str(error)


def assert_read_the_same(path: Path, window: int) -> None:
    expected = outcome(lambda file: columns_of(read_coco(file)), path)
    before, coco_stream._WINDOW = coco_stream._WINDOW, window
    try:
        found = outcome(read_columns, path)
    finally:
        coco_stream._WINDOW = before
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
    else:
        assert_same(found, expected)


NUMBERS = st.one_of(
    st.integers(-5, 700), st.floats(-10, 700), st.sampled_from([math.nan, math.inf, -0.0, 1e300, 2**62])
)
RINGS = st.lists(st.lists(NUMBERS, max_size=9), max_size=3)
MASKS = st.fixed_dictionaries({"counts": st.one_of(st.text(), st.lists(st.integers(0, 9))), "size": st.just([4, 5])})
ODD = st.sampled_from([None, "7", True, [], {}, 1.5, "", "a\0b", "\ud800", 2**63 - 1])
TEXTS = st.one_of(st.text(min_size=1, max_size=8), st.sampled_from(["é{", '},{"', "\\", "日本}, {", "a\ud83d"]))


@st.composite
def documents(draw):
    """Documents with nested objects, brackets in texts, and now and then a fault."""
    images = draw(
        st.lists(
            st.fixed_dictionaries(
                {"id": st.integers(0, 2**40), "file_name": TEXTS, "width": NUMBERS, "height": st.integers(1, 9)},
                optional={"not_exhaustive_category_ids": st.lists(st.integers(1, 2)), "note": TEXTS},
            ),
            max_size=6,
        )
    )
    annotations = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "id": st.integers(-5, 70_000),
                    "image_id": st.integers(0, 9),
                    "category_id": st.integers(0, 3),
                    "bbox": st.lists(NUMBERS, min_size=4, max_size=4),
                },
                optional={
                    "area": NUMBERS,
                    "iscrowd": st.sampled_from([0, 1, True]),
                    "segmentation": st.one_of(RINGS, MASKS),
                    "attributes": st.fixed_dictionaries({}, optional={"occluded": st.booleans(), "rotation": NUMBERS}),
                    "ignore": st.sampled_from([0, 1, "true"]),
                    "parts": st.lists(st.fixed_dictionaries({"x": TEXTS}), max_size=3),
                },
            ),
            max_size=8,
        )
    )
    document = {"info": {"a": [1, {"b": 2}]}, "images": images, "annotations": annotations}
    document["categories"] = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    if draw(st.booleans()):
        document["other"] = [[1], {"a": "}, {"}, None]
    for _ in range(draw(st.integers(0, 2))):
        records = draw(st.sampled_from([images, annotations, document["categories"]]))
        if records:
            record = draw(st.sampled_from(records))
            key = draw(st.sampled_from(sorted(record)))
            record[key] = draw(ODD)
    names = draw(st.permutations(list(document)))
    return {name: document[name] for name in names}


@settings(max_examples=100, deadline=None)
@given(documents(), st.sampled_from([16, 40, 300, 1 << 20]), st.sampled_from([None, 1]), st.booleans())
def test_columns_are_those_of_the_records(tmp_path_factory, document, window, indent, plain):
    path = tmp_path_factory.getbasetemp() / "columns.json"
    path.write_bytes(json.dumps(document, indent=indent, ensure_ascii=plain).encode("utf-8", "surrogatepass"))
    assert_read_the_same(path, window)


@settings(max_examples=100, deadline=None)
@given(documents(), st.sampled_from([16, 40, 300, 1 << 20]), st.randoms())
def test_a_damaged_file_is_refused_in_the_same_words(tmp_path_factory, document, window, generator: random.Random):
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    data = json.dumps(document).encode()
    place = generator.randrange(len(data))
    piece = generator.choice(
        [b"", b",", b"]", b"}", b'"', b"\xff", b"9" * 30, b"tru", b"[", b"{", b"\xc3", b"\n", b":"]
    )
    cut = generator.choice([0, 1, 1, 5])
    data = data[:place] if generator.random() < 0.3 else data[:place] + piece + data[place + cut :]
    path.write_bytes(generator.choice([b"", b"\xef\xbb\xbf", b" \n"]) + data)
    assert_read_the_same(path, window)


@pytest.mark.parametrize("window", [16, 64, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xef\xbb\xbf",
        b"\xef\xbb",
        b"\xef\xbb\xbf\xff",
        b'\xef\xbb\xbf{"images": "\xff"}',
        b'\xef\xbb\xbf{"images": [], "note": "' + b"x" * 100 + b'\xc3"}',
        b"[]",
        b"3",
        b"{}",
        b"{} 1",
        b'{"images": [',
        b'{"images": [1, 2,]}',
        b'{"images": [], "images": [{"id": 1}], "annotations": [3], "categories": {}}',
        b'{"images": [{"id": 1}], "images": [], "annotations": [], "categories": []}',
        b'{"images": [], "annotations": null, "categories": []}',
        b'{"images": 5, "info": 3, "licenses": [4], "annotations": [], "categories": []}',
        b'{"images": "\xff"}',
        b'{"images": [nul], "x": "\xff"}',
        b'{"a": ' + b"[" * 100_000,
        b'{"images": [], "annotations": [], "categories": [{"id": 99999999999999999999999, "name": "x"}]}',
        b'{"images": [], "annotations": [], "x": [-9223372036854775808, 9223372036854775808], "categories": []}',
        b'{"images": [{"id": ' + b"9" * 5000 + b"}]}",
        '{"images": [\n{"ä": 1}, {"é": 2, }]}'.encode(),
        b'{"a" 1}',
        b'{"a": 1,}',
        b'{"a": 1 "b": 2}',
        b'{"a": "' + b"x" * 300,
        b'{"images": [{"id": 1} {"id": 2}]}',
    ],
)
def test_refusals_are_those_of_the_whole_file(tmp_path, content, window):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    assert_read_the_same(path, window)


@pytest.mark.parametrize("number", ["99999999999999999999.5", "9" * 19 + "e-3", "9" * 30])
def test_a_long_number_is_read_whole_wherever_a_window_ends(tmp_path, number):
    path = tmp_path / "long.json"
    for place in range(12):
        box = f'{{"note": "{"x" * place}", "id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, {number}]}}'
        path.write_text(f'{{"images": [], "annotations": [{box}], "categories": []}}')
        assert_read_the_same(path, 100)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "nowhere.json", tmp_path):
        assert_read_the_same(path, 64)


def test_faults_far_into_a_large_file_name_their_place(tmp_path):
    boxes = [{"id": i, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]} for i in range(50_000)]
    boxes[40_000]["bbox"] = [1, 2, 3]
    boxes[45_000]["bbox"] = None
    path = tmp_path / "large.json"
    images = [{"id": 1, "file_name": "a.jpg", "width": 5, "height": 5}]
    write_coco(path, CocoAnnotations(path, images, boxes, [{"id": 1, "name": "a"}]))
    with pytest.raises(DataError, match=r"annotations\[40000\] \(id 40000\).*\(and 1 more\)"):
        read_columns(path)
    assert_read_the_same(path, 1 << 16)


def test_whole_numbers_are_stored_narrow_and_none_is_changed(tmp_path):
    ids = [1, 2**40, -(2**62)]
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 5, "height": 5.0} for number in ids]
    boxes = [{"id": i, "image_id": n, "category_id": 7, "bbox": [1, 2, 3, 4]} for i, n in enumerate(ids)]
    columns = columns_of(CocoAnnotations(tmp_path, images, boxes, []))
    assert columns.annotations.image_ids.tolist() == ids and columns.images.ids.tolist() == ids
    assert columns.annotations.category_ids.dtype == np.int16 and columns.annotations.image_ids.dtype == np.int64
    assert columns.images.widths.dtype == np.int64 and [type(side) for side in columns.images.heights] == [float] * 3


def test_rows_are_taken_with_their_outlines(tmp_path):
    rings = [[[0, 0, 1, 0, 1, 1]], [], [[2, 2, 3, 2, 3, 3], [4, 4, 5, 4, 5, 5, 4, 5]], [[1, 2]]]
    boxes = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": ring}
        for i, ring in enumerate(rings)
    ]
    taken = columns_of(CocoAnnotations(tmp_path, [], boxes, [])).annotations.take(np.array([2, 3, 0]))
    assert taken.ids.tolist() == [2, 3, 0] and taken.outlines.polygon_starts.tolist() == [0, 2, 2, 3]
    assert taken.outlines.point_starts.tolist() == [0, 3, 7, 10]
    assert taken.outlines.points[:4].tolist() == [[2, 2], [3, 2], [3, 3], [4, 4]]
