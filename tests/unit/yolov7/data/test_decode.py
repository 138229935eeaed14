"""Decoding: RGB order, orientation, sizes, and refusal of what is not a whole image."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolov7.data.decode import decode_image, read_image, reduction_for
from yolov7.errors import DataError
from yolov7.letterbox import load_size, resize_to_long_side


def picture(height=40, width=60):
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (250, 20, 20)  # red, top left
    image[height // 2 :, width // 2 :] = (20, 20, 250)  # blue, bottom right
    return image


def encoded(image, extension=".jpg", parameters=()):
    done, data = cv2.imencode(extension, image[..., ::-1], list(parameters))
    assert done
    return data.tobytes()


def exif_segment(orientation):
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + b"\0\0\0\0"
    payload = b"Exif\0\0" + tiff
    return b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload


@pytest.mark.parametrize("extension", [".jpg", ".png", ".bmp", ".webp"])
def test_colours_are_rgb(tmp_path, extension):
    path = tmp_path / f"bild ä{extension}"
    path.write_bytes(encoded(picture(), extension))
    image = read_image(path)
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8
    assert np.abs(image[5, 5].astype(int) - (250, 20, 20)).max() < 40
    assert np.abs(image[35, 55].astype(int) - (20, 20, 250)).max() < 40


@pytest.mark.parametrize(("orientation", "corner"), [(1, (5, 5)), (3, (35, 55)), (6, (5, 35)), (8, (55, 5))])
def test_exif_orientation_turns_the_image_upright(orientation, corner):
    data = encoded(picture())
    image = decode_image(data[:2] + exif_segment(orientation) + data[2:])
    assert image.shape[:2] == ((40, 60) if orientation in (1, 3) else (60, 40))
    assert image[corner][0] > 200 and image[corner][2] < 80


def test_grey_alpha_and_16_bit_become_rgb():
    assert decode_image(encoded(picture()[..., :1], ".png")).shape == (40, 60, 3)
    assert decode_image(encoded(np.dstack([picture(), picture()[..., 0]]), ".png")).shape == (40, 60, 3)
    deep = decode_image(encoded(picture().astype(np.uint16) * 257, ".png"))
    np.testing.assert_array_equal(deep, picture())


@pytest.mark.parametrize("extension", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated_files_are_refused(extension, share):
    rng = np.random.default_rng(0)
    data = encoded(rng.integers(0, 255, (64, 64, 3), np.uint8), extension)
    with pytest.raises(DataError, match=r"truncated|damaged|decoded"):
        decode_image(data[: int(len(data) * share)], path="x")


def test_a_thumbnail_does_not_hide_the_missing_end():
    data = encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    thumbnail = encoded(picture(8, 8))
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = data[:2] + segment + data[2:]
    assert decode_image(whole).shape == (64, 64, 3)
    with pytest.raises(DataError, match="truncated"):
        decode_image(whole[:-200])


def test_bytes_behind_the_end_do_not_matter():
    assert decode_image(encoded(picture()) + b"\0" * 100).shape == (40, 60, 3)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00\x00\x00\x00"])
def test_a_file_that_is_not_an_image_is_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.jpg"):
        read_image(path)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg: no such image file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([32, 320, 640, 1280]))
def test_load_size_has_the_long_side_and_the_ratio(height, width, side):
    new_height, new_width = load_size(height, width, side)
    assert max(new_height, new_width) == side and min(new_height, new_width) >= 1
    scale = side / max(height, width)
    assert new_height <= height * scale + 1e-9 or new_height == 1
    assert abs(new_height - height * scale) < 1 and abs(new_width - width * scale) < 1


@pytest.mark.parametrize("area", [False, True])
def test_resize_keeps_colours_and_returns_a_fitting_image_itself(area):
    assert resize_to_long_side(picture(), 30, area=area).shape == (20, 30, 3)
    assert resize_to_long_side(picture(), 90, area=area).shape == (60, 90, 3)
    image = picture()
    assert resize_to_long_side(image, 60, area=area) is image


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([32, 320, 640, 1280]))
def test_a_reduction_leaves_no_rest_and_enough_pixels(height, width, side):
    by = reduction_for(height, width, side)
    assert height % by == 0 and width % by == 0
    assert by == 1 or max(height, width) // by >= side
    assert load_size(height // by, width // by, side) == load_size(height, width, side)
    larger = 2 * by
    assert by == 8 or max(height, width) < larger * side or height % larger or width % larger


@given(st.integers(1, 9000), st.integers(1, 9000), st.floats(20, 1280))
def test_with_a_rest_allowed_the_larger_side_alone_decides(height, width, side):
    by = reduction_for(height, width, side, rest=True)
    assert by == 1 or max(height, width) >= by * side
    assert by == 8 or max(height, width) < 2 * by * side
    assert reduction_for(height, width, side) <= by


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("by", [2, 4, 8])
def test_reduced_decoding_averages_the_pixels_it_leaves_out(by, orientation):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (256, 192), interpolation=cv2.INTER_CUBIC)
    data = encoded(image, parameters=[cv2.IMWRITE_JPEG_QUALITY, 95])
    data = data[:2] + exif_segment(orientation) + data[2:]
    small, whole = decode_image(data, reduction=by), decode_image(data)
    height, width = whole.shape[0] // by, whole.shape[1] // by
    assert small.shape == (height, width, 3)
    averaged = whole.reshape(height, by, width, by, 3).mean((1, 3))
    assert np.abs(small - averaged).mean() < 2  # another filter and the rounding of the colour planes
    # A shift by a quarter of a small pixel would show: the picture is smooth, but far from flat.
    shifted = np.roll(whole, max(by // 4, 1), axis=1).reshape(height, by, width, by, 3).mean((1, 3))
    assert np.abs(small - averaged).mean() < np.abs(small - shifted).mean()
