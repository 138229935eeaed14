"""Jitter of a batch on the device, beside the loader's with OpenCV."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import parameters, trainer, training_data
from synthetic_source import SIDE, SyntheticSource
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7.augment import device_color
from yolov7.augment.color import draw_hsv_tables, hsv_tables, jitter
from yolov7.augment.device_color import jitter_batch
from yolov7.augment.pipeline import augment_sample
from yolov7.config import Augment


def on_device(images, tables):
    """From images (B, S, S, 3) and tables (B, 3, 256), the loader's forms."""
    given = torch.from_numpy(images).permute(0, 3, 1, 2)
    found = jitter_batch(given, torch.from_numpy(tables))
    assert found.stride() == given.stride() and found.dtype == torch.uint8
    return found.permute(0, 2, 3, 1).numpy()


def in_the_loader(images, tables):
    side = images.shape[1]
    return np.stack(
        [jitter(np.dstack([i, i[..., 0]]), t, (0, 0, side, side)) for i, t in zip(images, tables, strict=True)]
    )


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_within_one_level_of_the_loader(seed, h, s, v):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    images[:, :8] = images[:, :8, :, :1]  # grey
    images[:, 8:12], images[:, 12:16, :, 1:] = 0, 0  # black and red
    tables = np.stack([draw_hsv_tables(rng, Augment(hsv_h=h, hsv_s=s, hsv_v=v)) for _ in images])
    difference = np.abs(on_device(images, tables).astype(int) - in_the_loader(images, tables))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.2


def test_every_hue_and_every_brightness():
    levels = np.arange(256, dtype=np.uint8)
    ramps = [np.stack([levels * (number >> bit & 1) for bit in range(3)], -1) for number in range(1, 8)]
    wheel = np.stack(
        [np.roll(np.r_[levels, np.full(256, 255), levels[::-1], np.zeros(256)], 256 * k) for k in range(3)]
    )
    images = np.concatenate([*ramps, wheel.T.astype(np.uint8)])[None, :, None].repeat(
        32, 2
    )  # OpenCV's vectors, not what is left of a row
    tables = hsv_tables(1.01, 0.9, 0.8)[None]
    wanted = jitter(np.dstack([images[0], images[0, ..., 0]]), tables[0], (0, 0, 32, images.shape[1]))
    difference = np.abs(on_device(images, tables)[0].astype(int) - wanted)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.2


def test_large_batches_go_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    tables = np.stack([draw_hsv_tables(rng, Augment()) for _ in images])
    whole = on_device(images, tables)
    monkeypatch.setattr(device_color, "_PIXELS", 2 * 16 * 16)
    np.testing.assert_array_equal(on_device(images, tables), whole)
    assert len(jitter_batch(torch.empty(0, 3, 8, 8, dtype=torch.uint8), torch.empty(0, 3, 256))) == 0


def test_it_is_a_few_operations_and_reads_nothing_back():
    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function.name())
            return function(*args, **(kwargs or {}))

    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    tables = torch.from_numpy(hsv_tables(1, 1, 1)).expand(4, 3, 256)
    jitter_batch(images, tables)  # lays out its constants
    with Count() as count:
        jitter_batch(images, tables)
    assert 20 < len(count.names) < 100
    assert not {"aten::_local_scalar_dense", "aten::nonzero", "aten::item"} & set(count.names)


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_samples_differ_by_nothing_but_rounding(mixup):
    source = SyntheticSource(6)
    for seed in range(6):
        samples = [
            augment_sample(
                source,
                seed % 6,
                augment=Augment(mixup=mixup, paste_in=0, hsv_on_device=there),
                size=SIDE,
                rng=np.random.default_rng(seed),
            )
            for there in (False, True)
        ]
        np.testing.assert_array_equal(samples[0].boxes, samples[1].boxes)
        np.testing.assert_array_equal(samples[0].labels, samples[1].labels)
        assert samples[0].tables is None
        found = on_device(samples[1].image[None], samples[1].tables[None])[0]
        assert np.abs(found.astype(int) - samples[0].image).max() <= 1


def test_a_training_learns_the_same(tmp_path):
    """Losses of a few steps agree as far as one level of brightness allows."""
    index = training_data(tmp_path / "data")
    rows = []
    for there in (False, True):
        params = parameters(epochs=2, augment={"hsv_on_device": there, "paste_in": 0.0})
        outcome = trainer(index, tmp_path / str(there), params).fit()
        assert outcome.finished
        rows.append(outcome.history[0])
    for name in ("train/box", "train/objectness", "train/classification"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=0.02)
        assert rows[1][name] != rows[0][name]  # the switch does reach the training
