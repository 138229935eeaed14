"""A one-class head without objectness, 4 + 1 columns, through every runtime: never scored by a constant column."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from small_detector import SIDE, metadata_of, pictures, small_detector, small_index

from yolov7.errors import ModelError
from yolov7.evaluate import evaluate
from yolov7.export import export_onnx, export_onnx_nms, export_onnx_raw, verify
from yolov7.model.heads.anchor import AnchorHeadModule
from yolov7.nms import Thresholds
from yolov7.predict import AugmentedRuntime, Predictor, TiledPredictor, TorchRuntime, load_detector, open_onnx

IMAGES = pictures(4)


class WithoutObjectness(AnchorHeadModule):
    """Class probabilities that are the small detector's objectness, so that its detections are known."""

    order = "level (small stride first), anchor, row, column"

    def decode(self, raw):
        return super().decode(raw)[..., :5]

    def scoring(self):
        return "class probability"


@pytest.fixture(scope="module")
def deploy():
    model = small_detector(1).reparameterize()
    model.head.__class__ = WithoutObjectness
    return model


@pytest.fixture(scope="module")
def expected():
    """Detections of the same network as it is, scored by its objectness."""
    model = small_detector(1).reparameterize()
    return Predictor(TorchRuntime(model, metadata_of(model)), confidence=0.2, iou=0.5).predict(IMAGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, deploy):
    path = tmp_path_factory.mktemp("scoring")
    metadata = metadata_of(deploy)
    graph = export_onnx(deploy, path / "model.onnx", metadata=metadata)
    export_onnx_nms(graph, path / "nms.onnx", Thresholds(0.2, 0.5))
    return path


def same(found, expected):
    assert sum(map(len, expected)) > 10
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.boxes, theirs.boxes, atol=1e-2, rtol=0)  # float32 in another order, in pixels
        assert set(ours.labels.tolist()) <= {0}


def test_torch_and_both_onnx_files_detect_the_same(deploy, folder, expected):
    torch_runtime = TorchRuntime(deploy, metadata_of(deploy))
    assert torch_runtime.scoring == open_onnx(folder / "model.onnx").scoring == "class probability"
    assert torch_runtime.decoded(np.zeros((1, 3, SIDE, SIDE), np.uint8)).shape[2] == 5
    same(Predictor(torch_runtime, confidence=0.2, iou=0.5).predict(IMAGES), expected)
    same(load_detector(folder / "model.onnx", confidence=0.2, iou=0.5).predict(IMAGES), expected)
    same(load_detector(folder / "nms.onnx").predict(IMAGES), expected)


def test_the_contract_names_the_columns(folder):
    output = open_onnx(folder / "model.onnx").file.about.contract["output"]
    assert output["columns"] == ["x1", "y1", "x2", "y2", "1 class probabilities"]
    assert output["shape"] == ["batch", "predictions", 5] and output["score"] == "class probability"


def test_augmented_and_tiled_views_keep_the_score(deploy):
    plain = small_detector(1).reparameterize()
    with_objectness, without = (TorchRuntime(model, metadata_of(model)) for model in (plain, deploy))
    assert AugmentedRuntime(without).scoring == "class probability"
    thresholds = {"confidence": 0.2, "iou": 0.5}
    same(
        Predictor(without, augment=True, **thresholds).predict(IMAGES),
        Predictor(with_objectness, augment=True, **thresholds).predict(IMAGES),
    )
    image = pictures(5)[-1]  # 200 x 333: several tiles
    same(
        TiledPredictor(Predictor(without, **thresholds)).predict(image),
        TiledPredictor(Predictor(with_objectness, **thresholds)).predict(image),
    )


def test_evaluation_and_verification_read_the_score(deploy, folder, expected, tmp_path):
    metadata = metadata_of(deploy)
    index = small_index(tmp_path, expected[:2], IMAGES[:2], metadata)
    plain = small_detector(1).reparameterize()
    truth, found = (evaluate(TorchRuntime(model, metadata), index) for model in (plain, deploy))
    assert truth.metrics["AP"] > 0 and found.metrics == pytest.approx(truth.metrics, abs=1e-6)
    ours, theirs = ([record["score"] for record in result.results] for result in (found, truth))
    assert ours == pytest.approx(theirs, abs=1e-6) and len(set(ours)) > 10
    files = (folder / "model.onnx", folder / "nms.onnx")
    assert verify(deploy, deploy, *files, index, metadata=metadata).problems == []
    # The same numbers under another name of the score give other detections.
    problems = verify(plain, deploy, *files, index, metadata=metadata).problems
    assert "onnx: score is 'class probability', trained was 'objectness'" in problems


def with_contract(source, target, change):
    graph = onnx.load(source)
    (entry,) = [entry for entry in graph.metadata_props if entry.key == "yolov7.contract"]
    contract = json.loads(entry.value)
    change(contract["output"])
    entry.value = json.dumps(contract)
    onnx.save(graph, target)
    return target


def test_contracts_this_revision_does_not_know_are_refused(folder, tmp_path):
    changed = with_contract(
        folder / "model.onnx", tmp_path / "score.onnx", lambda output: output.update(score="IoU x class")
    )
    with pytest.raises(ModelError, match=r"score\.onnx: .*output\.score is 'IoU x class'"):
        open_onnx(changed)
    model = small_detector(1)
    raw = tmp_path / "raw.onnx"
    export_onnx_raw(model, raw, metadata=metadata_of(model), dynamic=False)
    assert open_onnx(raw).scoring == "objectness"
    changed = with_contract(raw, tmp_path / "decoding.onnx", lambda output: output.update(decoding="distances"))
    with pytest.raises(ModelError, match=r"decoding\.onnx: .* by 'distances', which this revision does not know"):
        open_onnx(changed)
    changed = with_contract(raw, tmp_path / "damaged.onnx", lambda output: output.pop("anchors"))
    with pytest.raises(ModelError, match=r"damaged\.onnx: its contract's output is damaged: KeyError\('anchors'\)"):
        open_onnx(changed)


def test_a_raw_file_of_fixed_sides_gives_what_the_network_gives(tmp_path):
    model = small_detector(2)
    export_onnx_raw(model, tmp_path / "raw.onnx", metadata=metadata_of(model), image_size=(48, 80), dynamic=False)
    runtime = open_onnx(tmp_path / "raw.onnx")
    assert runtime.input_shape == (1, 48, 80)
    batch = torch.randint(0, 256, (2, 3, 48, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = TorchRuntime(model, metadata_of(model)).decoded(batch)
    torch.testing.assert_close(runtime.decoded(batch), expected, atol=5e-3, rtol=0)
