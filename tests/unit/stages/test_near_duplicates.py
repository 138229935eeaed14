"""Near-duplicates are found whatever format and depth they are stored in."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stages.images.near_duplicates import difference_hash

SMALL = np.random.default_rng(4).integers(0, 256, (8, 10), dtype=np.uint8)
GREY = cv2.resize(SMALL, (160, 128), interpolation=cv2.INTER_CUBIC)
DEEP = (GREY.astype(np.float32) / 255 * 4095).astype(np.uint16)


@pytest.mark.parametrize(
    ("suffix", "pixels"),
    [(".avif", cv2.merge([GREY] * 3)), (".jp2", GREY), (".ppm", cv2.merge([GREY] * 3)), (".ras", GREY), (".png", DEEP),
     (".png", GREY.astype(np.uint16)), (".tiff", DEEP), (".pgm", DEEP), (".tiff", DEEP.astype(np.float32)),
     (".tiff", DEEP.astype(np.int16) - 1000), (".pfm", DEEP.astype(np.float32))],
)  # fmt: skip
def test_the_same_picture_has_the_same_hash_in_every_format(tmp_path, suffix, pixels):
    hashes = []
    for name, ending, content in (("a", ".png", GREY), ("b", suffix, pixels)):
        (tmp_path / f"{name}.img").write_bytes(cv2.imencode(ending, content)[1].tobytes())
        hashes.append(difference_hash(tmp_path / f"{name}.img"))
    assert hashes[0] is not None and hashes[1] is not None
    assert np.bitwise_count(hashes[0] ^ hashes[1]).sum() <= 4


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\xff\x0a", cv2.imencode(".png", np.full((9, 9), 777, np.uint16))[1]]
)
def test_what_has_no_hash_is_none(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert difference_hash(tmp_path / "x") is None
