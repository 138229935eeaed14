"""YOLO exports of labelling tools, rebuilt small: what is taken, converted with a note, counted, and refused."""

import json
from pathlib import Path

import pytest
from label_folders import ingested, put, put_image

from yolov7.errors import ConfigError, DataError

BOX = "0 .5 .5 .2 .2\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "mine"


def read(folder: Path, **values: object) -> tuple[list[str], dict, dict]:
    return ingested(folder, {"source": "yolo", "yolo": values})


def images(folder: Path, *places: str, label: str | None = BOX) -> None:
    """Images, each with its label where Ultralytics looks for it."""
    for place in places:
        put_image(folder / place)
        if label is not None:
            parts = Path(place).with_suffix(".txt").parts
            put(folder / Path(*("labels" if part == "images" else part for part in parts)), label)


def test_ultralytics_declares_its_sets_and_contradictions_are_noted(folder):
    images(folder, "images/train/a/1.png", "images/val/2.png")
    put(
        folder / "data.yaml",
        "path: ../datasets/mine\ntrain: images/train\nval: images/val\nnames: {0: no, 1: 0402}\n"
        "nc: 3\nchannels: 10\ndownload: https://example.org/a.zip\nflip_idx: [0]\n",
    )
    notes, dataset, train = read(folder, names="data.yaml")
    assert dataset["classes"] == ["no", "0402"] and train["images"] == ["images/train/a/1.png"]
    assert [count["annotations"] for count in dataset["splits"].values()] == [1, 1, 1]
    text = " ".join(notes)
    for words in ("`nc` is 3, but `names` has 2", "`channels` is 10", "`download` is never run", "without `kpt_shape`"):
        assert words in text
    assert "`images/val` on `path: ../datasets/mine` is read as images/val" in text


def test_sets_of_params_yaml_that_lie_elsewhere_than_declared_are_noted(folder):
    images(folder, "images/train/1.png", "images/val/2.png")
    put(folder / "data.yaml", "train: images/train\nval: images/val\nnames: [a]\n")
    sets = {"train": {"images": "images/val", "labels": "labels/val"}}
    sets["val"] = {"images": "images/train", "labels": "labels/train"}
    notes, _, train = read(folder, names="data.yaml", **sets)
    assert train["images"] == ["2.png"], "params.yaml counts"
    assert "data.yaml has `train` in images/train, params.yaml in images/val: that one counts" in " ".join(notes)


@pytest.mark.parametrize("base", ["..", "/content/mine-1"])
def test_roboflow_paths_are_found_in_the_export(folder, base):
    for split in ("train", "valid", "test"):
        images(folder, f"{split}/images/a_png.rf.{split}.png")
    lines = f"train: {base}/train/images\nval: {base}/valid/images\ntest: {base}/test/images\nnc: 1\nnames: ['a']\n"
    put(folder / "data.yaml", lines + "roboflow:\n  version: 1\n")
    notes, dataset, train = read(folder, names="data.yaml")
    assert train["images"] == ["train/images/a_png.rf.train.png"] and not dataset["test_is_val"]
    assert f"`{base}/valid/images` is read as valid/images" in " ".join(notes)


def test_a_declared_place_with_two_meanings_is_refused(folder):
    images(folder, "train/images/1.png", "one/data/train/images/2.png", "one/train/images/2.png")
    put(folder / "one/data.yaml", "train: data/train/images\nval: data/train/images\nnames: [a]\n")
    with pytest.raises(DataError, match=r"could be .* or .*; give the sets by data.yolo.train"):
        read(folder, names="one/data.yaml")


def test_cvat_yolo_1_1_is_read_without_the_folder_data_and_empty_files_are_counted(folder):
    images(folder, "obj_train_data/f 1.png", label="1 .5 .5 .2 .2\n")
    images(folder, "obj_train_data/f 2.png", "obj_train_data/f 3.png", label="")
    put(folder / "obj.names", "cat\nno\n")
    put(folder / "obj.data", "classes = 3\nnames = data/obj.names\nbackup = backup/\ntrain = data/train.txt\n")
    put(folder / "train.txt", "".join(f"data/obj_train_data/f {n}.png\n" for n in (1, 2, 3)))
    notes, dataset, _ = read(folder, names="obj.data")
    assert dataset["classes"] == ["cat", "no"] and sum(c["annotations"] for c in dataset["splits"].values()) == 1
    text = " ".join(notes)
    for words in ("2 of 3 label files are empty", "leading folders dropped", "divided by data.split", "`classes` is 3"):
        assert words in text
    put(folder / "obj_train_data/f 1.txt", "")
    assert "that is all of them: did the export leave shapes out" in " ".join(read(folder, names="obj.data")[0])


SETS = {split: {"images": "images", "labels": "labels"} for split in ("train", "val")}
"""The same images in both: only the reading is looked at."""


def rows(folder: Path, content: str, yaml: str = "names: [cat, dog]\n", **values: object):
    images(folder, "images/1.png", label=content)
    put(folder / "data.yaml", yaml)
    return read(folder, **{"names": "data.yaml", **SETS, **values})


def test_cvat_ultralytics_track_numbers_are_left_out_and_a_guess_is_noted(folder):
    notes, _, train = rows(folder, "0 .5 .5 .2 .2 7\n1 .4 .4 .1 .1 0\n0 .2 .2 .1 .1\n")
    assert len(train["boxes"]) == 3
    assert "4 rows have a sixth column of whole numbers, taken for track numbers" in " ".join(notes)


@pytest.mark.parametrize("row", ["0 .5 .5 .2 .2 .9", "0 .5 .5 .2 .2 1", "0 .1 .1 .3 .1 .3 .3 7"])
def test_one_column_more_is_refused_until_it_is_declared(folder, row):
    with pytest.raises(DataError, match=r"columns; .* set data\.yolo\.extra_column"):
        rows(folder, row)
    declared = "track_id" if row.endswith("7") else "confidence"
    notes, _, train = rows(folder, row, extra_column=declared)
    assert len(train["boxes"]) == 1 and "of 1 rows was left out" in " ".join(notes)


def test_a_confidence_after_the_class_is_declared(folder):
    _, _, train = rows(folder, "0 .9 .5 .5 .2 .4\n", extra_column="confidence_second")
    assert train["boxes"] == [[16, 12, 8, 16]]
    with pytest.raises(DataError, match="is not a confidence from 0 to 1"):
        rows(folder, "0 .9 .5 .5 .2 7\n", extra_column="confidence")


def test_oriented_boxes_become_upright_and_are_counted(folder):
    turned = "0 .5 .2 .8 .5 .5 .8 .2 .5\n1 .9 .8 1.1 .8 1.1 .9 .9 .9\n"
    with pytest.raises(DataError, match=r"for oriented boxes set data\.yolo\.rows: obb"):
        rows(folder, turned)
    notes, _, train = rows(folder, turned, rows="obb")
    assert train["boxes"] == [pytest.approx([8, 8, 24, 24]), pytest.approx([36, 32, 4, 4])]
    text = " ".join(notes)
    assert "2 oriented boxes became upright (cat 1, dog 1)" in text and "1 oriented boxes reach beyond" in text
    assert "1 outlines are turned rectangles, whose upright boxes are larger (cat 1)" in text


POSE = "0 .5 .5 .4 .4 .4 .4 2 0 0 0\n0 .5 .5 .2 .2\n"


@pytest.mark.parametrize(("shape", "row"), [((2, 3), POSE.splitlines()[0]), ((1, 2), "0 .5 .5 .4 .4 .4 .4"),
                                            ((2, 2), "0 .5 .5 .4 .4 .4 .4 -1 -1")])  # fmt: skip
def test_keypoints_are_read_as_declared(folder, shape, row):
    notes, _, train = rows(folder, row, f"names: [cat]\nkpt_shape: {list(shape)}\n")
    assert train["boxes"][0] == [12, 12, 16, 16] and "the keypoints of 1 objects were left out" in " ".join(notes)
    by_params = rows(folder, row, rows="pose", keypoints=list(shape))[2]
    assert by_params == train
    with pytest.raises(DataError, match=rf"[97] columns; a box has .* with its {shape[0]} keypoints"):
        rows(folder, "0 .1 .1 .2 .1 .2 .2 .1 .2 \n0 .1 .1 .2 .1 .2 .2\n", f"names: [cat]\nkpt_shape: {list(shape)}\n")


OUTLINE = "0 .1 .1 .3 .1 .3 .3 .2 .4 .1 .3"
DECLARED = "names: [cat]\nkpt_shape: [2, 3]\n"


@pytest.mark.parametrize(
    ("row", "words", "switch"),
    [
        ("0 .5 .5 .2 .2", "5 columns; a box has 11 with its 2 keypoints", "box"),
        ("0 .1 .1 .3 .1 .3 .3", "7 columns; a box has 11 with its 2 keypoints", "polygon"),
        ("0 .1 .1 .3 .1 .3 .3 .1 .3", "9 columns; a box has 11 with its 2 keypoints", "polygon"),
        (OUTLINE, "is not the visibility of a keypoint", "polygon"),
    ],
)
def test_rows_that_contradict_kpt_shape_are_refused_with_the_switch(folder, row, words, switch):
    with pytest.raises(DataError, match=rf"labels/1\.txt: line 1: .*{words}") as caught:
        rows(folder, row, DECLARED)
    assert "`kpt_shape` declares" in str(caught.value) and f"set data.yolo.rows: {switch} if" in str(caught.value)
    notes, _, train = rows(folder, row, DECLARED, rows=switch)
    assert len(train["boxes"]) == 1
    assert f"`kpt_shape` [2, 3] does not count: data.yolo.rows is {switch}" in " ".join(notes)


def test_boxes_beside_rows_with_keypoints_are_read_once_that_is_said(folder):
    with pytest.raises(DataError, match=r"line 2.* 5 columns.*pose if only some have keypoints"):
        rows(folder, POSE, DECLARED)
    notes, _, train = rows(folder, POSE, DECLARED, rows="pose")
    assert train["boxes"] == [[12, 12, 16, 16], [16, 16, 8, 8]]
    assert "1 rows without keypoints beside them were read as boxes" in " ".join(notes)
    with pytest.raises(DataError, match=r"5 columns; .*data\.yolo\.rows: pose declares; set data\.yolo\.rows: box"):
        rows(folder, BOX, DECLARED, rows="pose")


def test_rows_that_may_be_keypoints_are_refused_with_the_switch(folder):
    with pytest.raises(DataError, match=r"data\.yolo\.rows: pose and data\.yolo\.keypoints: \[2, 3\]"):
        rows(folder, POSE)
    with pytest.raises(DataError, match=r"give data\.yolo\.keypoints"):
        rows(folder, POSE, rows="pose")
    with pytest.raises(ConfigError, match="with `rows: pose`"):
        rows(folder, POSE, keypoints=[2, 3])


@pytest.mark.parametrize(("kind", "row"), [("box", "0 .1 .1 .3 .1 .3 .3"), ("polygon", "0 .5 .5 .2 .2"),
                                           ("obb", "0 .5 .5 .2 .2"), ("pose", "0 .1 .1 .3 .1 .3 .3")])  # fmt: skip
def test_rows_of_another_kind_than_declared_are_refused(folder, kind, row):
    more = {"keypoints": [17, 3]} if kind == "pose" else {}
    with pytest.raises(DataError, match=r"line 1: . columns"):
        rows(folder, row, rows=kind, **more)


def label_studio(folder: Path) -> None:
    images(folder, "images/1.png", label="7 .5 .5 .2 .2\n2 .5 .5 .2 .2\n2 .1 .1 .3 .1 .3 .3\n")
    images(folder, "images/2.png", label="")
    put(folder / "classes.txt", "dog\ncat\n")
    put(folder / "notes.json", json.dumps({"categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}]}))


@pytest.mark.parametrize("names", ["classes.txt", "notes.json"])
def test_label_studio_rows_use_the_numbers_of_its_notes(folder, names):
    label_studio(folder)
    notes, dataset, train = read(folder, names=names, **SETS)
    assert dataset["classes"] == ["cat", "dog"] and train["categories"] == [2, 1, 1]
    text = " ".join(notes)
    for words in ("'dog'", "has no class 0", "1 boxes repeat one of another class", "1 files mix boxes and outlines"):
        assert words in text


def test_other_files_with_other_names_are_noted(folder):
    images(folder, "images/1.png", label=POSE.splitlines()[0])
    put(folder / "labels/classes.txt", "dog\nperson\n")
    put(folder / "data.yaml", "names: [cat, person]\nkpt_shape: [2, 3]\n")
    notes = " ".join(read(folder, names=["cat", "person"], **SETS)[0])
    assert "data.yolo.names calls class 0 'cat' and classes.txt calls class 0 'dog': data.yolo.names counts" in notes
    assert "data.yaml declares `kpt_shape` [2, 3]" in notes


def test_makesense_without_a_class_list_is_refused_and_numbers_from_1_are_pointed_out(folder):
    images(folder, "images/1.png", label="1 .5 .5 .2 .2\n2 .5 .5 .2 .2\n")
    with pytest.raises(Exception, match="names"):
        read(folder, **SETS)
    with pytest.raises(DataError, match="the numbers seem to count from 1"):
        read(folder, names=["a", "b"], **SETS)


def test_fiftyone_writes_validation_for_val(folder):
    images(folder, "images/train/1.png", "images/validation/2.png", label=None)
    put(folder / "labels/train/1.txt", BOX)
    put(
        folder / "dataset.yaml",
        "path: /home/me/x\ntrain: ./images/train/\nvalidation: ./images/validation/\nnames: [a]\n",
    )
    notes, dataset, _ = read(folder, names="dataset.yaml")
    assert [count["annotations"] for count in dataset["splits"].values()] == [1, 0, 0]
    assert "1 of 1 images have no label file" in " ".join(notes)


def test_supervisely_names_folders_of_labels(folder):
    images(folder, "images/train/d_1.png", "images/val/d_2.png", label=None)
    put(folder / "txt/t/d_1.txt", BOX)
    put(folder / "txt/v/d_2.txt", BOX)
    lines = (
        "train: ../mine/images/train\nval: ../mine/images/val\ntrain_labels: ../mine/txt/t\nval_labels: ../mine/txt/v\n"
    )
    put(folder / "data_config.yaml", f"{lines}nc: 1\nnames: [a]\ncolors: [[1, 2, 3]]\n")
    assert read(folder, names="data_config.yaml")[2]["boxes"] == [[16, 16, 8, 8]]


def test_all_problems_of_a_folder_are_in_one_message(folder):
    images(folder, "images/a.png", "images/a.jpg", "images/c.png")
    put(folder / "images/broken.png", "no image")
    put(folder / "labels/c.txt", "9 .5 .5 .2 .2\n0 .5 .5 .2 7\n")
    put(folder / "labels/lost.txt", "")
    with pytest.raises(DataError) as caught:
        read(folder, names=["a"], **SETS)
    for words in (
        "lost.txt",
        "share the labels of 'a'",
        "'broken.png'",
        "class '9'",
        "'7' is not within",
        "4 problems",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("names: {1: a, 2: b}\n", "the keys of `names` are not 0 to 1"),
        ("names: {a: 0, b: 1}\n", "the keys of `names`"),
        ("names: [a, '']\nkpt_shape: [17]\n", "class 1: the name is ''.*`kpt_shape` is"),
        ("names: [a]\n", "declares no sets; give data.yolo.train"),
        ("names: [a]\ntrain: nowhere\nval: nowhere\n", "`train: nowhere` is not in .*`val: nowhere` is not in"),
    ],
)
def test_a_data_yaml_that_says_too_little_is_refused(folder, content, words):
    put(folder / "data.yaml", content)
    with pytest.raises(DataError, match=words):
        read(folder, names="data.yaml")


def test_lists_that_name_files_in_two_ways_are_refused_and_other_letters_found(folder):
    images(folder, "images/train/u\u0308.png", "images/train/a b.png", "images/val/1.png", "sub/images/val/1.png")
    put(folder / "data.yaml", "train: sub/train.txt\nval: sub/val.txt\nnames: [a]\n")
    put(folder / "sub/train.txt", "./images/train/\u00fc.png\nimages\\train\\a%20b.png\n")
    put(folder / "sub/val.txt", "images/val/1.png\n")
    with pytest.raises(DataError, match=r"images/val/1\.png' \(line 1\) could be"):
        read(folder, names="data.yaml")
    put(folder / "sub/val.txt", "./images/val/1.png\n")
    notes, _, train = read(folder, names="data.yaml")
    assert sorted(train["images"]) == ["images/train/a b.png", "images/train/u\u0308.png"]
    assert "composed and decomposed" in " ".join(notes) and "percent-encoding" in " ".join(notes)


@pytest.mark.parametrize(("image", "label"), [("u\u0308", "\u00fc"), ("\u00fc", "u\u0308")])
def test_labels_in_other_letters_than_their_images_are_found(folder, image, label):
    put_image(folder / f"images/{image}.png")
    put(folder / f"labels/{label}.txt", BOX)
    put(folder / "data.yaml", "train: images\nval: images\nnames: [a]\n")
    for given in ({**SETS}, {}):
        assert len(read(folder, names="data.yaml", **given)[2]["boxes"]) == 1


def test_two_keys_for_one_set_with_different_places_are_refused(folder):
    images(folder, "a/images/0.png", "b/images/1.png")
    put(folder / "data.yaml", "train: a/images\nval: a/images\nvalidation: b/images\nnames: [cat]\n")
    with pytest.raises(DataError, match=r"`val: a/images` and `validation: b/images` name different places"):
        read(folder, names="data.yaml")


@pytest.mark.parametrize("given", [SETS, {}])
def test_label_files_and_class_lists_in_capitals_are_taken(folder, given):
    put_image(folder / "images/a.png")
    put(folder / "labels/a.TXT", BOX)
    put(folder / "labels/CLASSES.TXT", "dog\n")
    put(folder / "data.yaml", "train: images\nval: images\nnames: [cat]\n")
    notes, _, train = read(folder, names="data.yaml", **given)
    assert train["boxes"] == [[16, 16, 8, 8]] and "no label file" not in " ".join(notes)
    assert not given or "CLASSES.TXT calls class 0 'dog'" in " ".join(notes)
    put(folder / "labels/lost.TXT", BOX)
    with pytest.raises(DataError, match=r"1 label files have no image in .*lost\.TXT"):
        read(folder, names="data.yaml", **given)
    (folder / "labels/lost.TXT").unlink()
    put(folder / "labels/a.txt", "")
    with pytest.raises(DataError, match=r"'a\.TXT' and 'a\.txt'"):
        read(folder, names="data.yaml", **given)


def test_a_class_list_in_capitals_has_the_numbers_of_label_studio(folder):
    label_studio(folder)
    (folder / "classes.txt").rename(folder / "CLASSES.TXT")
    assert read(folder, names="CLASSES.TXT", **SETS)[2]["categories"] == [2, 1, 1]


@pytest.mark.parametrize(
    ("place", "given"), [("images", SETS), ("labels", SETS), (".", SETS), ("images", {}), (".", {})]
)
def test_classes_of_whole_images_are_refused(folder, place, given):
    images(folder, "images/1.png")
    put(folder / "data.yaml", "train: images\nval: images\nnames: [cat]\n")
    put(folder / place / "_classes.csv", "filename, cat\n1.png, 1\n")
    with pytest.raises(DataError, match=r"_classes\.csv: holds classes of whole images and no boxes"):
        read(folder, names="data.yaml", **given)
