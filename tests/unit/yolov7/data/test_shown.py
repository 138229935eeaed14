"""`augment.reduced_decode`: exact labels, pixels near those of the whole image, and nothing else changed."""

import io
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from sklearn.datasets import load_sample_image

from yolov7.config import Augment, Train
from yolov7.data.dataset import TrainDataset
from yolov7.data.decode import decode_image, reduction_for
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import build_index
from yolov7.data.loader import TrainLoader
from yolov7.data.orientation import turn_back
from yolov7.errors import ConfigError, DataError

SIDE = 96
PLAIN = Augment(mosaic=0, paste_in=0, hsv_h=0, hsv_s=0, hsv_v=0, flip_left_right=0, scale=0.85, reduced_decode=True)
BUSY = Augment(mixup=0.5, mosaic9=0.5, copy_paste=0.5, paste_in=1.0, reduced_decode=True)


def psnr(first, second):
    return 10 * np.log10(255**2 / np.mean((first.astype(float) - second) ** 2))


def photograph(height, width):
    """A real photograph, of any size."""
    return np.ascontiguousarray(cv2.resize(load_sample_image("china.jpg"), (width, height)))


def jpeg(image, *, orientation=1, mode="RGB", **options):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Pillow.fromarray(image).convert(mode).save(file, "JPEG", quality=92, exif=exif, **options)
    return file.getvalue()


def data_of(folder, files, sizes, boxes=None):
    """An index of files, contents by name, of sizes (height, width); every object has an outline."""
    images, records = [], []
    for i, (name, (height, width)) in enumerate(zip(files, sizes, strict=True)):
        (folder / name).write_bytes(files[name])
        images.append({"id": i, "file_name": name, "width": width, "height": height})
        for x, y, w, h in boxes or [(width // 8, height // 8, width // 3, height // 3), (width // 2, 5, 40, 60)]:
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            records.append(
                {"id": len(records), "image_id": i, "category_id": 1, "bbox": [x, y, w, h], "segmentation": outline}
            )
    coco = CocoAnnotations(Path("x"), images, records, [{"id": 1, "name": "thing"}])
    return build_index(coco, folder, folder / "index")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Large and small, of odd and even sides."""
    sizes = [(301, 401), (300, 400), (401, 267), (90, 96), (611, 801), (64, 97)]
    files = {f"{i}.jpg": jpeg(photograph(*size)) for i, size in enumerate(sizes)}
    return data_of(tmp_path_factory.mktemp("data"), files, sizes)


def dataset_of(index, augment=BUSY, **keywords):
    return TrainDataset(index, image_size=SIDE, augment=augment, seed=1, **keywords)


def off(augment):
    return augment.model_copy(update={"reduced_decode": False})


@pytest.mark.parametrize("size", [(611, 801), (807, 613), (608, 800)])
@pytest.mark.parametrize("reduced", [False, True])
def test_labels_are_exact_whatever_is_decoded(tmp_path, size, reduced):
    """The sum and the centre of white on black are found to a fraction of a pixel."""
    height, width = size
    image = np.zeros((*size, 3), np.uint8)
    x, y, w, h = width - 301, height - 251, 280, 240
    image[y : y + h, x : x + w] = 255
    index = data_of(tmp_path, {"0.jpg": jpeg(image)}, [size], [(x, y, w, h)])
    augment = PLAIN.model_copy(update={"reduced_decode": reduced})
    dataset, seen = dataset_of(index, augment), set()
    bound = 0.25 if reduced or size == (608, 800) else 0.5  # whole images are shrunk by picking pixels
    for epoch in range(30):
        sample = dataset[epoch, 0]
        if not len(sample.boxes):
            continue
        ((x1, y1, x2, y2),) = sample.boxes.tolist()
        if min(x1, y1) < 1 or max(x2, y2) > SIDE - 1:  # cut
            continue
        white = sample.image[..., 0].astype(float) / 255
        white[sample.image[..., 0] == 114] = 0  # the border of a sample
        ys, xs = np.mgrid[:SIDE, :SIDE] + 0.5
        centre = (white * xs).sum() / white.sum(), (white * ys).sum() / white.sum()
        assert np.abs(np.subtract(centre, [(x1 + x2) / 2, (y1 + y2) / 2])).max() < bound
        assert white.sum() == pytest.approx((x2 - x1) * (y2 - y1), abs=2 * bound * (x2 - x1 + y2 - y1))
        seen.add(dataset.reduction(0, (x2 - x1) / (w * SIDE / max(size))))
    assert seen == ({8} if reduced or size == (608, 800) else {1})


@pytest.mark.parametrize("size", [(301, 401), (512, 683), (427, 640)])
@pytest.mark.parametrize("by", [2, 4, 8])
def test_decoded_pixels_are_area_averages_within_42_db(size, by):
    """Seen: 43 dB and more, 51 and more without subsampled colours; and a part of a pixel counts as a whole one."""
    height, width = -(-size[0] // by), -(-size[1] // by)
    kinds = {"colour": {}, "fine": {"subsampling": 0}, "progressive": {"progressive": True}, "grey": {"mode": "L"}}
    for kind, options in {**kinds, "print": {"mode": "CMYK"}}.items():
        data = jpeg(photograph(*size), **options)
        small, whole = decode_image(data, reduction=by), decode_image(data)
        # Behind the edge the decoder goes on as the encoder did: with the last pixel.
        filled = cv2.copyMakeBorder(whole, 0, height * by - size[0], 0, width * by - size[1], cv2.BORDER_REPLICATE)
        assert small.shape == (height, width, 3)
        assert psnr(small, cv2.resize(filled, (width, height), interpolation=cv2.INTER_AREA)) > 42, kind


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(301, 401), (304, 400)])
def test_images_that_are_turned_by_exif(tmp_path, orientation, size):
    """A rest would lie on another side: then nothing is reduced. The picture stays the same."""
    image = photograph(*size)
    turned = jpeg(turn_back(image, orientation), orientation=orientation)
    dataset = dataset_of(data_of(tmp_path, {"0.jpg": turned}, [size]), PLAIN)
    shown = dataset.shown(0, dataset.reduction(0, 0.25))
    height, width = dataset.size(0)
    reduced = orientation == 1 or size == (304, 400)
    assert shown.scale == ((400 + (size[1] % 2)) / (96 * 8), size[0] / (height * 8)) if reduced else (1.0, 1.0)
    assert shown.image.shape[:2] == ((38, 51 - (size[1] == 400)) if reduced else (height, width))
    inverse = np.diag([shown.scale[0], shown.scale[1], 1])[:2]
    inverse[:, 2] = np.diag(inverse) / 2 - 0.5
    enlarged = cv2.warpAffine(
        shown.image, inverse, (width, height), flags=cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    wanted = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    assert psnr(enlarged, wanted) > 20 > psnr(enlarged[:, ::-1], wanted)


@pytest.mark.parametrize("degrees", [0, 10])
def test_samples_differ_slightly_and_labels_not_at_all(photographs, degrees):
    augment = BUSY.model_copy(update={"degrees": degrees})
    on, without = dataset_of(photographs, augment), dataset_of(photographs, off(augment))
    ratios = []
    for i in range(len(photographs)):
        for epoch in range(3):
            mine, other = on[epoch, i], without[epoch, i]
            np.testing.assert_array_equal(mine.boxes, other.boxes)
            np.testing.assert_array_equal(mine.labels, other.labels)
            smooth = [cv2.blur(sample.image, (5, 5)) for sample in (mine, other)]
            ratios.append(psnr(*smooth))
    assert min(ratios) > 22 and np.median(ratios) > 27 and np.isfinite(ratios).any(), ratios


def test_nothing_larger_than_a_place_is_as_without_the_option(tmp_path):
    """A PNG; JPEGs of training size shown in full; and an image that is enlarged is no sharper."""
    photo = photograph(300, 400)
    files = {"0.png": cv2.imencode(".png", photo)[1].tobytes(), "1.jpg": jpeg(cv2.resize(photo, (96, 72)))}
    index = data_of(
        tmp_path, files | {"2.jpg": jpeg(cv2.resize(photo, (768, 576)))}, [(300, 400), (72, 96), (576, 768)]
    )
    augment = PLAIN.model_copy(update={"scale": 0.0})  # never below 1
    for i, some in ((0, PLAIN), (1, augment), (2, augment)):
        for epoch in range(5):
            with_it, without = (dataset_of(index, one)[epoch, i] for one in (some, off(some)))
            np.testing.assert_array_equal(with_it.image, without.image)


def test_without_the_option_a_scale_changes_nothing(photographs):
    dataset = dataset_of(photographs, off(BUSY))
    for i in range(len(photographs)):
        assert dataset.reduction(i, 0.1) == dataset.reduction(i) == reduction_for(*photographs.size(i), SIDE)
        assert dataset.shown(i, dataset.reduction(i)).scale == (1.0, 1.0)


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_and_workers_change_nothing(photographs, workers):
    dataset = dataset_of(photographs)
    whole = list(TrainLoader(dataset, batch_size=2).epoch(3))
    loader = TrainLoader(pickle.loads(pickle.dumps(dataset)), batch_size=2, workers=workers)
    try:
        rest = list(loader.epoch(3, 1))
    finally:
        loader.close()
    assert len(rest) == 2
    for mine, other in zip(rest, whole[1:], strict=True):
        assert torch.equal(mine.images, other.images) and torch.equal(mine.targets, other.targets)


def test_an_image_of_another_size_is_refused_even_within_the_rest(tmp_path):
    index = data_of(tmp_path, {"0.jpg": jpeg(photograph(302, 402))}, [(301, 401)])
    with pytest.raises(DataError, match=r"0\.jpg: image 0: the image is 402 x 302 but annotated as 401 x 301"):
        dataset_of(index).shown(0, 8)


def test_a_cache_is_refused_beside_it(photographs):
    with pytest.raises(ValueError, match=r"augment\.reduced_decode: `cache: ram` decodes each image once"):
        Train(cache="ram", augment=BUSY)
    assert Train(augment=BUSY).augment.reduced_decode
    with pytest.raises(ConfigError, match="exclude each other; set one of them"):
        dataset_of(photographs, cache="ram")
