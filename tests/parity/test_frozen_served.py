"""A model that revision 85b8700 registered still serves: MLflow's folder of it, with the library it carries."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import frozen
import pytest

import yolov7

SERVE = """
import json, sys
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = model.predict(pandas.DataFrame({"image": [open(sys.argv[2], "rb").read()]}))
import yolov7
ours = [name for name in sys.modules if name.split(".")[0] in ("stages", "flows")]
print(json.dumps({"rows": rows.to_dict("list"), "library": yolov7.__file__, "ours": ours}))
"""


@pytest.fixture
def registered(tmp_path) -> Path:
    """The folder as MLflow downloads it; in the repository the library is packed, and the export folder not doubled."""
    folder = tmp_path / "model"
    shutil.copytree(frozen.DATA / "mlflow", folder)
    shutil.copytree(frozen.DATA / "exported", folder / "artifacts/export")
    with zipfile.ZipFile(folder / "code.zip") as packed:
        packed.extractall(folder)
    (folder / "code.zip").unlink()
    return folder


def assert_same_rows(rows):
    boxes = [list(box) for box in zip(*(rows[side] for side in ("x1", "y1", "x2", "y2")), strict=True)]
    frozen.assert_same_detections({"boxes": boxes, "scores": rows["score"], "labels": rows["label"]})
    assert rows["category_id"] == [10 + label for label in rows["label"]]
    assert rows["name"] == [f"kind {label}" for label in rows["label"]]


def test_a_registered_model_serves_with_the_library_it_carries(registered, tmp_path):
    """As `mlflow models serve` loads it; nothing of the checkout's pipeline is needed."""
    command = [sys.executable, "-c", SERVE, str(registered), str(frozen.DATA / "image.png")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert_same_rows(said["rows"])
    assert Path(said["library"]).is_relative_to(registered)
    assert said["ours"] == []


def test_a_registered_model_serves_where_this_library_is_loaded_already(registered, monkeypatch):
    """A notebook, say, that has used the checkout's library: the model's own copy then comes too late, and its code
    finds what it imports here (yolov7.data.decode, yolov7.errors, yolov7.predict.predictor, yolov7.signature)."""
    import mlflow
    import pandas as pd

    library = yolov7.__file__
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = mlflow.pyfunc.load_model(str(registered))
    rows = model.predict(pd.DataFrame({"image": [(frozen.DATA / "image.png").read_bytes()]}))
    assert_same_rows(rows.to_dict("list"))
    assert not Path(sys.modules["yolov7.predict"].__file__).is_relative_to(registered)
    assert sys.modules["yolov7"].__file__ == library
