"""Networks of YOLOv6: golden vectors of the published definitions, through the importer of published checkpoints."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.test_model_golden import filled
from yolov7.model import create_model

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "v6"
FILE = re.compile(r"yolov6(\w+)-([23]\.0)")
NETWORKS = sorted(path.stem for path in GOLDEN.glob("*.npz") if FILE.fullmatch(path.stem))


def published(name):
    """A published file's tensors by the filling rule (golden/README.md): alpha near 1, real numbers of the bins."""
    meta = json.loads((GOLDEN / f"{name}.keys.json").read_text())
    tensors = filled([key for key in meta["keys"] if "proj" not in key[0]], meta["gain"])
    for key, shape, _ in meta["keys"]:
        if "proj" in key:
            tensors[key] = torch.arange(float(max(shape))).reshape(shape)
        elif key.endswith("alpha"):
            rng = np.random.default_rng(zlib.crc32(key.encode()))
            tensors[key] = torch.from_numpy(np.asarray(1 + 0.1 * rng.standard_normal(shape), dtype=np.float32))
    return {key: tensors[key] for key, _, _ in meta["keys"]}


@pytest.mark.skipif(not NETWORKS, reason="the golden vectors of YOLOv6 (../shared) are not here")
@pytest.mark.parametrize("name", NETWORKS or ["none"])
def test_networks(name, tmp_path):
    size, release = FILE.fullmatch(name).groups()
    golden = np.load(GOLDEN / f"{name}.npz")
    path = tmp_path / "published.pt"
    torch.save({"model": published(name)}, path)
    model = create_model(f"yolov6-{size}" if release == "2.0" else f"yolov6v3-{size}").eval()
    report = model.load_official(path)
    path.unlink()
    assert report.form == f"{release} training"
    assert not report.left and not report.untouched and report.complete
    images = torch.from_numpy(golden["input"])
    with torch.inference_mode():
        raw, decoded = model.raw(images), model(images)
        deploy = model.reparameterize()
        deployed = deploy.raw(images)
    rows = torch.cat([level.flatten(2) for level in raw], 2).transpose(1, 2).numpy()  # (1, N, R + C)
    box = golden["box_raw"]
    # float32, golden/README.md; maps of tens carry the rounding of their size. A score moves by a quarter of its logit.
    near = 1e-4 + 2e-6 * np.abs(rows).max()
    assert np.allclose(rows[..., : box.shape[-1]], box, rtol=0, atol=near)
    scores = 1 / (1 + np.exp(-rows[..., box.shape[-1] :].astype(float)))
    assert np.abs(scores - golden["class_scores"]).max() <= near / 4
    for found, wanted in zip(deployed, raw, strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=near)
    wanted = golden["decoded"]
    centre, half = wanted[..., :2], wanted[..., 2:4] / 2
    # A distance counts in strides, and so does its rounding: the L in float64 is 0.002 px off.
    pixels = np.concatenate([np.full(level[0, 0].numel(), images.shape[-1] / level.shape[-1]) for level in raw])
    corners = np.concatenate((centre - half, centre + half), -1)
    away = np.abs(decoded[..., :4].numpy() - corners) - 1e-5 * np.abs(corners)
    assert np.all(away <= np.maximum(1e-3, near * pixels)[:, None])
    assert np.all(wanted[..., 4] == 1)
    assert np.abs(decoded[..., 4:].numpy() - wanted[..., 5:]).max() <= near / 4
