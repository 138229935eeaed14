"""A short training of YOLOv6 with objectness."""

import pytest
from small_efficient import small_efficient
from small_training import parameters, same_outcome, trainer, training_data

from yolov7.config import identity_of, train_parameters
from yolov7.errors import ModelError
from yolov7.model import create_model, load_checkpoint
from yolov7.model.trained import training_network


def test_a_run_stopped_in_an_atss_epoch_ends_with_the_bits_of_one_that_was_not(tmp_path):
    data = training_data(tmp_path / "data", 4)

    def fit(folder, **on):
        params = parameters("yolov6-n", epochs=2, loss={"atss_epochs": 1}, evaluate_every=2)
        model = create_model(small_efficient(objectness=True), len(data.class_names))
        return trainer(data, tmp_path / folder, params, model, **on).fit()

    calls = iter(range(9))
    assert not fit("pieces", stop=lambda: next(calls) == 0).finished
    whole = fit("whole")
    assert same_outcome(fit("pieces"), whole)
    assert [row["train/objectness"] > 0 for row in whole.history] == [True, True]
    best, _ = load_checkpoint(whole.best)
    assert best.spec.head.objectness and best.head.scoring() == "objectness x class probability"


def test_the_head_follows_the_parameters_and_old_runs_keep_their_identity():
    params = train_parameters({"head": {"objectness": True}}, recipe="yolov6-n")
    assert training_network("yolov6-n", params).head.objectness
    assert identity_of(params)["head"]["objectness"] is True
    plain = train_parameters({"head": {"bins": 17}}, recipe="yolov6-n")
    assert not training_network("yolov6-n", plain).head.objectness
    identity = identity_of(plain)
    assert "objectness" not in identity["head"] and "objectness" not in identity["loss"]
    with pytest.raises(ModelError, match="objectness: not together with anchor_aided; set one of them to false"):
        training_network(
            "yolov6v3-n", params.model_copy(update={"head": params.head.model_copy(update={"anchor_aided": True})})
        )
