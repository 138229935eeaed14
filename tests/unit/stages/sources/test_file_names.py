"""Names written in annotations and lists, matched to files: one candidate is taken with a note, two are refused."""

import re
import unicodedata
from pathlib import Path

import pytest

from yolov7.data.sources.file_names import FileNames, list_files, match_names

DECOMPOSED = unicodedata.normalize("NFD", "café ü.jpg")
FILES = (
    "a.jpg", "sub/b.jpg", "images/0.jpg", "x/d.jpg", "y/d.jpg", DECOMPOSED, "photo 1 (1).jpg", "100%.jpg",
    "only/deep/e.jpg", "fetched%20by%20name.jpg", "val2017/7.jpg", "train2017/7.jpg", "exact%20.jpg", "exact .jpg",
)  # fmt: skip

FOUND = {
    "equal": ("a.jpg", "a.jpg", ""),
    "equal, with a percent sign": ("100%.jpg", "100%.jpg", ""),
    "equal goes before decoded": ("exact%20.jpg", "exact%20.jpg", ""),
    "backslashes": ("images\\0.jpg", "images/0.jpg", "backslashes"),
    "a leading dot": ("./a.jpg", "a.jpg", "removed"),
    "two slashes": ("sub//b.jpg", "sub/b.jpg", "removed"),
    "out and in again": ("sub/../a.jpg", "a.jpg", "removed"),
    "composed": ("café ü.jpg", DECOMPOSED, "composed"),
    "percent-encoded": ("photo%201%20(1).jpg", "photo 1 (1).jpg", "percent-encoding"),
    "percent-encoded, composed": ("caf%C3%A9%20%C3%BC.jpg", DECOMPOSED, "composed.*percent-encoding"),
    "percent-encoded on disk": ("fetched by name.jpg", "fetched%20by%20name.jpg", "percent-encoding"),
    "an encoded backslash": ("images%5C0.jpg", "images/0.jpg", r"disk \(percent-encoding decoded\)"),
    "a folder of the export": ("data/obj_train_data/a.jpg", "a.jpg", "leading folders dropped"),
    "no folder": ("e.jpg", "only/deep/e.jpg", "subfolders"),
    "part of the folders": ("deep/e.jpg", "only/deep/e.jpg", "subfolders"),
    "out of the folder": ("..\\..\\media\\upload\\4\\e.jpg", "only/deep/e.jpg", "backslashes.*base name"),
    "absolute": ("/home/me/pictures/a.jpg", "a.jpg", "base name"),
    "a drive": ("C:\\Users\\me\\x\\d.jpg", "x/d.jpg", "backslashes"),
    "an address": ("http://images.cocodataset.org/val2017/7.jpg", "val2017/7.jpg", "dropped"),
    "a signed address": ("https://u:pw@h.org/a.jpg?X-Signature=secret", "a.jpg", "base name"),
    "a bucket": ("s3://bucket/prefix/a.jpg", "a.jpg", "base name"),
    "a local file server": ("/data/local-files/?d=stuff%2Fsub%2Fb.jpg", "sub/b.jpg", "dropped"),
    "an upload": ("images/0123abcd-a.jpg", "a.jpg", "dropped.*Label Studio"),
    "an upload, out of the folder": ("..\\..\\media\\upload\\4\\deadbeef-e.jpg", "only/deep/e.jpg", "base.*uploads"),
    "a file address": ("file:///home/me/a.jpg", "a.jpg", "base name"),
}


@pytest.mark.parametrize("case", FOUND)
def test_a_name_that_means_one_file_is_taken_and_noted(case):
    written, name, note = FOUND[case]
    matched = match_names([written], FileNames(FILES))
    assert matched.names == {written: name} and not matched.problems
    if not note:
        assert matched.notes == []
        return
    (text,) = matched.notes
    assert "1 file name differs" in text and repr(name) in text and "secret" not in text and "pw" not in text
    assert re.search(note, text)


@pytest.mark.parametrize(
    "written",
    [
        "",
        ".",
        "..",
        "sub/..",
        "gone.jpg",
        "A.JPG",
        "z/d.jpg",
        "q/deep/e.jpg",
        "../gone.jpg",
        "http://[bad",
        "a.jpg/b.jpg",
    ],
)
def test_a_name_that_means_no_file_has_none(written):
    matched = match_names([written], FileNames(FILES))
    assert not matched.names and not matched.problems and not matched.notes


@pytest.mark.parametrize(
    "written", ["d.jpg", "/home/d.jpg", "../d.jpg", "https://h.org/d.jpg", "C:/d.jpg", "/0123abcd-d.jpg"]
)
def test_a_name_that_means_two_files_is_refused_with_both(written):
    matched = match_names([written], FileNames(FILES))
    assert matched.names == {}
    assert "could be 'x/d.jpg' or 'y/d.jpg'" in matched.problems[written]


@pytest.mark.parametrize(
    ("written", "words"),
    [("Images\\A.JPG", "case"), ("a.png", "extension"), ("z/e.jpg", "another folder"), ("gone.jpg", ""), ("..", "")],
)
def test_a_file_that_may_be_meant_is_named(written, words):
    hint = FileNames(["only/deep/e.jpg", "images/a.jpg"]).hint(written)
    assert words in hint if words else hint is None


def test_two_names_of_other_folders_that_would_mean_one_file_are_refused():
    matched = match_names(["train/0.jpg", "val/0.jpg", "1.jpg"], FileNames(["0.jpg", "1.jpg"]))
    assert matched.names == {"1.jpg": "1.jpg"} and not matched.notes
    assert "'val/0.jpg' would both be '0.jpg'" in matched.problems["train/0.jpg"]
    matched = match_names(["0.jpg", "val/0.jpg"], FileNames(["0.jpg"]))
    assert matched.names == {"0.jpg": "0.jpg"} and list(matched.problems) == ["val/0.jpg"]


def test_the_folder_of_the_images_tells_two_files_apart():
    files = FileNames(["a.jpg", "backup/a.jpg"], root=Path("/data/images"))
    assert files.find("images/a.jpg").name == "a.jpg"
    assert files.find("/elsewhere/backup/a.jpg").name == "backup/a.jpg"


def test_a_note_gives_the_number_and_a_few_names():
    matched = match_names([f"images\\{i}.jpg" for i in range(20)], FileNames([f"images/{i}.jpg" for i in range(20)]))
    (note,) = matched.notes
    assert note.startswith("20 file names differ") and note.endswith("and 15 more")


def test_only_files_of_the_folder_are_listed_and_only_if_asked_for(tmp_path):
    (tmp_path / "in/.hidden").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    for name in ("in/a.jpg", "in/.b.jpg", "in/.hidden/c.jpg", "secret/d.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "in/link").symlink_to(tmp_path / "secret")
    files = list_files(tmp_path / "in")
    assert files.find("../in/a.jpg").name == "a.jpg"
    assert all(files.find(name).name is None for name in (".b.jpg", "c.jpg", "d.jpg", "link/d.jpg", "../secret/d.jpg"))
    assert match_names([], lambda: pytest.fail("listed")).names == {}
