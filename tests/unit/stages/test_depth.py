"""Images of more than 8 bits a channel are scaled by the range of the whole set; notes do not depend on the splits."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from stages.images.depth import Depth, decide
from stages.ingest import ingest
from stages.project.params_data import Data, check_data
from tests.unit.stages.test_ingest import image, picture, write_source
from yolov7.data.decode import decode_image, read_image
from yolov7.data.depth import PixelRange
from yolov7.errors import ConfigError, DataError

RAMP = np.linspace(0.0, 1.0, 1200).reshape(30, 40)


def encoded(suffix, pixels) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def ingested(tmp_path, train: dict[str, bytes], val: dict[str, bytes] | None = None, **more):
    """dataset.json, and one channel of every image by split and name."""
    val = val or {"v.jpg": picture(40, 30)}
    for split, files in (("train", train), ("val", val)):
        write_source(tmp_path / split, [image(i, name) for i, name in enumerate(files)], files)
    sets = {s: {"images": f"{s}/images", "annotations": f"{s}/annotations.json"} for s in ("train", "val")}
    ingest(Data.model_validate({"source": "coco", "folder": str(tmp_path), "coco": sets, **more}), tmp_path / "out")
    pixels = {
        f"{split}/{name}": read_image(tmp_path / "out" / split / "images" / name)[..., 0]
        for split, files in (("train", train), ("val", val))
        for name in files
    }
    return json.loads((tmp_path / "out/dataset.json").read_text()), pixels


@pytest.fixture
def decided(monkeypatch, tmp_path):
    """The decision for files, measured in this process: starting the sandbox takes seconds."""
    monkeypatch.setattr("stages.images.depth.run_limited", lambda function, items, **_: map(function, items))

    def decision(*contents: bytes, asked: PixelRange | None = None) -> Depth:
        for number, content in enumerate(contents):
            (tmp_path / str(number)).write_bytes(content)
        return decide([(f"{n}.img", tmp_path / str(n)) for n in range(len(contents))], asked)

    return decision


def test_the_set_decides_and_all_its_images_are_scaled_alike(tmp_path):
    full, half = (RAMP * 4095).astype(np.uint16), (RAMP * 2047).astype(np.uint16)
    files = {"a.png": encoded(".png", half), "b.tif": encoded(".tiff", half), "c.pgm": encoded(".pgm", half)}
    about, pixels = ingested(tmp_path, files, {"d.png": encoded(".png", full)})
    assert about["pixel_range"] == {"low": 0, "high": 4095, "images": 4}
    for name in ("train/a.png", "train/b.tif", "train/c.pgm"):
        np.testing.assert_allclose(pixels[name], RAMP * 127.5, atol=1.1)
    np.testing.assert_allclose(pixels["val/d.png"], RAMP * 255, atol=1.1)
    assert "values from 0 to 4095 became 0 to 255" in " ".join(about["notes"])
    assert not any("nearly black" in note for note in about["notes"])


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ((RAMP * 200).astype(np.uint16), 0, 255),
        ((RAMP * 1000).astype(np.uint16), 0, 1023),
        ((RAMP * 16383).astype(np.uint16), 0, 16383),
        (RAMP.astype(np.float32), 0, 1),
        ((RAMP * 4095).astype(np.float32), 0, 4095),
        ((RAMP * 4095 - 1024).astype(np.int16), -1024, 3071),
        ((RAMP * 4095).astype(np.int16), 0, 4095),
        ((RAMP * 70000).astype(np.int32), 0, 131071),
        ((RAMP * 200).astype(np.float64), 0, 255),
    ],
)
def test_signed_floating_and_32_bit_values_have_a_range_too(decided, values, low, high):
    content = encoded(".tiff", values)
    depth = decided(content)
    assert depth.range == PixelRange(low, high) and depth.images == 1
    scaled = decode_image(content, pixel_range=depth.range)[..., 0]
    np.testing.assert_allclose(scaled, (values.astype(float) - low) / (high - low) * 255, atol=0.6)


def test_16_bits_that_are_used_stay_as_they_were(tmp_path, decided):
    content = encoded(".png", (RAMP * 30000).astype(np.uint16))
    about, pixels = ingested(tmp_path, {"a.png": content})
    assert about["pixel_range"] == {"low": 0, "high": 65535, "images": 1}
    assert np.array_equal(pixels["train/a.png"], (RAMP * 30000).astype(np.uint16) >> 8)
    assert decided(picture(40, 30)) == Depth() and Depth().describe() is None
    assert decided(encoded(".png", (RAMP * 65535).astype(np.uint16))).range is None


def test_dark_images_are_counted_with_the_setting_that_helps(decided):
    dark, bright = (RAMP * 4000).astype(np.uint16), (RAMP * 65000).astype(np.uint16)
    (note,) = decided(encoded(".png", dark), encoded(".png", bright)).notes
    assert note.startswith("1 of 2 images") and "nearly black" in note and "'0.img'" in note
    assert "set data.pixel_range" in note
    heat = encoded(".png", (7000 + RAMP * 900).astype(np.uint16))
    assert any("1 of 1 images" in one and "nearly of one brightness" in one for one in decided(heat).notes)
    asked = decided(heat, asked=PixelRange(7000, 7900))
    assert asked.range == PixelRange(7000, 7900) and "brightness" not in " ".join(asked.notes)
    scaled = decode_image(heat, pixel_range=asked.range)
    assert scaled.min() == 0 and scaled.max() == 255


def test_what_fits_no_range_is_refused_naming_the_key(decided):
    unit, whole = encoded(".tiff", RAMP.astype(np.float32)), encoded(".png", (RAMP * 9999).astype(np.uint16))
    with pytest.raises(DataError, match=r"1 images hold floating values from 0 to 1, and 1 others.*data\.pixel_range"):
        decided(unit, whole)
    for pair in ([5, 5], [9, 1]):
        with pytest.raises(ConfigError, match="give the values of black and white"):
            check_data(Data.model_validate({"pixel_range": pair}), where="data")


def test_one_set_to_divide_has_the_notes_of_sets_that_are_given(tmp_path):
    deep = encoded(".png", (RAMP * 4095).astype(np.uint16))
    files = {"0.gif": picture(40, 30, ".gif"), "1.png": deep, "2.ppm": picture(40, 30, ".ppm", 2)}
    files |= {name: picture(40, 30, seed=n) for n, name in enumerate(("A.jpg", "a.jpg", "b.jpg"))}
    write_source(tmp_path / "s", [image(i, name) for i, name in enumerate(files)], files)
    one, found = {"images": "s/images", "annotations": "s/annotations.json"}, []
    for sets in ({"all": one}, {"train": one, "val": one}):
        data = {"source": "coco", "folder": str(tmp_path), "coco": sets, "split": {"near_duplicate_bits": None}}
        ingest(Data.model_validate(data), tmp_path / "out")
        notes = json.loads((tmp_path / "out/dataset.json").read_text())["notes"]
        found.append({note.removeprefix("train: ") for note in notes if not note.startswith(("val: ", "test: "))})
    apart = [{note for note in notes if "values from" not in note} for notes in found]
    assert len(apart[0]) == 3 and apart[0] == apart[1]  # 16 bits, PPM, case
