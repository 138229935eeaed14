"""Images that reach the model beside MLflow's JSON."""

from __future__ import annotations

import base64
import json

import pandas as pd
import pytest
from mlflow.pyfunc import PyFuncModel

from stages.serving import handover


@pytest.fixture
def predict(monkeypatch):
    """MLflow's `predict` with tickets, around a model that returns what it gets."""
    monkeypatch.setattr(PyFuncModel, "predict", lambda self, data, params=None: (data, params))
    handover.install()
    handover.install()
    model = object.__new__(PyFuncModel)
    return lambda data, **options: PyFuncModel.predict(model, data, **options)


def table(ticket: bytes) -> pd.DataFrame:
    """The ticket's document as MLflow reads it."""
    document = json.loads(handover.document_of(ticket, {"iou": 0.5}))
    assert document["params"] == {"iou": 0.5}
    ((cell,),) = document["dataframe_split"]["data"]
    return pd.DataFrame({"image": [base64.b64decode(cell)]})


def test_the_model_gets_the_images_of_a_ticket_once(predict):
    images = [b"first", b"second"]
    ticket = handover.deposit(images)
    data, params = predict(table(ticket), params={"iou": 0.5})
    assert [cell is image for cell, image in zip(data["image"], images, strict=True)] == [True, True], "not copied"
    assert params == {"iou": 0.5}
    data, _ = predict(table(ticket))
    assert list(data["image"]) == [ticket], "a second time it is a cell like any other"


@pytest.mark.parametrize(
    "data",
    [
        pd.DataFrame({"image": [b"x" * 24]}),
        pd.DataFrame({"image": [b"an image", b"another"]}),
        pd.DataFrame({"picture": [b"x" * 24]}),
        pd.DataFrame({"image": []}),
        {"image": "text"},
        [1, 2],
    ],
)
def test_everything_else_passes_unchanged(predict, data):
    assert predict(data)[0] is data


def test_a_ticket_that_is_withdrawn_is_worth_nothing():
    ticket = handover.deposit([b"image"])
    assert handover.withdraw(ticket) == [b"image"]
    assert handover.withdraw(ticket) is None
