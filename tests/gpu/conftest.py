"""The accelerator that these tests are for; `YOLOV7_TEST_DEVICE` names another, `cpu` to try the tests themselves."""

from __future__ import annotations

import os

import pytest
import torch

from yolov7.device import allow_tf32, choose_device


@pytest.fixture
def device():
    found = choose_device(os.environ.get("YOLOV7_TEST_DEVICE", "auto"))
    if found.type == "cpu" and "YOLOV7_TEST_DEVICE" not in os.environ:
        pytest.skip("no accelerator here")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    allow_tf32(found, False)  # 10 bits of mantissa would hide what is compared
    yield found
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
