"""The start of a training: anchors kept, scaled or fitted to the data, and weights of another training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_detector import metadata_of, small_detector

from yolov7.anchors import best_possible_recall
from yolov7.config import LossParameters, train_parameters
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import build_index
from yolov7.errors import ConfigError, ModelError
from yolov7.loss import create_criterion
from yolov7.model import ModelMetadata, load_checkpoint, save_checkpoint
from yolov7.model.cost import count_parameters
from yolov7.model.pgi import with_pgi
from yolov7.train.initial import initial_model


def data(folder: Path, low: float, high: float, classes: int = 3):
    """An index of 40 boxes with sides from `low` to `high` on images of 96 px; there are no image files."""
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.png", "width": 96, "height": 96} for i in range(10)]
    records = [
        {
            "id": i,
            "image_id": i % 10,
            "category_id": i % classes,
            "bbox": [0.0, 0.0, *rng.uniform(low, high, 2).tolist()],
        }
        for i in range(40)
    ]
    categories = [{"id": i, "name": f"kind {i}"} for i in range(classes)]
    return build_index(CocoAnnotations(Path("x"), images, records, categories), folder, folder / "index")


def start(index, **over):
    values = {"preset": "small", "image_size": 96, "network": "small_detector:small_network", **over}
    return initial_model("small", train_parameters(values), index)


OWN = small_detector().anchors


def recall(index, anchors: torch.Tensor) -> float:
    return best_possible_recall(index.all_sizes()[0], anchors.reshape(-1, 2).numpy(), 4.0)


def test_anchors_are_kept_scaled_or_fitted_as_the_parameters_say(tmp_path):
    usual, tiny = data(tmp_path / "a", 12, 60), data(tmp_path / "b", 2.5, 4)
    assert recall(usual, OWN) > 0.98 and recall(tiny, OWN) < 0.5
    assert torch.equal(start(tiny, anchors="keep").anchors, OWN)
    assert torch.allclose(start(tiny, anchors="keep", anchor_scale=0.25).anchors, OWN / 4)
    assert torch.equal(start(usual, anchors="auto").anchors, OWN)
    fitted = start(tiny, anchors="auto").anchors
    assert recall(tiny, fitted) > 0.98 and fitted.max() < 5
    always = start(usual, anchors="fit").anchors
    assert not torch.equal(always, OWN) and recall(usual, always) > 0.98
    assert torch.equal(start(usual, anchors="fit").anchors, always)
    assert not torch.equal(start(usual, anchors="fit", seed=1).anchors, always)


def test_weights_of_another_training_are_taken_where_they_fit_and_the_rest_is_named(tmp_path, caplog):
    caplog.set_level("INFO")
    trained = small_detector(seed=5)
    save_checkpoint(tmp_path / "w.safetensors", trained, metadata_of(trained))
    weights = str(tmp_path / "w.safetensors")
    same = start(data(tmp_path / "a", 2.5, 4), anchors="auto", weights=weights)
    ours, theirs = same.state_dict(), trained.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if "anchor" not in name)
    assert not torch.equal(same.anchors, trained.anchors)  # those fitted to the data stay
    more = start(data(tmp_path / "b", 12, 60, classes=5), weights=weights).state_dict()
    other = {name for name in theirs if more[name].shape != theirs[name].shape}
    assert other and all("predict" in name or "implicit" in name for name in other)
    assert all(torch.equal(more[name], theirs[name]) for name in theirs if name not in other and "anchor" not in name)
    assert all(name in caplog.text for name in other)


def test_weights_of_a_network_that_has_nothing_in_common_are_refused(tmp_path):
    trained = small_detector()
    save_checkpoint(tmp_path / "w.safetensors", trained, metadata_of(trained))
    params = train_parameters({"image_size": 96, "weights": str(tmp_path / "w.safetensors")})
    with pytest.raises(ModelError, match="holds a small in training form; none of its kernels fits"):
        initial_model("yolov7-tiny", params, data(tmp_path / "a", 12, 60))


def test_a_part_of_pgi_joins_any_size_and_leaves_the_deployed_weights_alone(tmp_path, caplog):
    caplog.set_level("INFO")
    index = data(tmp_path, 12, 60)
    alone, trained = (
        initial_model("gelan-t", train_parameters({"image_size": 96, "pgi": part}, recipe="yolov9"), index)
        for part in ("", "icn")
    )
    assert trained.spec == with_pgi(alone.spec, "icn") and trained.has_auxiliary and not alone.has_auxiliary
    ours, theirs = trained.state_dict(), alone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if not name.startswith("head."))
    assert f"gelan-t is trained with the auxiliary branch icn: {count_parameters(trained):,} parameters" in caplog.text
    assert caplog.text.count("gelan-t is trained") == 1


def test_a_network_without_anchors_names_the_parameters_of_anchors_it_leaves_unused(tmp_path, caplog):
    caplog.set_level("INFO")
    index = data(tmp_path, 12, 60)
    for over in ({}, {"anchors": "fit", "anchor_scale": 0.5}):
        model = initial_model("yolov9-t", train_parameters({"image_size": 96, **over}, recipe="yolov9"), index)
        assert model.has_auxiliary
    lines = [record.getMessage() for record in caplog.records if "anchor" in record.getMessage()]
    assert lines == ["yolov9-t has no anchors, so these have no effect: anchors: fit, anchor_scale: 0.5"]


def test_an_anchor_aided_branch_has_its_anchors_scaled_and_not_fitted(tmp_path, caplog):
    caplog.set_level("INFO")
    index = data(tmp_path, 12, 60)
    given = {"image_size": 96, "anchor_scale": 0.5, "anchors": "fit"}
    model = initial_model("yolov6v3-n", train_parameters(given, recipe="yolov6v3-n"), index)
    criterion = create_criterion(model, image_size=96)
    assert criterion.branch.anchors[0] == (5.0, 6.5) and criterion.branch.anchors[8] == (186.5, 163.0)
    lines = [record.getMessage() for record in caplog.records if "anchor" in record.getMessage()]
    (line,) = lines
    assert line == "the anchors of yolov6v3-n's anchor-aided branch are not fitted, so this has no effect: anchors: fit"
    save_checkpoint(tmp_path / "w.safetensors", model, ModelMetadata.of(model, class_names=tuple(index.class_names)))
    assert load_checkpoint(tmp_path / "w.safetensors")[0].spec.head.anchors[0][0] == (5.0, 6.5)
    small = train_parameters({"image_size": 96, "anchor_scale": 0.5, "preset": "small"}, recipe="yolov6v3-n")
    assert not initial_model("yolov6v3-n", small, index).spec.head.anchor_aided
    assert caplog.messages[-1] == "yolov6v3-n has no anchors, so these have no effect: anchor_scale: 0.5"


class OtherLoss(LossParameters):
    """Parameters of another kind of head."""


def test_loss_parameters_of_another_head_are_refused(tmp_path):
    params = train_parameters({"image_size": 96}).model_copy(update={"loss": OtherLoss()})
    with pytest.raises(ConfigError, match=r"train\.loss: yolov7-tiny is trained with AnchorLoss, got OtherLoss"):
        initial_model("yolov7-tiny", params, data(tmp_path, 12, 60))
