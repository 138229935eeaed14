"""Pascal VOC: read without expanding an entity, both ways to number pixels, boxes kept on a round trip."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.formats.voc import read_voc_file, voc_to_coco
from yolov7.data.formats.voc_write import write_voc
from yolov7.errors import DataError

BOX = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>30</xmax><ymax>60.5</ymax></bndbox>"
OBJECT = f"<object><name>cat</name>{BOX}</object>"
SIZE = "<size><width>200</width><height>100</height><depth>3</depth></size>"


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "a.xml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def document(*objects: str, size: str = SIZE) -> str:
    return f"<annotation><filename>a.jpg</filename>{size}{''.join(objects)}</annotation>"


def read(tmp_path: Path, *objects: str, **more) -> list[dict]:
    image = read_voc_file(write(tmp_path, document(*objects)))
    return voc_to_coco([(image, "a.jpg", (100, 200))], ["cat", "dog"], path=tmp_path, **more).annotations


def test_name_size_and_boxes_are_read(tmp_path):
    image = read_voc_file(write(tmp_path, document(OBJECT)))
    assert (image.file_name, image.size) == ("a.jpg", (100, 200))
    assert image.objects[0].name == "cat" and image.objects[0].box == (11, 21, 30, 60.5)


def test_pixels_may_be_edges_or_numbers_from_one(tmp_path):
    assert read(tmp_path, OBJECT)[0]["bbox"] == [11, 21, 19, 39.5]
    one = read(tmp_path, OBJECT, one_based=True)[0]
    assert one["bbox"] == [10, 20, 20, 40.5] and one["area"] == 810


def test_marks_of_an_object_are_kept_and_its_parts_are_not_objects(tmp_path):
    marked = (
        f"<object><part><name>head</name>{BOX}</part><name>dog</name><pose>Left</pose><truncated>1</truncated>"
        f"<difficult>1</difficult>{BOX}</object>"
    )
    (item,) = read(tmp_path, marked)
    assert (item["category_id"], item["pose"], item["truncated"], item["difficult"]) == (2, "Left", 1, 1)
    assert item["iscrowd"] == 0 and "segmentation" not in item
    assert read(tmp_path, marked, difficult_is_crowd=True)[0]["iscrowd"] == 1


@pytest.mark.parametrize(
    "polygon",
    [
        "<x1>1</x1><y1>2</y1><x2>11</x2><y2>2</y2><x3>11</x3><y3>22</y3>",
        "<pt><x>1</x><y>2</y></pt><pt><x>11</x><y>2</y></pt><pt><x>11</x><y>22</y></pt>",
    ],
)
def test_polygons_are_kept_and_give_the_box_where_there_is_none(tmp_path, polygon):
    (item,) = read(tmp_path, f"<object><name>cat</name><polygon>{polygon}</polygon></object>")
    assert item["segmentation"] == [[1, 2, 11, 2, 11, 22]] and item["bbox"] == [1, 2, 10, 20] and item["area"] == 100


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_a_size_that_is_absent_or_zero_counts_as_missing(tmp_path, size):
    assert read_voc_file(write(tmp_path, document(OBJECT, size=size))).size is None


LAUGHS = "<!DOCTYPE a [<!ENTITY a0 'ha'>" + "".join(
    f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 12)
) + "]><annotation><filename>&a11;</filename></annotation>"  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        LAUGHS,
        "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><annotation><filename>&x;</filename></annotation>",
        "<!DOCTYPE a SYSTEM 'http://127.0.0.1:9/a.dtd'><annotation/>",
        "<?xml version='1.0'?>\n<!DOCTYPE annotation><annotation/>",
        LAUGHS.encode("utf-16"),
    ],
)
def test_a_document_type_is_refused_before_any_entity_is_read(tmp_path, content):
    with pytest.raises(DataError, match=r"line [12]: a document type"):
        read_voc_file(write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not XML"),
        ("{}", "not XML"),
        (document(OBJECT)[:-20], "not XML"),
        (b"<annotation>\xff</annotation>", "not XML"),
        ("<annotation>&x;</annotation>", "not XML"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "not (XML|readable)"),
        ("<?xml version='1.0' encoding='gb2312'?><annotation/>", "not (XML|readable)"),
        ("<html/>", "the root is <html>"),
        ("<a>" * 100_000, "more than 32 nested elements"),
        (document(f"<object>{BOX}</object>"), "object 1: <name> is missing"),
        (document(OBJECT, "<object><name>dog</name></object>"), r"object 2 \(dog\): <bndbox> is missing"),
        (document(OBJECT.replace("30", "wide")), r"object 1 \(cat\): <xmax> is 'wide'"),
        (document(OBJECT.replace("30", "NaN")), "<xmax> is 'NaN'"),
        (document(OBJECT.replace("30", "1e999")), "<xmax> is '1e999'"),
        (document(OBJECT.replace("<xmin>11</xmin>", "")), "<xmin> is missing"),
        (document(size="<size><width>20</width></size>"), "<height> is missing"),
        (document(size=SIZE.replace("200", "20.5")), "not a whole number"),
        (document(size=SIZE.replace("200", "-5")), "not a whole number"),
        (document("<object><name>a</name><polygon><x1>1</x1><y1>1</y1></polygon></object>"), "has 1 points"),
        (document("<object><name>a</name><polygon><x1>1</x1><z/></polygon></object>"), "<y1> is missing"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_an_annotation_is_refused_by_name(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as caught:
        read_voc_file(write(tmp_path, content))
    assert str(tmp_path / "a.xml") in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_class_is_named_with_its_object(tmp_path):
    with pytest.raises(DataError, match=r"a\.xml: object 1: 'cow' is not one of the classes \(cat, dog\)"):
        read(tmp_path, OBJECT.replace("cat", "cow"))


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 300), patch=st.binary(max_size=6), cut=st.integers(0, 400))
def test_a_damaged_file_brings_our_own_error_or_nothing(tmp_path_factory, at, patch, cut):
    whole = document(OBJECT).encode()
    path = write(tmp_path_factory.mktemp("fuzz"), (whole[:at] + patch + whole[at + len(patch) :])[:cut])
    try:
        image = read_voc_file(path)
    except DataError as error:
        assert "a.xml" in str(error)
    else:
        assert all(len(item.box) == 4 for item in image.objects)


def coco_of(annotations: list[dict], width: int = 200, height: int = 100) -> CocoAnnotations:
    images = [{"id": 4, "file_name": "sub/a & b.jpg", "width": width, "height": height}]
    categories = [{"id": 9, "name": "dog <big>"}, {"id": 3, "name": "cat"}]
    return CocoAnnotations(path=Path("source.json"), images=images, annotations=annotations, categories=categories)


def source_images(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/a & b.jpg").write_bytes(b"pixels")
    return folder


def read_back(out: Path, **more) -> CocoAnnotations:
    image = read_voc_file(out / "Annotations/sub/a & b.xml")
    assert image.size is not None
    return voc_to_coco([(image, "sub/a & b.jpg", image.size)], ["cat", "dog <big>"], path=out, **more)


@st.composite
def objects(draw):
    number = st.floats(-50, 20_000)
    result = []
    for identity in range(draw(st.integers(0, 6))):
        item = {"id": identity, "image_id": 4, "category_id": draw(st.sampled_from([3, 9]))}
        item["bbox"] = [draw(number), draw(number), draw(st.floats(0, 20_000)), draw(st.floats(0, 20_000))]
        item["iscrowd"] = draw(st.sampled_from([0, 1]))
        if draw(st.booleans()):
            item["segmentation"] = draw(st.lists(st.lists(number, min_size=8, max_size=8), min_size=1, max_size=3))
        result.append(item)
    return result


@settings(max_examples=80, deadline=None)
@given(annotations=objects(), one_based=st.booleans(), decimals=st.sampled_from([0, 2]))
def test_a_round_trip_keeps_every_box_within_half_a_pixel(tmp_path_factory, annotations, one_based, decimals):
    folder = tmp_path_factory.mktemp("round")
    coco = coco_of(annotations)
    root = source_images(folder / "images")
    assert write_voc(coco, root, folder / "out", one_based=one_based, decimals=decimals) == len(annotations)
    again = read_back(folder / "out", one_based=one_based)
    assert [(image["width"], image["height"]) for image in again.images] == [(200, 100)]
    near = 0.0051 if decimals else 0.5001
    for found, original in zip(again.annotations, annotations, strict=True):
        assert found["category_id"] == {3: 1, 9: 2}[original["category_id"]]
        assert found["iscrowd"] == original["iscrowd"]
        assert corners(found) == pytest.approx(corners(original), abs=near)
        assert len(found.get("segmentation", [])) == len(original.get("segmentation", []))
        for ring, drawn in zip(found.get("segmentation", []), original.get("segmentation", []), strict=True):
            assert ring == pytest.approx(drawn, abs=near)


def corners(annotation: dict) -> list[float]:
    x, y, w, h = annotation["bbox"]
    return [x, y, x + w, y + h]


def test_the_layout_is_that_of_the_challenge(tmp_path):
    coco = coco_of([{"id": 1, "image_id": 4, "category_id": 3, "bbox": [1, 2, 3, 4], "pose": "Left", "truncated": 1}])
    write_voc(coco, source_images(tmp_path / "images"), tmp_path / "out", image_set="train")
    assert (tmp_path / "out/ImageSets/Main/train.txt").read_text() == "sub/a & b\n"
    assert (tmp_path / "out/JPEGImages/sub/a & b.jpg").read_bytes() == b"pixels"
    (item,) = read_back(tmp_path / "out").annotations
    assert (item["pose"], item["truncated"], item["difficult"], item["bbox"]) == ("Left", 1, 0, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"categories": [{"id": 3, "name": "bell\x07"}]}, "XML cannot hold"),
        ({"categories": [{"id": 3, "name": " cat"}]}, "spaces around"),
        ({"categories": [{"id": 1, "name": "cat"}]}, "category_id 3 is not a category of this file"),
        ({"images": [{"id": 4, "file_name": "gone.jpg", "width": 5, "height": 5}]}, "cannot be copied"),
        ({"images": [{"id": 4, "file_name": "../a.jpg", "width": 5, "height": 5}]}, "leaves the image folder"),
        ({"images": [{"id": 4, "file_name": "a.jpg", "width": 0, "height": 5}]}, "not positive"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_nothing_is_left(tmp_path, change, words):
    coco = coco_of([{"id": 1, "image_id": 4, "category_id": 3, "bbox": [1, 2, 3, 4]}])
    for name, records in change.items():
        getattr(coco, name)[:] = records
    with pytest.raises(DataError, match=words):
        write_voc(coco, source_images(tmp_path / "images"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
