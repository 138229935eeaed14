"""Evaluation batches: every image once, and boxes that find their way there and back."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from yolov7.data.evaluation import evaluation_batches
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import build_index
from yolov7.errors import ConfigError, DataError
from yolov7.letterbox import Border

SIZES = [(48, 64), (64, 48), (100, 200), (37, 53), (64, 64), (20, 90), (91, 30)]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    rng = np.random.default_rng(0)
    images, records = [], []
    for i, (height, width) in enumerate(SIZES):
        image = np.zeros((height, width, 3), np.uint8)
        left, top = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
        image[top : top + height // 4, left : left + width // 4] = 255
        cv2.imwrite(str(folder / f"{i}.png"), image)
        images.append({"id": 100 + i, "file_name": f"{i}.png", "width": width, "height": height})
        box = [left, top, width // 4, height // 4]
        records.append({"id": i, "image_id": 100 + i, "category_id": 1, "bbox": box})
    coco = CocoAnnotations(Path("x.json"), images, records, [{"id": 1, "name": "thing"}])
    return build_index(coco, folder, folder / "index")


def batches(index, **keywords):
    return list(evaluation_batches(index, **{"image_size": 64, "batch_size": 3, "stride": 32, **keywords}))


@pytest.mark.parametrize("rectangular", [False, True])
def test_every_image_once_whatever_the_workers_and_ranks(index, rectangular):
    alone = batches(index, rectangular=rectangular)
    assert sorted(i for batch in alone for i in batch.indices) == list(range(len(SIZES)))
    assert [len(batch) for batch in alone] == [3, 3, 1]
    for other in (batches(index, rectangular=rectangular, workers=2), _interleaved(index, rectangular)):
        assert [batch.indices for batch in other] == [batch.indices for batch in alone]
        for mine, its in zip(alone, other, strict=True):
            np.testing.assert_array_equal(mine.images.numpy(), its.images.numpy())
            np.testing.assert_array_equal(mine.scales, its.scales)
            np.testing.assert_array_equal(mine.pads, its.pads)


def _interleaved(index, rectangular):
    ranks = [batches(index, rectangular=rectangular, rank=rank, world_size=2) for rank in range(2)]
    return [ranks[0][0], ranks[1][0], ranks[0][1]]


@pytest.mark.parametrize("pixels", [0, 7])
@pytest.mark.parametrize("rectangular", [False, True])
def test_boxes_point_at_the_same_pixels_before_and_after(index, rectangular, pixels):
    for batch in batches(index, rectangular=rectangular, border=Border(pixels)):
        assert batch.images.dtype.is_floating_point is False and batch.images.is_contiguous()
        for row, i in enumerate(batch.indices):
            assert batch.image_ids[row] == index.image_id(i)
            assert tuple(batch.original_sizes[row]) == index.size(i)
            moved = index.boxes(i) * np.tile(batch.scales[row], 2) + np.tile(batch.pads[row], 2)
            ys, xs = np.nonzero(batch.images[row, 0].numpy() > 150)
            seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert np.abs(seen - moved[0]).max() <= 1.01  # the edge pixel may be blended
            np.testing.assert_allclose(batch.to_original(row, moved), index.boxes(i), atol=1e-4)


def test_square_batches_have_the_image_size_and_a_grey_border(index):
    for batch in batches(index):
        assert batch.images.shape[1:] == (3, 64, 64)
    first = batches(index)[0]
    assert tuple(first.pads[0]) == (0, 8) and tuple(first.pads[1]) == (8, 0)
    assert (first.images[0, :, :8] == 114).all() and (first.images[0, :, 56:] == 114).all()


def test_rectangular_batches_follow_the_ratios(index):
    alone = batches(index, rectangular=True)
    ratios = [SIZES[i][0] / SIZES[i][1] for batch in alone for i in batch.indices]
    assert ratios == sorted(ratios)
    # Wide: ratios 20/90, 100/200, 37/53; ceil(0.698 * 2 + 0.5) = 2 rows of 32, ceil(1 * 2 + 0.5) = 3 columns.
    assert alone[0].images.shape[2:] == (64, 96)
    # Mixed: square, 3 strides each. Tall: 91/30: ceil(30/91 * 2 + 0.5) = 2.
    assert alone[1].images.shape[2:] == (96, 96)
    assert alone[2].images.shape[2:] == (96, 64)


def test_a_border_shortens_the_long_side_and_leaves_the_shapes(index):
    for batch in batches(index, border=Border(6)):
        assert batch.images.shape[1:] == (3, 64, 64)
        assert (batch.images[:, :, :3] == 114).all() and (batch.images[:, :, :, -3:] == 114).all()
    # The same ratios, so the same shapes; ceil(0.698 * 2) = 2 and ceil(1 * 2) = 2 without anything to spare.
    alone = batches(index, rectangular=True, border=Border(6))
    assert [batch.images.shape[2:] for batch in alone] == [(64, 96), (96, 96), (96, 64)]
    least = batches(index, rectangular=True, border=Border(spare=0))
    assert [batch.images.shape[2:] for batch in least] == [(64, 64), (64, 64), (64, 32)]
    for batch, bordered in zip(least, batches(index, rectangular=True, border=Border(6, spare=0)), strict=True):
        assert batch.images.shape == bordered.images.shape
        assert (batch.scales.max(1) > bordered.scales.max(1)).all()


def test_the_way_back_in_halves_of_one_scale(index):
    released = Border(integer_offset=False, exact_scale=False)
    for ours, theirs in zip(batches(index), batches(index, border=released), strict=True):
        np.testing.assert_array_equal(ours.images.numpy(), theirs.images.numpy())
        np.testing.assert_array_equal(theirs.scales, ours.scales[:, [1, 1]])
        assert set((theirs.pads - ours.pads).ravel()) <= {0, 0.5}
    assert theirs.pads.tolist() == [[(64 - 30 * 64 // 91) / 2, 0]] == [[21.5, 0]]


def test_a_border_without_room_for_an_image(index):
    with pytest.raises(ConfigError, match="a border of 0 to 63 pixels is expected for this input, got 64"):
        batches(index, border=Border(64))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_evaluation(index, tmp_path, workers):
    other = type(index).open(index.folder, image_root=tmp_path)
    with pytest.raises(DataError, match=r"0\.png: no such image file$"):
        batches(other, workers=workers)


def test_an_image_of_another_size_stops_the_evaluation(index, tmp_path):
    for i in range(len(SIZES)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((10, 12, 3), np.uint8))
    other = type(index).open(index.folder, image_root=tmp_path)
    with pytest.raises(DataError, match=r"image 100: the image is 12 x 10 but annotated as 64 x 48"):
        batches(other)
