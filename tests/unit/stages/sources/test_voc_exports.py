"""Pascal VOC exports of labelling tools, rebuilt small: what is taken, converted with a note, counted, and refused."""

from pathlib import Path

import pytest
from label_folders import SIDE, ingested, put, put_image

from yolov7.errors import DataError

SETS = {split: {"images": "images", "annotations": "xml"} for split in ("train", "val")}
"""The same images in both: only the reading is looked at."""


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in "abcd":
        put_image(tmp_path / f"mine/images/{name}.png")
    return tmp_path / "mine"


def item(name: str = "cat", box: tuple = (5, 6, 20, 21), more: str = "") -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def xml(file_name: str, *objects: str, size: object = SIDE, head: str = "") -> str:
    sides = f"<size><width>{size}</width><height>{size}</height><depth/></size>"
    return f"<annotation>{head}<filename>{file_name}</filename>{sides}{''.join(objects)}</annotation>"


def read(folder: Path, **values: object) -> tuple[str, dict, dict]:
    notes, dataset, train = ingested(folder, {"source": "voc", "voc": {**SETS, **values}})
    return "\n".join(note for note in notes if note.startswith("train: ")), dataset, train


def test_a_file_belongs_to_the_image_of_its_own_name_and_disagreement_names_both(folder):
    for own, other in zip("abcd", "bcda", strict=True):
        put(folder / f"xml/{own}.xml", xml(f"{other}.png", item(box=(ord(own) - 96, 1, 30, 30))))
    notes, _, train = read(folder)
    assert [(name, box[0]) for name, box in zip(train["images"], train["boxes"], strict=True)] == [
        ("a.png", 1), ("b.png", 2), ("c.png", 3), ("d.png", 4)
    ]  # fmt: skip
    assert "4 XML files name another image by <filename> than by their own name; their own name counts" in notes
    assert "'a.xml (filename b.png): a.png'" in notes
    notes, _, train = read(folder, image_by="filename")
    assert train["images"] == ["b.png", "c.png", "d.png", "a.png"] and "<filename> counts" in notes


@pytest.mark.parametrize(
    ("file_name", "head", "words"),
    [
        ("a", "", ""),
        ("a.jpg", "", ""),
        ("C:\\x\\a.png", "", ""),
        ("other.png", "", "1 XML files have a <filename> that is not an image here"),
        ("a.png", "<path>/x/b.png</path>", "1 XML files name another image by <path> or <folder>"),
        ("a.png", "<folder>x</folder><path>/x/a.png</path>", ""),
    ],
)
def test_names_that_agree_are_not_noted_and_others_are(folder, file_name, head, words):
    put(folder / "xml/a.xml", xml(file_name, item(), head=head))
    notes, _, train = read(folder)
    assert train["images"] == ["a.png"]
    assert (words in notes) if words else ("name" not in notes.replace("3 images have no XML file", ""))


def test_the_file_name_finds_images_in_subfolders_and_folder_settles_which(folder):
    put_image(folder / "images/one/e f.png")
    put_image(folder / "images/two/e f.png")
    put(folder / "xml/1.xml", xml("e%20f.png", item(), head="<folder>two</folder>"))
    notes, _, train = read(folder)
    assert train["images"] == ["two/e f.png"] and "no image of their own name; that of <filename> was taken" in notes
    put(folder / "xml/1.xml", xml("e f.png", item()))
    with pytest.raises(DataError, match=r"1\.xml \(filename e f\.png\) could be one/e f\.png or two/e f\.png"):
        read(folder)


def test_two_images_of_one_name_need_a_file_name(folder):
    put_image(folder / "images/a.jpg")
    put(folder / "xml/a.xml", xml("a.jpg", item()))
    assert read(folder)[2]["images"] == ["a.jpg"]
    put(folder / "xml/a.xml", xml("", item()))
    with pytest.raises(DataError, match=r"a\.xml \(filename not given\) could be a\.jpg or a\.png"):
        read(folder)


@pytest.mark.parametrize("size", [0, ""])
def test_labelimg_without_a_size_takes_that_of_the_image(folder, size):
    put(folder / "xml/a.xml", xml("a.png", item(), size=size))
    assert "1 files give no image size" in read(folder)[0]


def test_another_size_than_that_of_the_image_is_noted_and_may_be_taken_from_it(folder):
    put(folder / "xml/a.xml", xml("a.png", item(), size=640))
    assert "'a.xml says 640 x 640, a.png is 40 x 40'" in read(folder)[0]
    assert "that of the image was taken" in read(folder, size_from="image")[0]


def test_flags_are_counted_per_class_and_words_for_them_are_known(folder):
    empty = "<pose/><truncated/><difficult/><annotation/>"
    words = "<truncated>Unspecified</truncated><difficult>Unspecified</difficult>"
    marked = "<truncated>1</truncated><difficult>1</difficult><occluded>1</occluded>"
    flags = [("cat", empty), ("cat", words), ("cat", marked), ("dog", marked), ("cat", "<difficult>2</difficult>")]
    put(folder / "xml/a.xml", xml("a.png", *(item(name, more=more) for name, more in flags)))
    notes, _, train = read(folder)
    assert train["crowds"] == [0, 0, 0, 0, 0]
    assert "2 of 5 objects are marked difficult, but learned and counted: cat 1, dog 1" in notes
    assert "occluded 2, truncated 2" in notes and "1 objects with '2' for a flag: read as not set" in notes
    notes, dataset, train = read(folder, difficult_is_crowd=True)
    assert train["crowds"] == [0, 0, 1, 1, 0] and dataset["splits"]["train"]["crowd"] == 2
    assert "2 objects marked difficult: ignored in training and evaluation" in notes and "(cat 1, dog 1)" in notes


def test_cvat_rotations_are_counted_and_may_become_hulls_or_crowds(folder):
    turned = "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    put(folder / "xml/a.xml", xml("a.png", item(box=(0, 10.0, 20.0, 15.0), more=turned), item(box=(0.0, 1.5, 2, 3))))
    notes, _, train = read(folder)
    assert train["boxes"] == [[0, 10, 20, 5], [0, 1.5, 2, 1.5]], "0-based, no shift"
    assert "1 of 2 objects are rotated, and their box is that before rotation: cat 1; data.voc.rotated: hull" in notes
    notes, _, train = read(folder, rotated="hull")
    assert train["boxes"][0] == pytest.approx([7.5, 2.5, 5, 20]) and "before rotation" not in notes
    assert "1 objects rotated: the upright boxes around them were taken" in notes
    assert read(folder, rotated="crowd")[2]["crowds"] == [1, 0]


def test_cvat_labelmap_declares_classes_in_their_order(folder):
    put(folder / "xml/a.xml", xml("a.png", item("no"), item("0402")))
    put(
        folder / "labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nno:1,2,3::\n0402:1,2,3::\nx:1,2,3::\n",
    )
    notes, dataset, _ = read(folder)
    assert dataset["classes"] == ["0402", "no"] and "labelmap.txt lists 1 classes that no object has: 'x'" in notes
    assert read(folder, classes="labelmap.txt")[1]["classes"] == ["no", "0402", "x"]


def test_labelme_corners_in_any_order_and_its_class_list(folder):
    put(folder / "xml/a.xml", xml("a.png", item(box=(20.5, 21, 5.5, 6)), item(box=(5, 6, 20, 21))))
    put(folder / "class_names.txt", "__ignore__\n_background_\ncat\n")
    notes, dataset, train = read(folder, classes="class_names.txt")
    assert train["boxes"] == [[5.5, 6, 15, 15], [5, 6, 15, 15]] and dataset["classes"] == ["cat"]
    assert "1 objects with corners in the wrong order: turned (cat 1)" in notes


def test_numbering_from_1_is_compared_with_the_boxes(folder):
    put(folder / "xml/a.xml", xml("a.png", item(box=(1, 1, SIDE, SIDE))))
    assert "pixels may be numbered from 1" in read(folder)[0]
    put(folder / "xml/b.xml", xml("b.png", item(box=(0, 3, 5, 5))))
    assert "numbered" not in read(folder)[0]
    assert "one_based is true, but 1 boxes begin at 0" in read(folder, one_based=True)[0]


def test_an_export_without_objects_is_questioned(folder):
    put(folder / "xml/a.xml", xml("a.png"))
    assert "none of 1 XML files has an object: did the export leave shapes out" in read(folder, classes=["cat"])[0]


def test_all_problems_of_a_folder_are_in_one_message(folder):
    put(folder / "xml/a.xml", xml("a.png", item("yak", ("w", 6, 20, "NaN")), item("yak"), item("")))
    put(folder / "xml/b.xml", xml("b.png", item("yak"), item("emu")))
    put(folder / "xml/c.xml", "<annotation>")
    put(folder / "xml/lost.xml", xml("none.png", item()))
    with pytest.raises(DataError) as caught:
        read(folder, classes=["cat"])
    text = str(caught.value)
    for words in ("<xmin> is 'w'", "object 3: <name> is missing", "'yak' is not one", "'emu' is not one", "not XML"):
        assert words in text
    assert "1 of 3 XML files have no image here: 'lost.xml (filename none.png)'" in text.replace("of 2", "of 3")


@pytest.mark.parametrize(("image", "own"), [("u\u0308", "\u00fc"), ("\u00fc", "u\u0308")])
def test_files_in_other_letters_than_their_images_are_found(folder, image, own):
    put_image(folder / f"images/{image}.png")
    put(folder / f"xml/{own}.xml", xml(f"{own}.png", item()))
    notes, _, train = read(folder)
    assert train["images"] == [f"{image}.png"] and "name another" not in notes and "own name" not in notes
    put(folder / f"xml/{own}.xml", xml("", item()))
    assert read(folder)[2]["images"] == [f"{image}.png"]


@pytest.mark.parametrize("more", ["<name>dog</name>", "<bndbox/>"])
def test_an_object_with_two_names_or_boxes_is_refused(folder, more):
    put(folder / "xml/a.xml", xml("a.png", item(more=more)))
    with pytest.raises(DataError, match=r"object 1 \(cat\): <(name|bndbox)> is given 2 times"):
        read(folder)


def test_objects_marked_ignore_are_counted(folder):
    def attribute(value: str) -> str:
        return f"<attributes><attribute><name>ignore</name><value>{value}</value></attribute></attributes>"

    marks = [attribute("True"), attribute("False"), "<ignore>1</ignore>"]
    put(
        folder / "xml/a.xml",
        xml("a.png", *(item(box=(place, 5, 20, 21), more=more) for place, more in enumerate(marks))),
    )
    notes, _, train = read(folder)
    assert "2 of 3 objects are marked ignore, but learned and counted: cat 2" in notes
    assert len(train["boxes"]) == 3
