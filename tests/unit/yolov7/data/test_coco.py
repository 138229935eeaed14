"""Reading and writing COCO annotation files: what is kept, and what is refused by file, record and field."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.data.formats.coco import CocoAnnotations, read_coco, write_coco
from yolov7.errors import DataError


def document() -> dict:
    return {
        "info": {"description": "two images"},
        "licenses": [{"id": 3, "name": "CC BY 2.0"}],
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48, "license": 3, "photographer": "me"},
            {"id": 9, "file_name": "sub/b.jpg", "width": 32, "height": 32},
        ],
        "annotations": [
            {"id": 11, "image_id": 7, "category_id": 5, "bbox": [1, 2.5, 10, 20], "iscrowd": 0, "score": 0.5},
            {
                "id": 12,
                "image_id": 9,
                "category_id": 5,
                "bbox": [0, 0, 8, 8],
                "iscrowd": 1,
                "segmentation": {"counts": [3, 4], "size": [32, 32]},
            },
        ],
        "categories": [{"id": 5, "name": "digit", "supercategory": "thing"}],
    }


def save(folder: Path, value: object) -> Path:
    path = folder / "annotations.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_reads_every_field_and_keeps_unknown_ones(tmp_path):
    coco = read_coco(save(tmp_path, document()))
    assert coco.path == tmp_path / "annotations.json"
    assert [image["id"] for image in coco.images] == [7, 9]
    assert coco.images[0]["photographer"] == "me"
    assert coco.annotations[0]["score"] == 0.5
    assert coco.annotations[1]["segmentation"]["counts"] == [3, 4]
    assert coco.licenses[0]["name"] == "CC BY 2.0"
    assert coco.info == {"description": "two images"}


def test_writing_and_reading_meet_and_the_bytes_are_stable(tmp_path):
    first = read_coco(save(tmp_path, document()))
    write_coco(tmp_path / "copy.json", first)
    again = read_coco(tmp_path / "copy.json")
    assert (again.images, again.annotations, again.categories) == (first.images, first.annotations, first.categories)
    assert (again.info, again.licenses) == (first.info, first.licenses)
    write_coco(tmp_path / "copy2.json", again)
    assert (tmp_path / "copy.json").read_bytes() == (tmp_path / "copy2.json").read_bytes()


def test_values_are_left_to_validation(tmp_path):
    values = document()
    values["annotations"][0]["bbox"] = [math.nan, math.inf, -5, 0]
    values["annotations"][0]["image_id"] = 404
    coco = read_coco(save(tmp_path, values))
    write_coco(tmp_path / "copy.json", coco)
    box = read_coco(tmp_path / "copy.json").annotations[0]["bbox"]
    assert math.isnan(box[0]) and box[1:] == [math.inf, -5, 0]


def test_a_byte_order_mark_and_missing_info_are_accepted(tmp_path):
    values = document()
    del values["info"], values["licenses"]
    coco = read_coco(save(tmp_path, "\ufeff" + json.dumps(values)))
    assert coco.info == {} and coco.licenses == [] and len(coco.images) == 2


def test_empty_lists_survive(tmp_path):
    write_coco(tmp_path / "empty.json", CocoAnnotations(tmp_path, [], [], []))
    assert read_coco(tmp_path / "empty.json").images == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b'{"images": [', "not JSON"),
        (b"[]", "a list; expected an object"),
        (b"3", "a number; expected an object"),
        (b'{"images": "\xff"}', "not UTF-8 at byte 12"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images": [], "annotations": [], "categories": [{"id": 99999999999999999999999, "name": "x"}]}', "64 bits"),
        (b'{"images": [{"id": ' + b"9" * 5000 + b"}]}", "64 bits"),
    ],
)
def test_a_file_that_is_not_an_annotation_file_is_refused(tmp_path, content, words):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_coco(path)
    assert caught.value.path == str(path) and str(path) in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json: no such annotation file"):
        read_coco(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_coco(tmp_path)


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_missing_list_wrong_list_and_wrong_record_are_refused(tmp_path, name):
    values = document()
    del values[name]
    with pytest.raises(DataError, match=f"the list `{name}` is missing"):
        read_coco(save(tmp_path, values))
    values[name] = {"0": {}}
    with pytest.raises(DataError, match=f"`{name}` is an object; expected a list"):
        read_coco(save(tmp_path, values))
    values[name] = [*document()[name], "text"]
    with pytest.raises(DataError, match=rf"{name}\[{len(values[name]) - 1}\]: expected an object, found a text"):
        read_coco(save(tmp_path, values))


REQUIRED = [
    *[("images", key) for key in ("id", "file_name", "width", "height")],
    *[("annotations", key) for key in ("id", "image_id", "category_id", "bbox")],
    *[("categories", key) for key in ("id", "name")],
]


@pytest.mark.parametrize(("name", "key"), REQUIRED)
def test_a_missing_or_null_field_is_named_with_its_record(tmp_path, name, key):
    values = document()
    record = values[name][-1]
    identity = "" if key == "id" else rf" \(id {record['id']}\)"
    place = rf"{name}\[{len(values[name]) - 1}\]{identity}"
    record[key] = None
    with pytest.raises(DataError, match=f"{place}: field `{key}` is None"):
        read_coco(save(tmp_path, values))
    del record[key]
    with pytest.raises(DataError, match=f"{place}: field `{key}` is missing"):
        read_coco(save(tmp_path, values))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("images", "id", "7"),
        ("images", "id", True),
        ("images", "id", 7.0),
        ("images", "file_name", ""),
        ("images", "file_name", "a\0.jpg"),
        ("images", "file_name", "\ud800.jpg"),
        ("images", "width", "64"),
        ("annotations", "bbox", [1, 2, 3]),
        ("annotations", "bbox", [1, 2, 3, "4"]),
        ("annotations", "bbox", {"x": 1}),
        ("annotations", "category_id", "5"),
        ("annotations", "iscrowd", 2),
        ("annotations", "iscrowd", "0"),
        ("annotations", "area", "12"),
        ("annotations", "segmentation", [[1, 2, "3"]]),
        ("annotations", "segmentation", {"counts": 3, "size": [1, 1]}),
        ("annotations", "segmentation", {"counts": [1]}),
        ("categories", "name", 8),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path, name, key, value):
    values = document()
    values[name][0][key] = value
    with pytest.raises(DataError, match=rf"{name}\[0\].*field `{key}` is"):
        read_coco(save(tmp_path, values))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    place=st.sampled_from([("info", None), ("licenses", None), *REQUIRED, ("annotations", "segmentation")]),
    value=JSON_VALUES,
)
def test_no_value_anywhere_raises_anything_but_the_projects_error(tmp_path_factory, place, value):
    name, key = place
    values = document()
    if key is None:
        values[name] = value
    else:
        values[name][0][key] = value
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        coco = read_coco(save(folder, values))
    except DataError:
        return
    write_coco(folder / "copy.json", coco)
    copy = read_coco(folder / "copy.json")
    assert json.dumps(copy.annotations) == json.dumps(coco.annotations)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=60))
def test_no_bytes_raise_anything_but_the_projects_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_coco(path)
