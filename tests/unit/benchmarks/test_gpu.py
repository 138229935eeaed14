"""The GPU kit in its tiny mode on the CPU: every part measures, fails alone, and stays within its minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HIDDEN = """
import sys

class Hide:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {names!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
"""
PIPELINE = (
    "prefect dvc mlflow great_expectations boto3 botocore openvino rich hotcoco onnx onnxruntime onnxscript "
    "yaml pandas scipy sklearn optuna hypothesis psutil sqlalchemy starlette cryptography tensorrt"
)
"""Everything but PyTorch, NumPy, OpenCV, pydantic, safetensors, pycocotools, pytest, and what these need."""


def kit(folder: Path, *options: str, hidden: str = PIPELINE) -> subprocess.CompletedProcess[str]:
    """Run it from another folder, with these modules hidden."""
    site = folder.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(HIDDEN.format(names=set(hidden.split())))
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--device", "cpu", "-o", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [*command, *options], cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run of everything."""
    folder = tmp_path_factory.mktemp("kit") / "out"
    done = kit(folder, "--minutes", "4.5")
    return done, json.loads((folder / "results.json").read_text()), folder


def rows(results, part):
    return {row["item"]: row for row in results["parts"][part]["rows"]}


def test_every_part_measures_without_the_packages_of_the_pipeline(whole):
    done, results, _ = whole
    assert done.returncode == 0 and done.stderr == "" and "tensorrt: not installed: onnx, tensorrt\n" in done.stdout
    statuses = {name: part["status"] for name, part in results["parts"].items()}
    assert statuses == {
        "correctness": "ok",
        "inference": "ok",
        "training": "ok",
        "loader": "ok",
        "profile": "ok",
        "tensorrt": "skipped",
        "compiled": "ok",
    }
    for name, part in results["parts"].items():
        measured = [row for row in part["rows"] if row["status"] == "ok"]
        assert bool(measured) == (part["status"] == "ok"), name
        assert all(row["figures"] and row["seconds"] > 0 for row in measured)


def test_the_documented_shape_of_the_results(whole):
    _, results, folder = whole
    assert {"version", "minutes", "tiny", "seconds", "device", "missing", "parts"} == results.keys()
    assert results["version"] == 1 and results["minutes"] == 4.5 and results["tiny"] is True
    assert {"device", "name", "torch", "python", "cores", "peak_tflops", "measured_tflops"} == results["device"].keys()
    assert results["device"]["measured_tflops"] > 0
    assert results["missing"] == {"tensorrt": ["onnx", "tensorrt"]}
    for part in results["parts"].values():
        assert {"status", "why", "seconds", "rows"} == part.keys()
        for row in part["rows"]:
            assert {"item", "status", "why", "seconds", "figures"} == row.keys()
            assert row["status"] in ("ok", "failed", "skipped", "stopped")
            assert bool(row["why"]) == (row["status"] != "ok")
    assert not list(folder.glob(".*"))


def test_figures_of_inference(whole):
    found = rows(whole[1], "inference")
    assert {"preparation", "transfer and scaling", "suppression", "yolov6-n, batch 1"} <= found.keys()
    figures = found["yolov6-n, batch 1"]["figures"]
    assert figures["eager_ms"] > 0 and figures["published_images_s"] == 802
    assert figures["eager_images_s"] == pytest.approx(1e3 / figures["eager_ms"], rel=0.01)
    assert figures["graph_ms"] is None and figures["graph_note"] == "cpu has no CUDA graphs"
    assert rows(whole[1], "compiled")["yolov6-n, batch 1"]["figures"]["compiled_ms"] > 0


def test_figures_of_training(whole):
    found = rows(whole[1], "training")
    plain, ours = found["yolov6-n, plain"]["figures"], found["yolov6-n, + compile"]["figures"]
    assert plain["options"] == [] and len(ours["options"]) == 5
    # The same batch, weights and loss whatever is switched on.
    assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-3)
    assert found["yolov7-tiny, plain"]["figures"]["images_s"] > 0
    loader = rows(whole[1], "loader")
    assert loader["one core"]["figures"]["images_s"] > 0 and loader["loader alone"]["figures"]["workers"] == 1
    assert 0 <= loader["yolov6-n"]["figures"]["waited"] <= 1
    assert loader["yolov6-n, images cached, colours on the device"]["figures"]["images_s"] > 0


def test_tables(whole):
    _, _, folder = whole
    text = (folder / "results.md").read_text()
    for title in ("Correctness: tests/gpu", "Inference", "Training", "Training with the loader", "TensorRT"):
        assert f"\n### {title}\n" in text
    assert "| yolov6-n, plain | " in text and "Published: one T4, fp16, batch 1, without suppression." in text
    assert "* skipped: not installed: onnx, tensorrt" in text
    widths = {block.count("\n| ---") for block in text.split("\n\n") if block.startswith("|")}
    assert widths == {1}  # each table has one line below its heading


def test_the_profile_is_saved(whole):
    _, results, folder = whole
    figures = rows(results, "profile")["yolov6-n"]["figures"]
    assert figures["operators"] > 100 and figures["top"][0]["ms"] > 0
    assert sum(one["share"] for one in figures["top"]) <= 1.001
    assert (folder / figures["trace"]).stat().st_size > 1000
    assert "aten::" in (folder / "profile.txt").read_text()


def test_faults_are_recorded_and_the_rest_goes_on(tmp_path):
    options = ("--minutes", "4", "--parts", "correctness", "inference", "profile", "--fail", "inference")
    done = kit(tmp_path / "out", *options, hidden=f"{PIPELINE} pytest")
    assert done.returncode == 1 and "correctness: not installed: pytest\n" in done.stdout
    parts = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "correctness": "skipped",
        "inference": "failed",
        "profile": "ok",
    }
    assert parts["correctness"]["why"] == "not installed: pytest"
    why = "RuntimeError: inference was asked to fail (benchmarks/gpu_kit/parts.py:"
    assert parts["inference"]["why"].startswith(why)
    text = (tmp_path / "out" / "results.md").read_text()
    assert f"* all: failed: {why}" in text and "* skipped: not installed: pytest" in text


def test_the_time_limit_holds(tmp_path):
    """There is not even time to ask the device: the report is there, and says so."""
    done = kit(tmp_path / "out", "--minutes", "0.04", "--parts", "inference", "training")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["seconds"] < 15  # on a busy machine a stopped process needs a moment to end
    assert {part["status"] for part in results["parts"].values()} == {"skipped"}
    text = (tmp_path / "out" / "results.md").read_text()
    assert "it did not answer in time" in text and text.count("* skipped: no time is left") == 2
