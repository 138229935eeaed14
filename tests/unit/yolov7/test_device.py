"""Requirements on accelerators, as far as they can be tested without one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from yolov7 import device as module
from yolov7.device import autocast_dtype, float16_works

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _nothing_remembered():
    float16_works.cache_clear()
    yield
    float16_works.cache_clear()


def test_convolutions_that_are_right_in_float16_are_found_so():
    before = torch.get_rng_state()
    assert float16_works(CPU)
    assert torch.equal(torch.get_rng_state(), before), "a training's random numbers are its own"


@pytest.mark.parametrize("answer", [torch.nan, torch.inf, 0.0])
def test_a_device_that_is_wrong_in_float16_is_found_out(monkeypatch, caplog, answer):
    right = F.conv2d

    def wrong(images, kernels, **options):
        found = right(images, kernels, **options)
        return found if images.dtype is not torch.float16 else torch.full_like(found, answer)

    monkeypatch.setattr(F, "conv2d", wrong)
    assert not float16_works(CPU)
    assert not float16_works(CPU)
    (message,) = caplog.messages
    assert message == "cpu computes convolutions in float16 wrongly: float32 is used instead"


@pytest.mark.parametrize("works", [True, False])
def test_automatic_precision_is_float16_only_where_that_works(monkeypatch, works):
    monkeypatch.setattr(module, "float16_works", lambda device: works)
    assert autocast_dtype(CUDA, "auto") == (torch.float16 if works else None)
    assert autocast_dtype(CUDA, "float16") == torch.float16, "who asks for it gets it"
    assert autocast_dtype(CPU, "auto") is None
