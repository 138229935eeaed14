"""Where networks look: the measure, its interval, and the command."""

from __future__ import annotations

import weakref

import cv2
import numpy as np
import pytest
import torch

from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import Index, build_index
from yolov7.errors import ConfigError, DataError
from yolov7.figures import attention
from yolov7.figures.attention import energy, focus, mean_over_images, subject
from yolov7.model import ModelMetadata, create_model, save_checkpoint


def test_energy_is_what_differs_from_place_to_place():
    features = torch.full((3, 4, 4), 5.0)
    features[1, 2, 3] = 21.0
    found = energy(features)
    mean = 6.0
    assert found[2, 3] == pytest.approx((21 - mean) ** 2) and found[0, 0] == pytest.approx((5 - mean) ** 2)
    assert not energy(torch.full((2, 3, 3), 4.0)).any()


def test_focus_is_energy_per_area():
    inside, valid = np.zeros((4, 4)), np.ones((4, 4))
    inside[0, :2] = 1  # an eighth of the image
    assert focus(np.ones((4, 4)), inside, valid) == pytest.approx(1)
    assert focus(inside, inside, valid) == pytest.approx(8)
    assert focus(1 - inside, inside, valid) == 0
    assert focus(np.zeros((4, 4)), inside, valid) == 1
    assert np.isnan(focus(np.ones((4, 4)), np.zeros((4, 4)), valid))
    half = np.where(np.arange(4) < 2, 1.0, 0.0) * np.ones((4, 1))  # the right half is grey border
    assert focus(np.where(half > 0, 1.0, 1000.0), inside, half) == pytest.approx(1)


def test_the_mean_and_its_interval():
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = mean_over_images(np.append(values, np.nan))
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.15)
    assert found.low < found.value < found.high and found == mean_over_images(values)
    with pytest.raises(DataError, match="no image has an object"):
        mean_over_images(np.array([np.nan]))


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    """Grey images with a white square, the object; the second is wide, the third has none."""
    folder = tmp_path_factory.mktemp("data")
    sizes = [(64, 64), (32, 64), (64, 64)]
    boxes = [(8, 16, 24, 16), (40, -4, 40, 20)]  # left, top, width, height; the second leaves the image
    images, annotations = [], []
    for number, (height, width) in enumerate(sizes):
        pixels = np.full((height, width, 3), 90, np.uint8)
        if number < len(boxes):
            left, top, w, h = boxes[number]
            pixels[max(top, 0) : top + h, left : left + w] = 255
            annotations.append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": boxes[number], "area": w * h, "iscrowd": 0}
            )
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
    coco = CocoAnnotations(
        path=folder / "a.json",
        info={},
        licenses=[],
        images=images,
        annotations=annotations,
        categories=[{"id": 1, "name": "square"}],
    )
    return build_index(coco, folder, folder / "index")


def test_a_subject_is_fitted_with_its_objects(index):
    one = subject(index, 0, 128)
    assert one.boxes.tolist() == [[16, 32, 64, 64]] and one.objects.sum() == 48 * 32 and one.valid.all()
    wide = subject(index, 1, 64)  # 16 rows of grey above and below
    assert wide.valid.sum() == 32 * 64 and not wide.valid[:16].any() and not wide.valid[48:].any()
    assert wide.objects.sum() == 16 * 24 and wide.objects[16:32, 40:].all()  # cut to the image
    assert wide.covered(wide.valid, 4, 4).tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    def saved(name: str, variant: str, seed: int, side: int = 64):
        model = create_model(variant, 1, seed=seed)
        metadata = ModelMetadata.of(model, class_names=("square",), image_size=side)
        save_checkpoint(folder / name, model, metadata)
        return folder / name

    return {
        "gelan": saved("g.safetensors", "gelan-t", 0),
        "yolov9": saved("y.safetensors", "yolov9-t", 1),
        "large": saved("l.safetensors", "gelan-t", 0, side=96),
    }


def test_the_command_draws_and_measures(index, files, tmp_path, capsys):
    arguments = [str(files["gelan"]), str(files["yolov9"]), "--data", str(index.folder), "--images", "2"]
    for name in ("a.jpg", "b.jpg"):
        attention.main([*arguments, "--out", str(tmp_path / name)])
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    drawn = cv2.imread(str(tmp_path / "a.jpg"))
    assert drawn.shape[0] > 2 * attention.SHOWN_SIDE and drawn.shape[1] > 7 * attention.SHOWN_SIDE
    printed = capsys.readouterr().out
    subjects = [subject(index, i, 64) for i in range(3)]
    model = attention.load_checkpoint(files["gelan"])[0]
    found = attention.looks(model, "gelan-t", subjects, shown=1)
    assert found.strides == (8, 16, 32) and found.focus.shape == (3, 3) and np.isnan(found.focus[2]).all()
    assert [level.shape for level in found.maps[0]] == [(8, 8), (4, 4), (2, 2)]
    for level, stride in enumerate((8, 16, 32)):
        (line,) = [line for line in printed.splitlines()[:8] if f"stride {stride} " in line]
        assert f"{np.nanmean(found.focus[:, level]):.2f} (" in line


def test_the_same_network_twice_has_no_difference(index, files, tmp_path, capsys):
    out = tmp_path / "a.png"
    attention.main([str(files["gelan"])] * 2 + ["--data", str(index.folder), "--images", "1", "--out", str(out)])
    assert capsys.readouterr().out.count("0.00 (0.00 to 0.00)") == 3 and out.is_file()


def test_only_the_images_drawn_are_held_at_once(index, files, tmp_path, monkeypatch):
    made, held = [], []

    def watched(*arguments):
        one = subject(*arguments)
        made.append(weakref.ref(one))
        held.append(sum(known() is not None for known in made))
        return one

    monkeypatch.setattr(attention, "subject", watched)
    out = str(tmp_path / "a.jpg")
    attention.main(
        [str(files["gelan"]), str(files["yolov9"]), "--data", str(index.folder), "--images", "1", "--out", out]
    )
    assert len(held) >= 2 * 3 and max(held) <= 2  # the one at work, and the next


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--images": "4"}, "--images: 1 to 3 is expected, got 4"),
        ({"--out": "a.gif"}, "a.gif: the name of a picture ends in .jpg or .png"),
        ({"second": "large"}, "l.safetensors: trained at 96 pixels"),
    ],
)
def test_mistakes(index, files, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    options = {"--images": "1", "--out": "a.jpg", **{k: v for k, v in change.items() if k != "second"}}
    second = files[change.get("second", "yolov9")]
    words = [word for option in options.items() for word in option]
    with pytest.raises(ConfigError, match=message):
        attention.main([str(files["gelan"]), str(second), "--data", str(index.folder), *words])
    assert not any(tmp_path.iterdir())
