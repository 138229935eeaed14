"""Names of results: valid UTF-8, different, short enough, and none an original's."""

from __future__ import annotations

import os

import pytest

from yolov7.errors import DataError
from yolov7.predict.names import OutputNames, readable_names

GBK, SJIS = os.fsdecode("狗.jpg".encode("gbk")), os.fsdecode("犬.jpg".encode("shift_jis"))
ODD = [
    GBK, SJIS, os.fsdecode(b"\xff.png"), "\\xff.png", "\\xff.png (2)", os.fsdecode(b"\xfe/\xff.jpg"), "new\nline.jpg",
    "a.jpg", "a.jpg/b.jpg", "a", "a.jpg.jpg", "b.webp", "b.webp.jpg", "c.gif", "c.bmp", "c.jpg", "c", "-x.jpg",
    "detections.json/x.jpg", "x" * 255, "y" * 250 + ".jpg", "y" * 249 + "z.jpg", "é" * 125 + ".webp", "e\x1b[31m.jpg",
    os.fsdecode(b"\xb9" * 250 + b".jpg"), "d.txt", "d.jpg", "d.jpg.txt/e.jpg",
]  # fmt: skip


def test_records_hold_valid_names_that_differ():
    readable = readable_names(ODD)
    assert len(set(readable)) == len(ODD)
    for name, text in zip(ODD, readable, strict=True):
        text.encode()
        assert text == name or "\udcff".encode("utf-8", "surrogatepass") not in text.encode()
    assert readable[0] == "\\xb9\\xb7.jpg" and readable[3] == "\\xff.png"


def test_files_of_results_fit_differ_and_are_no_folders(tmp_path):
    names = readable_names(ODD)
    outputs = OutputNames(names, [], tmp_path, reserved=("detections.json",))
    drawn, labels = [outputs.drawn(name) for name in names], [outputs.label(name) for name in names]
    for written in (drawn, labels):
        assert len(set(written)) == len(names)
        for name in written:  # the file system decides
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
            assert len(name.rpartition("/")[2].encode()) <= 255 - 14  # room for a temporary name
    assert not (tmp_path / "detections.json").exists()


def test_an_original_is_not_drawn_over(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="would overwrite this original"):
        OutputNames(["a.jpg"], [tmp_path / "a.jpg"], tmp_path)
