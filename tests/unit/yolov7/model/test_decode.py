"""Decoding against a second derivation in float64, cell by cell."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.model import create_model
from yolov7.model.block_specs import StridedConv
from yolov7.model.heads.anchor import AnchorHead, Level, decode
from yolov7.model.spec import Network, Stage


def by_hand(raw, anchors, strides):
    """Centre (2 s - 0.5 + cell) * stride, size (2 s)^2 * anchor; order level, anchor, row, column."""
    rows = []
    for image in range(raw[0].shape[0]):
        found = []
        for level, maps in enumerate(raw):
            _, A, h, w, F = maps.shape
            for a in range(A):
                for y in range(h):
                    for x in range(w):
                        s = [1 / (1 + math.exp(-float(maps[image, a, y, x, f]))) for f in range(F)]
                        cx, cy = (2 * s[0] - 0.5 + x) * strides[level], (2 * s[1] - 0.5 + y) * strides[level]
                        bw, bh = (2 * s[2]) ** 2 * anchors[level][a][0], (2 * s[3]) ** 2 * anchors[level][a][1]
                        found.append([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2, *s[4:]])
        rows.append(found)
    return torch.tensor(rows, dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 3), h=st.integers(1, 4), w=st.integers(1, 4))
def test_decode_is_the_formula(seed, classes, h, w):
    generator = torch.Generator().manual_seed(seed)
    raw = [torch.randn(2, 2, n * h, n * w, 5 + classes, generator=generator) * 3 for n in (2, 1)]
    anchors, strides = [[[10, 13], [16, 30]], [[116, 90], [156, 198]]], (8, 16)
    expected = by_hand(raw, anchors, strides)
    exact = decode([item.double() for item in raw], torch.tensor(anchors, dtype=torch.float32), strides)
    assert torch.allclose(exact, expected, rtol=1e-12, atol=1e-9)
    single = decode(raw, torch.tensor(anchors, dtype=torch.float32), strides)
    # float32 keeps 24 bits of a coordinate below 1024 pixels
    assert single.dtype == torch.float32 and torch.allclose(single.double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_decoded_in_float32(dtype):
    # The last cell of a 1280 pixel row: half precision could only say 1272 or 1273 there.
    raw = torch.zeros(1, 1, 1, 160, 6, dtype=dtype)
    decoded = decode([raw], torch.tensor([[[4.0, 4.0]]]), (8,))
    assert decoded.dtype == torch.float32
    assert decoded[0, -1, :4].tolist() == [1274.0, 2.0, 1278.0, 6.0]


def small_network():
    return Network(
        name="small",
        backbone=(Stage("stem", StridedConv(8)), Stage("P2", StridedConv(8)), Stage("P3", StridedConv(8))),
        neck=(),
        head=AnchorHead(
            anchors=(((4, 4), (6, 6)), ((10, 10), (16, 16))),
            lead=(Level("H2", StridedConv(8), of="stem"), Level("H3", StridedConv(8), of="P2")),
        ),
    )


@pytest.mark.slow  # the tracer takes seconds to load
def test_exported_graph_takes_any_batch_and_sides():
    model = create_model(small_network(), 2).reparameterize()
    dim = torch.export.Dim
    shapes = {0: dim("batch", min=1, max=64), 2: 8 * dim("h", min=2, max=64), 3: 8 * dim("w", min=2, max=64)}
    program = torch.export.export(model, (torch.rand(2, 3, 16, 24),), dynamic_shapes=(shapes,)).module()
    for shape in ((1, 3, 16, 16), (3, 3, 32, 40)):
        images = torch.rand(shape)
        with torch.inference_mode():
            assert torch.allclose(program(images), model(images), atol=1e-4)
