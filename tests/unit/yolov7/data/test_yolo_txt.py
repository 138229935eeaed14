"""YOLO text labels: rows read one by one in pixels, bad ones named by file and line, boxes kept on a round trip."""

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.formats.yolo_declared import read_class_names
from yolov7.data.formats.yolo_txt import YoloImage, read_yolo, write_yolo
from yolov7.errors import DataError

NAMES = ["cat", "dog"]


def read(tmp_path: Path, content: str | bytes, height: int = 100, width: int = 200):
    label = tmp_path / "a.txt"
    label.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_yolo([YoloImage("a.jpg", height, width, label)], NAMES, path=tmp_path)


def coco_of(annotations: list[dict], sizes=((200, 100),)) -> CocoAnnotations:
    images = [
        {"id": number, "file_name": f"{number}.jpg", "width": width, "height": height}
        for number, (width, height) in enumerate(sizes, 1)
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]
    return CocoAnnotations(path=Path("source.json"), images=images, annotations=annotations, categories=categories)


def read_back(folder: Path, coco: CocoAnnotations) -> CocoAnnotations:
    images = [
        YoloImage(record["file_name"], record["height"], record["width"], folder / "labels" / f"{record['id']}.txt")
        for record in coco.images
    ]
    return read_yolo(images, read_class_names(folder / "classes.txt"), path=folder)[0]


def test_boxes_and_polygons_are_told_apart_row_by_row(tmp_path):
    coco, notes = read(tmp_path, "1 0.5 0.5 0.25 0.5\n0 0.1 0.2 0.3 0.2 0.3 0.8\n")
    box, polygon = coco.annotations
    assert box["category_id"] == 2 and box["bbox"] == [75, 25, 50, 50] and box["area"] == 2500
    assert "segmentation" not in box and box["line"] == 1
    assert polygon["category_id"] == 1 and polygon["bbox"] == pytest.approx([20, 20, 40, 60])
    assert polygon["segmentation"] == [pytest.approx([20, 20, 60, 20, 60, 80])] and polygon["area"] == pytest.approx(
        1200
    )
    assert coco.images == [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}]
    assert coco.categories == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}] and notes == []


def test_a_repeated_row_is_read_once_and_noted(tmp_path):
    coco, notes = read(tmp_path, "0 .5 .5 .2 .2\n1 .5 .5 .2 .2\n\n0 0.50 0.5 2e-1 0.2\n")
    assert [item["line"] for item in coco.annotations] == [1, 2]
    assert notes == ["1 repeated label rows were left out: a.txt line 4 (as line 1)"]


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf0 .5 .5 .2 .2\r\n\r\n", b"0.0\t.5 .5 .2 .2", b"0 .5 .5 .2 .2\r1 .1 .1 .1 .1"]
)
def test_byte_order_marks_and_line_ends_of_any_system_are_read(tmp_path, content):
    assert read(tmp_path, content)[0].annotations[0]["bbox"] == pytest.approx([80, 40, 40, 20])


def test_no_label_file_and_an_empty_one_mean_an_image_with_nothing_on_it(tmp_path):
    assert read(tmp_path, "")[0].annotations == []
    coco, _ = read_yolo([YoloImage("a.jpg", 10, 10, None)], NAMES, path=tmp_path)
    assert len(coco.images) == 1 and coco.annotations == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0 .5 .5 .2", "4 columns"),
        ("0 .5 .5 .2 .2 .9", "6 columns"),
        ("0 .1 .1 .2 .2 .3 .3 .4", "8 columns"),
        ("0 .5 .5 .2 wide", "'wide' is not a finite number"),
        ("0 .5 .5 .2 nan", "'nan' is not a finite number"),
        ("0 .5 .5 .2 inf", "not a finite number"),
        ("0 .5 .5 .2 1e999", "not a finite number"),
        ("0 .5 .5 .2 1_0", "not a finite number"),
        ("0 .5 .5 .2 ٣", "not a finite number"),
        ("0 .5 -.1 .2 .2", "'-.1' is not within 0 to 1"),
        ("0 320 240 20 20", "'320' is not within 0 to 1"),
        ("0 .5 .5 1.001 .2", "'1.001' is not within 0 to 1"),
        ("0 .1 .1 .2 .2 .3 -0.3", "not within 0 to 1"),
        ("2 .5 .5 .2 .2", "class '2'; expected a whole number from 0 to 1"),
        ("-1 .5 .5 .2 .2", "class '-1'"),
        ("0.5 .5 .5 .2 .2", "class '0.5'"),
        ("cat .5 .5 .2 .2", "'cat' is not a finite number"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, words):
    with pytest.raises(DataError) as caught:
        read(tmp_path, f"0 .5 .5 .2 .2\n{row}\n")
    assert str(caught.value).startswith(f"{tmp_path / 'a.txt'}: line 2: ") and words in str(caught.value)


def test_all_bad_rows_are_counted_and_the_first_few_listed(tmp_path):
    with pytest.raises(DataError, match=r"8 bad rows in all: .*a\.txt line 2: 1 columns.*and 3 more"):
        read(tmp_path, "x\n" * 8)


@pytest.mark.parametrize(("content", "words"), [(b"\xff\xfe0", "not UTF-8"), (b"0 " * 9_000_000, "larger than 16 MiB")])
def test_files_that_are_not_label_files_are_refused(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, content)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(alphabet="01.-e \n\tn9_", max_size=60).map(str.encode)))
def test_any_label_file_raises_only_our_own_error(tmp_path_factory, content):
    try:
        coco, _ = read(tmp_path_factory.mktemp("fuzz"), content)
    except DataError as error:
        assert "a.txt" in str(error) and "\n" not in str(error)
    else:
        assert all(-1 <= value <= 300 for item in coco.annotations for value in item["bbox"][2:])


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("classes.txt", "cat\r\nbig dog \n\n", ["cat", "big dog"]),
        ("a.yaml", "nc: 2\nnames: [cat, dog]\n", ["cat", "dog"]),
        ("a.yml", "names: {1: dog, 0: cat}\n", ["cat", "dog"]),
        ("a.yml", "names: [0, 7]\n", ["0", "7"]),
    ],
)
def test_class_names_come_from_text_or_yaml(tmp_path, name, content, names):
    (tmp_path / name).write_text(content)
    assert read_class_names(tmp_path / name) == names


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("classes.txt", "\n\n", "no class names"),
        ("classes.txt", "cat\n\ndog\n", "line 2: a blank line"),
        ("a.yaml", "names: [cat", "not readable as YAML"),
        ("a.yaml", "[" * 1500, "not readable as YAML"),
        ("a.yaml", "day: 2020-13-45", "no `names`"),
        ("a.yaml", "nc: 2", "no `names`"),
        ("a.yaml", "names: {0: cat, 2: dog}", "not 0 to 1"),
        ("a.yaml", "names: [cat, [dog]]", "class 1: the name is"),
        ("a.yaml", "names: [cat, '']", "class 1: the name is"),
    ],
)
def test_bad_class_names_are_refused(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        read_class_names(tmp_path / name)


sides = st.integers(1, 20_000)


@st.composite
def annotated(draw):
    width, height = draw(sides), draw(sides)

    def edges(side):
        low, high = sorted((draw(st.floats(0, side)), draw(st.floats(0, side))))
        return (low, high) if high - low > 1e-3 else (0.0, float(side))

    annotations = []
    for identity in range(1, draw(st.integers(1, 6)) + 1):
        (left, right), (top, bottom) = edges(width), edges(height)
        item = {"id": identity, "image_id": 1, "category_id": draw(st.sampled_from([3, 9]))}
        item["bbox"] = [left, top, right - left, bottom - top]
        if draw(st.booleans()):
            middle = draw(st.floats(left, right))
            item["segmentation"] = [[left, bottom, middle, top, right, (top + bottom) / 2]]
        annotations.append(item)
    return coco_of(annotations, [(width, height)])


@settings(max_examples=100, deadline=None)
@given(annotated(), st.booleans())
def test_a_round_trip_keeps_every_box_within_half_a_pixel(tmp_path_factory, coco, polygons):
    out = tmp_path_factory.mktemp("round") / "out"
    rows = write_yolo(coco, out, polygons=polygons)
    again = read_back(out, coco)
    assert rows == len(coco.annotations)
    # Rows that became equal are read as one object; no two boxes of different numbers become equal.
    unique = {(a["category_id"], *(round(side, 3) for side in a["bbox"])) for a in coco.annotations}
    assert len(unique) <= len(again.annotations) <= rows
    for found in again.annotations:
        original = coco.annotations[found["line"] - 1]
        assert found["category_id"] == {3: 1, 9: 2}[original["category_id"]]
        assert found["bbox"] == pytest.approx(original["bbox"], abs=0.05)
        assert ("segmentation" in found) == (polygons and "segmentation" in original)
        if "segmentation" in found:
            assert found["segmentation"][0] == pytest.approx(original["segmentation"][0], abs=0.05)


def test_an_outline_that_does_not_reproduce_the_box_is_written_as_the_box(tmp_path):
    common = {"image_id": 1, "category_id": 3, "bbox": [10.0, 10.0, 50.0, 50.0]}
    triangle = [10, 10, 60, 10, 60, 60]
    segmentations = [
        [triangle, [1, 2, 3, 4, 5, 6]], [[20, 20, 60, 10, 60, 60]], [[10, 10, 60, 60]], [[*triangle, 5]], [],
        [[10, 10, 60, 10, 60, float("nan")]], {"counts": [1], "size": [1, 1]},
    ]  # fmt: skip
    coco = coco_of([{"id": i, "segmentation": one, **common} for i, one in enumerate([*segmentations, [triangle]])])
    write_yolo(coco, tmp_path / "out")
    rows = [line.split() for line in (tmp_path / "out/labels/1.txt").read_text().splitlines()]
    assert [len(row) for row in rows] == [5] * 7 + [7]
    assert rows[0] == ["0", "0.175", "0.35", "0.25", "0.5"]


def test_crowds_and_boxes_outside_are_left_out_and_others_cut_with_a_warning(tmp_path, caplog):
    boxes = [([10, 10, 20, 20], 1), ([250, 10, 20, 20], 0), ([-10, 10, 20, 20], 0)]
    coco = coco_of(
        [{"id": i, "image_id": 1, "category_id": 3, "bbox": b, "iscrowd": crowd} for i, (b, crowd) in enumerate(boxes)]
    )
    assert write_yolo(coco, tmp_path / "out") == 1
    assert read_back(tmp_path / "out", coco).annotations[0]["bbox"] == pytest.approx([0, 10, 10, 20])
    assert "1 boxes were clipped" in caplog.text and "2 boxes of crowds" in caplog.text


@pytest.mark.parametrize(
    ("images", "annotation", "words"),
    [
        ([("a.jpg", 1), ("a.png", 2)], {}, "share the label file a.txt"),
        ([("../a.jpg", 1)], {}, "leaves the image folder"),
        ([("/a.jpg", 1)], {}, "absolute path"),
        ([("a.jpg", 1), ("b.jpg", 1)], {}, "image id is repeated"),
        ([("a.jpg", 1)], {"image_id": 5}, "is not an image of this file"),
        ([("a.jpg", 1)], {"category_id": 5}, "is not a category of this file"),
        ([("a.jpg", 1)], {"bbox": [0, 0, float("nan"), 1]}, "not finite"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_nothing_is_left(tmp_path, images, annotation, words):
    coco = coco_of([{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5], **annotation}])
    coco.images[:] = [{"id": number, "file_name": name, "width": 10, "height": 10} for name, number in images]
    with pytest.raises(DataError, match=words):
        write_yolo(coco, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_written_into(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not an empty folder"):
        write_yolo(coco_of([]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["two\nlines", " blank", string.whitespace])
def test_a_class_name_that_is_not_a_line_is_refused(tmp_path, name):
    coco = coco_of([])
    coco.categories[0]["name"] = name
    with pytest.raises(DataError, match="cannot be a line"):
        write_yolo(coco, tmp_path / "out")
