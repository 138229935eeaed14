"""COCO files as labelling tools export them: the COCO rows of "Exports of labelling tools" in docs/data.md.

Each export is rebuilt small: what is taken, what is converted with a note, what is refused and with which advice.
"""

import json
import math
import unicodedata

import pytest
from exports import FISH, HEIGHT, WIDTH, Export, box, bring_in, image, picture

from yolov7.data.sources.coco import read_coco_sets
from yolov7.data.sources.parameters import Coco
from yolov7.errors import DataError

RING = [2, 3, 12, 3, 12, 15, 2, 15]
RUNS = {"counts": [2 * HEIGHT + 3, 12, 18, 12, 18, 12, WIDTH * HEIGHT - 2 * HEIGHT - 75], "size": [HEIGHT, WIDTH]}
"""A mask of columns 2 to 4, rows 3 to 14, in run lengths down the columns."""
CRC32 = 4294967295


def test_cvat_without_a_size_with_subfolders_and_an_object_without_a_label(tmp_path):
    export = Export(
        [box(attributes={"occluded": True, "rotation": 0.0}), box(2, category_id=0, bbox=[1, 1, 5, 5])],
        images=[image(1, "a.jpg", width=0, height=0, license=0, flickr_url="", date_captured=0)],
        categories=[{"id": 1, "name": "fish", "supercategory": ""}],
        files=("images/train/a.jpg",),
        top={"info": {"contributor": "", "year": ""}, "licenses": [{"name": "", "id": 0, "url": ""}]},
    )
    made = bring_in(tmp_path, export)
    (record,) = made.images
    assert (record["file_name"], record["width"], record["height"]) == ("images/train/a.jpg", WIDTH, HEIGHT)
    assert "subfolders" in made.notes and "1 images have no size in the annotations" in made.notes
    assert "1 annotations have category_id 0" in made.notes and "marks without effect here: occluded 1" in made.notes


@pytest.mark.parametrize(("as_objects", "crowds"), [(False, 2), (True, 0)])
def test_cvat_and_darwin_masks_written_as_crowds(tmp_path, as_objects, crowds):
    masks = [box(1, iscrowd=1, segmentation=RUNS), box(2, iscrowd=1, area=0, bbox=[1, 1, 9, 9]), box(3, iscrowd=0)]
    made = bring_in(tmp_path, Export(masks), crowd_is_object=as_objects)
    assert sum(one["iscrowd"] for one in made.annotations) == crowds
    assert made.annotations[0]["segmentation"] == RUNS
    if as_objects:
        assert "2 crowds are objects (data.coco.crowd_is_object): fish 2" in made.notes
        assert "area" not in made.annotations[1]
    else:
        assert "2 of 3 objects are crowds (iscrowd 1): neither learned nor counted: fish 2" in made.notes
        assert "data.coco.crowd_is_object: true" in made.notes


def test_cvat_rotated_boxes(tmp_path):
    turned = [box(1, attributes={"rotation": 90.0}), box(2, attributes={"rotation": "45"}), box(3)]
    half = box(4, attributes={"rotation": 180.0}, bbox=[1, 1, 3, 3])
    made = bring_in(tmp_path / "kept", Export([*turned, half]))
    assert made.boxes[0] == [2, 3, 10, 12] and "2 of 4 objects are rotated" in made.notes
    made = bring_in(tmp_path / "enclosed", Export([*turned, half]), enclose_rotated=True)
    diagonal = 22 / math.sqrt(2)
    assert made.boxes[0] == pytest.approx([1, 4, 12, 10])
    assert made.boxes[1] == pytest.approx([7 - diagonal / 2, 9 - diagonal / 2, diagonal, diagonal])
    assert made.boxes[2:] == [[2, 3, 10, 12], [1, 1, 3, 3]]
    assert "2 boxes were enlarged" in made.notes and "are rotated" not in made.notes


def test_label_studio_backslashes_null_sizes_ids_as_texts_and_ignore(tmp_path):
    export = Export(
        [box("0", image_id="0", category_id="0", ignore=0), box("1", image_id="0", category_id="1", ignore=1)],
        images=[image("0", "images\\0.jpg"), image("1", "..\\..\\media\\upload\\4\\1.jpg", width=None, height=None)],
        categories=[{"id": "0", "name": "crab"}, {"id": "1", "name": "fish"}],
        files=("images/0.jpg", "images/1.jpg"),
    )
    made = bring_in(tmp_path / "kept", export)
    assert [one["file_name"] for one in made.images] == ["images/0.jpg", "images/1.jpg"]
    assert [one["id"] for one in made.images] == [0, 1] and made.images[1]["height"] == HEIGHT
    assert [(one["image_id"], one["category_id"]) for one in made.annotations] == [(0, 0), (0, 1)]
    for words in ("backslashes", "base name", "no size", "ids of images", "values of category_id"):
        assert words in made.notes
    assert "1 of 2 objects are marked ignore, but learned and counted: fish 1" in made.notes
    made = bring_in(tmp_path / "left out", export, ignore_is_crowd=True)
    assert [one.get("iscrowd") for one in made.annotations] == [None, 1]
    assert "1 annotations marked ignore are crowds" in made.notes


def test_label_studio_addresses_and_an_ambiguous_base_name(tmp_path):
    names = [
        "/data/local-files/?d=sub%2F1.jpg",
        "s3://bucket/x/2.jpg",
        "../../media/3.jpg",
        "https://h/4.jpg?sig=secret",
    ]
    images = [image(number, name) for number, name in enumerate(names, 1)]
    files = ("sub/1.jpg", "2.jpg", "3.jpg", "a/4.jpg", "b/4.jpg")
    with pytest.raises(DataError, match=r"1 of 4 images.*image 4.*it could be 'a/4\.jpg' or 'b/4\.jpg'") as caught:
        bring_in(tmp_path / "two", Export([box()], images=images, files=files))
    assert "secret" not in str(caught.value)
    made = bring_in(tmp_path / "one", Export([box()], images=images, files=files[:-1]))
    assert [one["file_name"] for one in made.images] == list(files[:-1]) and "secret" not in made.notes


@pytest.mark.parametrize("name", ["sea", "fish"])
def test_roboflow_group_category_without_annotations(tmp_path, name):
    """Also one with the name of a class. A class without annotations stays."""
    categories = [
        {"id": 0, "name": name, "supercategory": "none"},
        {"id": 1, "name": "fish", "supercategory": name},
        {"id": 2, "name": "trap", "supercategory": name},
    ]
    made = bring_in(tmp_path / "auto", Export([box()], categories=categories))
    assert [one["id"] for one in made.categories] == [1, 2]
    assert f"category 0 {name!r} was left out" in made.notes and "numbered without it" in made.notes
    made = bring_in(tmp_path / "kept", Export([box()], categories=categories), placeholder_categories="keep")
    assert [one["id"] for one in made.categories] == [0, 1, 2]


def test_roboflow_group_category_with_annotations_in_one_set(tmp_path):
    categories = [
        {"id": 0, "name": "sea", "supercategory": "none"},
        {"id": 1, "name": "fish", "supercategory": "sea"},
    ]
    plain = Export([box()], categories=categories)
    used = Export([box(), box(2, category_id=0, bbox=[1, 1, 4, 4])], categories=categories)
    with pytest.raises(DataError, match=r"category 0 'sea' names a group.*1 annotations have it; set data"):
        bring_in(tmp_path / "auto", plain, used)
    made = bring_in(tmp_path / "dropped", used, plain, placeholder_categories="drop")
    assert len(made.annotations) == 1 and "was left out with its 1 annotations" in made.notes
    made = bring_in(tmp_path / "kept", used, plain, placeholder_categories="keep")
    assert len(made.annotations) == 2 and len(made.categories) == 2


def test_classes_without_annotations_stay_and_unused_parents_are_named(tmp_path):
    categories = [
        {"id": 1, "name": "fish", "supercategory": "none"},
        {"id": 2, "name": "trap", "supercategory": "none"},
        {"id": 3, "name": "animal", "supercategory": "thing"},
        {"id": 4, "name": "crab", "supercategory": "animal"},
        {"id": 5, "name": "person", "supercategory": "person"},
    ]
    made = bring_in(tmp_path / "auto", Export([box()], categories=categories))
    assert [one["id"] for one in made.categories] == [1, 2, 3, 4, 5]
    assert made.notes.count("was left out") == 0 and "category 3 'animal' is a class without annotations" in made.notes
    made = bring_in(tmp_path / "dropped", Export([box()], categories=categories), placeholder_categories="drop")
    assert [one["id"] for one in made.categories] == [1, 2, 4, 5]


def test_roboflow_texts_in_info(tmp_path):
    top = {"info": {"year": "2026", "version": "1"}, "licenses": [{"id": 1, "url": "x", "name": "CC BY 4.0"}]}
    name = "a_jpg.rf.0123456789abcdef0123456789abcdef.jpg"
    made = bring_in(tmp_path, Export([box(segmentation=[])], images=[image(1, name)], files=(name,), top=top))
    assert made.notes == ""


def test_roboflow_copies_of_one_original_in_two_splits(tmp_path):
    names = [f"a_jpg.rf.{digit * 32}.jpg" for digit in "0123"]
    train, val = (Export([box()], [image(1, name)], files=(name,)) for name in names[:2])
    bring_in(tmp_path / "apart", train, val)
    notes = json.loads((tmp_path / "apart/out/dataset.json").read_text())["notes"]
    assert any("1 originals have copies" in note and "'a_jpg' (train, val)" in note for note in notes)
    other = Export([box()], [image(1, f"b_jpg.rf.{'4' * 32}.jpg")], files=(f"b_jpg.rf.{'4' * 32}.jpg",))
    bring_in(tmp_path / "together", train, other)
    assert json.loads((tmp_path / "together/out/dataset.json").read_text())["notes"] == []


def test_via_texts_flat_outlines_an_entry_per_annotation_and_points(tmp_path):
    export = Export(
        [
            box(0, image_id="0", segmentation=RING, bbox=[2, 3, 10, 12]),
            box(0, image_id="0", segmentation=RING, bbox=[2, 3, 10, 12]),
            box(1, image_id="0", bbox=[], area=[], segmentation=[[]]),
        ],
        images=[image(0, "a.jpg", coco_url="/home/me/a.jpg", date_captured="")],
        categories=[{"id": 1, "name": "fish", "supercategory": "class"}] * 3,
        files=("a.jpg",),
    )
    made = bring_in(tmp_path, export)
    assert made.categories == [{"id": 1, "name": "fish", "supercategory": "class"}]
    assert len(made.annotations) == 1 and made.annotations[0]["segmentation"] == [RING]
    for words in ("values of image_id", "one flat list", "entries of a category", "given twice with the same id"):
        assert words in made.notes
    assert "annotations of points without a box or an outline were left out" in made.notes


def test_supervisely_sides_one_pixel_short(tmp_path):
    export = Export(
        [box(keypoints=[0, 0, 0, 8, 9, 2], num_keypoints=2, bbox=[0, 0, 8, 9]), box(2, segmentation=RUNS, iscrowd=0)],
        categories=[{"id": 1, "name": "fish", "supercategory": "fish", "keypoints": ["a", "b"], "sly_id": 5}],
    )
    made = bring_in(tmp_path / "kept", export)
    assert made.boxes[0] == [0, 0, 8, 9] and "1 of 2 objects have absent keypoints" in made.notes
    assert "one pixel short: data.coco.boxes: inclusive" in made.notes
    assert made.boxes[1] == [2, 3, 10, 12] and [one["id"] for one in made.categories] == [1]
    made = bring_in(tmp_path / "longer", export, boxes="inclusive")
    assert made.boxes[0] == [0, 0, 9, 10] and "2 boxes were converted to pixels" in made.notes


def test_makesense_polygons_without_boxes_and_masks_without_boxes(tmp_path):
    outlined = [{"id": 0, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [RING]}]
    outlined.append({"id": 1, "image_id": 1, "category_id": 1, "bbox": None, "segmentation": RUNS})
    made = bring_in(tmp_path, Export(outlined))
    assert made.boxes == [[2, 3, 10, 12], [2, 3, 3, 12]]
    assert "no bbox, so the box around the outline was taken: 2" in made.notes


def test_fiftyone_without_annotations_flags_or_supercategories(tmp_path):
    export = Export(
        [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [1, 1, 5, 5], "score": 0.9, "my_attribute": "x"}],
        categories=[{"id": 0, "name": "fish", "supercategory": None}],
        top={"info": None, "licenses": None},
    )
    empty = Export([], categories=export.categories, top={"annotations": None})
    made = bring_in(tmp_path, export, empty)
    assert [one["id"] for one in made.categories] == [0] and made.annotations[0]["my_attribute"] == "x"
    assert "1 of 1 objects have a score" in made.notes
    notes = json.loads((tmp_path / "out/dataset.json").read_text())["notes"]
    assert any(note.startswith("val: no list `annotations`") for note in notes)


def test_darwin_ids_of_crc32_and_labelbox_ids_of_letters(tmp_path):
    categories = [{"id": CRC32, "name": "fish", "supercategory": "root"}, {"id": 7, "name": "crab"}]
    crabs = [box(category_id=CRC32, extra={}, segmentation=[RING]), box(2, category_id=7, bbox=[1, 1, 4, 4])]
    made = bring_in(tmp_path / "darwin", Export(crabs, categories=categories))
    assert [one["category_id"] for one in made.annotations] == [CRC32, 7] and made.notes == ""
    letters = [box("ck1", image_id="img-a", category_id="cat-x"), box("ck2", image_id="007", category_id="cat-x")]
    images = [image("img-a", "1.jpg"), image("007", "2.jpg")]
    export = Export(letters, images, [{"id": "cat-x", "name": "fish"}], ("1.jpg", "2.jpg"))
    made = bring_in(tmp_path / "labelbox", export)
    assert [one["id"] for one in made.images] == [1, 2] == [one["image_id"] for one in made.annotations]
    assert made.images[1]["source_id"] == "007" and made.categories[0]["id"] == 1 and "'img-a' is 1" in made.notes


def test_labelme2coco_background_entry(tmp_path):
    categories = [{"id": 0, "name": "_background_", "supercategory": None}, *FISH]
    top = {"info": {"description": None, "url": None}}
    made = bring_in(tmp_path, Export([box()], categories=categories, top=top))
    assert [one["name"] for one in made.categories] == ["fish"] and "'_background_' was left out" in made.notes


def test_azure_boxes_as_shares_of_the_sides(tmp_path):
    export = Export(
        [box(bbox=[0.1, 0.2, 0.5, 0.5], area=0.25), box(2, bbox=[0, 0, 1, 1], area=1)],
        images=[image(1, "1.jpg", absolute_url="https://store/1.jpg")],
    )
    with pytest.raises(DataError, match=r"2 boxes are within 0 to 1.*data\.coco\.boxes to relative or to pixels"):
        bring_in(tmp_path / "unsaid", export)
    gone = Export([*export.annotations, box(3, bbox=[1])], images=[image(1), image(2)])
    with pytest.raises(DataError, match=r"`bbox` is \[1\].*2 boxes are within 0 to 1.*image 2: '2\.jpg' is missing"):
        bring_in(tmp_path / "with others", gone)
    made = bring_in(tmp_path / "relative", export, boxes="relative")
    assert made.boxes == [pytest.approx([4, 6, 20, 15]), [0, 0, 40, 30]]
    assert [one["area"] for one in made.annotations] == [300, 1200]
    assert bring_in(tmp_path / "pixels", export, boxes="pixels").boxes[1] == [0, 0, 1, 1]


def test_corners_in_place_of_sides(tmp_path):
    corners = [box(number, bbox=[20 + number, 10, 38, 28 + number % 2]) for number in range(1, 5)]
    made = bring_in(tmp_path / "kept", Export(corners))
    assert made.boxes[0] == [21, 10, 38, 29] and "4 of 4 boxes leave their image" in made.notes
    made = bring_in(tmp_path / "corners", Export(corners), boxes="corners")
    assert made.boxes[0] == [21, 10, 17, 19]
    one = [*corners[:1], *[box(number, bbox=[5, 5, 4, 4]) for number in range(5, 9)]]
    assert bring_in(tmp_path / "one", Export(one)).notes == ""


def test_lvis_paths_of_addresses_and_classes_not_exhaustive(tmp_path):
    images = [
        {**image(1, coco_url="http://images.cocodataset.org/val2017/7.jpg"), "not_exhaustive_category_ids": [1]},
        image(2, "COCO_val2014_000000000008.jpg", coco_url="http://images.cocodataset.org/train2017/8.jpg"),
    ]
    del images[0]["file_name"]
    files = ("val2017/7.jpg", "train2017/8.jpg", "train2017/7.jpg")
    made = bring_in(tmp_path, Export([box()], images, files=files))
    assert [one["file_name"] for one in made.images] == ["val2017/7.jpg", "train2017/8.jpg"]
    assert "no file_name, so the end of coco_url was taken" in made.notes and "found by their coco_url" in made.notes
    assert "1 of 2 images list classes that are not annotated exhaustively" in made.notes


def test_objects365_flags_and_patch_folders(tmp_path):
    export = Export([box(isfake=1, isreflected=0), box(2, isreflected=1, bbox=[1, 1, 4, 4])])
    export.images[0]["file_name"] = "images/v1/patch3/objects365_v1_1.jpg"
    export.files = ("patch3/objects365_v1_1.jpg",)
    made = bring_in(tmp_path, export)
    assert made.images[0]["file_name"] == "patch3/objects365_v1_1.jpg" and "leading folders dropped" in made.notes
    assert "2 of 2 objects have marks without effect here: isfake 1, isreflected 1" in made.notes


@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_names_in_other_letters_and_percent_encoded(tmp_path, written):
    disk = unicodedata.normalize("NFD" if written == "NFC" else "NFC", "café.jpg")
    images = [image(1, unicodedata.normalize(written, "café.jpg")), image(2, "photo%20(1).jpg")]
    made = bring_in(tmp_path, Export([box()], images, files=(disk, "photo (1).jpg")))
    assert [one["file_name"] for one in made.images] == [disk, "photo (1).jpg"]
    assert (made.folder / "train/images" / disk).is_file()


def test_missing_ids_equal_names_and_nameless_categories(tmp_path):
    categories = [{"id": 1, "name": "fish"}, {"id": 2, "name": "fish"}, {"id": 3, "name": None}]
    boxes = [box(None), box(7, category_id=2, bbox=[1, 1, 4, 4], area=None, segmentation=None, iscrowd=None)]
    made = bring_in(tmp_path / "kept", Export(boxes, categories=categories))
    assert [one["id"] for one in made.annotations] == [8, 7] and [one["id"] for one in made.categories] == [1, 2]
    assert "area" not in made.annotations[1] and "without an id were numbered" in made.notes
    assert "'fish' 2 times); validation stops at them; data.coco.merge_equal_names: true" in made.notes
    made = bring_in(tmp_path / "merged", Export(boxes, categories=categories), merge_equal_names=True)
    assert [one["category_id"] for one in made.annotations] == [1, 1] and "1 categories were merged" in made.notes


def test_all_problems_of_a_file_in_one_message(tmp_path):
    export = Export(
        [box(category_id=None), box(2, bbox=[1, 2, 3]), box(3, category_id="trap"), box(4, area="large")],
        images=[image(1, "gone.jpg"), image(2, "2.jpg", width="wide")],
        categories=[*FISH, {"id": 2, "name": None}, {"id": 3, "name": 5}],
        files=("2.jpg",),
    )
    with pytest.raises(DataError) as caught:
        bring_in(tmp_path, export, Export([box()]))
    text = str(caught.value)
    for words in ("`width` is 'wide'", "`category_id` is None", "(and 1 more)", "`bbox` is [1, 2, 3]", "`area`",
                  "`name` is 5", "image 1: 'gone.jpg' is missing"):  # fmt: skip
        assert words in text
    assert "\n" not in text and len(text) < 1000


def test_an_address_of_another_image_and_an_outline_elsewhere_are_counted(tmp_path):
    crossed = [image(1, coco_url="http://h/2.jpg?sig=x"), image(2, coco_url="http://h/other.jpg")]
    far = [[20, 15, 30, 15, 30, 25, 20, 25]]
    near = [[3, 4, 11, 4, 11, 14, 3, 14]]
    export = Export([box(1, segmentation=far), box(2, segmentation=near)], images=crossed, files=("1.jpg", "2.jpg"))
    made = bring_in(tmp_path, export)
    assert "1 images have the file_name of one image and the address of another; file_name counts" in made.notes
    assert "1 of 2 objects have a box and an outline that disagree; the box counts: fish 1" in made.notes


def test_problems_of_all_sets_are_in_one_message(tmp_path):
    train = Export([box(bbox=[1, 2, 3])])
    val = Export([box()], images=[image(name="lost.jpg")], categories=[{"id": "x"}])
    with pytest.raises(DataError) as caught:
        bring_in(tmp_path / "records", train, val)
    for words in ("train.json", "val.json", "lost.jpg", "bbox", "2 problems in all"):
        assert words in str(caught.value)
    (tmp_path / "files").mkdir()
    (tmp_path / "files/val.json").write_text("{")
    sets = {split: {"images": split, "annotations": f"{split}.json"} for split in ("train", "val")}
    with pytest.raises(DataError) as caught:
        read_coco_sets(Coco.model_validate(sets), tmp_path / "files")
    for words in ("files/train.json", "files/val.json", "data.coco.train.images", "data.coco.val.images"):
        assert words in str(caught.value)


def test_images_that_no_record_of_any_set_names_are_counted(tmp_path):
    export = Export([box()], files=("1.jpg", "sub/2.jpg", "sub/3.jpg"))
    made = bring_in(tmp_path / "apart", export)
    assert "2 images are named by no record and were left out: 'sub/2.jpg', 'sub/3.jpg'" in made.notes
    folder = tmp_path / "shared"
    for number, split in enumerate(("train", "val"), 1):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / f"images/{number}.jpg").write_bytes(picture(number))
        (folder / "images/readme.txt").write_text("no image")
        (folder / f"{split}.json").write_text(json.dumps(Export([], images=[image(number)]).document()))
    sets = {split: {"images": "images", "annotations": f"{split}.json"} for split in ("train", "val")}
    read = read_coco_sets(Coco.model_validate(sets), folder)
    assert not any("named by no record" in note for one in read.values() for note in one.notes)
    (folder / "images/3.jpg").write_bytes(picture(3))
    read = read_coco_sets(Coco.model_validate(sets), folder)
    assert [sum("1 images are named" in note for note in one.notes) for one in read.values()] == [1, 0]


@pytest.mark.parametrize("place", ["train", "."])
def test_classes_of_whole_images_are_refused(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "_classes.csv").write_text("filename, fish\n1.jpg, 1\n")
    with pytest.raises(DataError, match=r"_classes\.csv: holds classes of whole images and no boxes"):
        bring_in(tmp_path, Export([box()]))
