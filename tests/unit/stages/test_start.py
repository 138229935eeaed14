"""What a stage loads before it begins: each is a process of its own, and packages cost more than many a stage.

Heavy packages are loaded where their work begins. The stages are imported one after the other into one new process,
those that need little first, so that each sees what it and those before it have loaded, params.yaml included.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]

RECORDS = {
    "mlflow",
    "great_expectations",
    "pandas",
    "sklearn",
    "pyarrow",
    "sqlalchemy",
    "boto3",
    "optuna",
    "matplotlib",
}
NETWORKS = {"torch", "onnx", "onnxruntime", "openvino", "pycocotools", "hotcoco", "rich"}
EXPORTS = {"torch._dynamo", "torch.onnx", "sympy", "onnxscript", "onnxruntime.quantization", "openvino", "tensorrt"}

NOT_LOADED = {
    "code": RECORDS | NETWORKS | {"numpy", "cv2", "scipy", "requests"},
    "register": RECORDS | NETWORKS | {"numpy", "cv2", "scipy", "requests"},
    "ingest": RECORDS | NETWORKS,
    "quantize": RECORDS | NETWORKS,
    "validate": RECORDS | NETWORKS,
    "evaluate": RECORDS | EXPORTS,
    "train": RECORDS | EXPORTS,
    "export": RECORDS | EXPORTS,
}
"""In the order of the imports."""

OPTIMISERS = "the optimisers"
"""And after these, a step of each optimiser: torch's own load all of torch._dynamo."""

CODE = """
import importlib, json, sys
loaded = {}
for stage in sys.argv[1:]:
    importlib.import_module(f"stages.{stage}")
    importlib.import_module("stages.project.params").load()
    loaded[stage] = sorted(sys.modules)
import torch
from yolov7.config import Optimizer
from yolov7.train.optimizer import create_optimizer
for name in ("sgd", "adam", "adamw"):
    network = torch.nn.Conv2d(3, 4, 3)
    optimizer = create_optimizer(network, Optimizer(name=name), weight_decay=0.1)
    network(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
loaded["the optimisers"] = sorted(sys.modules)
print(json.dumps(loaded))
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    done = subprocess.run([sys.executable, "-c", CODE, *NOT_LOADED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {stage: set(names) for stage, names in json.loads(done.stdout).items()}


def test_every_stage_is_looked_at():
    assert NOT_LOADED.keys() == yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].keys()


@pytest.mark.parametrize("stage", NOT_LOADED)
def test_a_stage_begins_without_what_it_may_not_need(loaded, stage):
    assert not NOT_LOADED[stage] & loaded[stage]
    assert "pydantic" in loaded[stage], "the names are those of modules"


def test_no_optimiser_loads_the_compiler(loaded):
    assert "torch.optim.adamw" in loaded[OPTIMISERS]
    assert not EXPORTS & loaded[OPTIMISERS]
