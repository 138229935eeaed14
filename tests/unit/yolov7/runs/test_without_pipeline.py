"""The library trains, measures and exports where the pipeline's packages are not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from small_detector import SIDE, pictures

ROOT = Path(__file__).parents[4]
PIPELINE = (
    "stages", "flows", "dvc", "prefect", "mlflow", "great_expectations", "boto3", "botocore", "sqlalchemy",
    "starlette", "uvicorn", "httpx",
)  # fmt: skip
"""Of the pipeline alone; others, such as scipy, torch uses where they are installed."""
BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {PIPELINE!r}:
            raise ModuleNotFoundError(f"{{name}} is part of the pipeline", name=name)
sys.meta_path.insert(0, Block())
"""
"""Importing any package that only the pipeline needs fails."""


def yolo_set(folder: Path) -> Path:
    """Six pictures with a box each, as Roboflow writes them."""
    for split in ("train", "valid"):
        for number, image in enumerate(pictures(3, seed=len(split))):
            file = folder / split / "images" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), image)
            label = folder / split / "labels" / f"{number}.txt"
            label.parent.mkdir(exist_ok=True)
            label.write_text("0 0.5 0.5 0.4 0.4\n")
    names = "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['thing']\n"
    (folder / "data.yaml").write_text(names)
    return folder / "data.yaml"


def steps(data: Path, out: Path, variant: str) -> list[list[str]]:
    """Train, measure, export, predict."""
    image = data.parent / "valid/images/0.jpg"
    small = ["--preset", "small", "--epochs", "1", "--image-size", str(SIDE), "--batch-size", "2", "--device", "cpu"]
    run, exported = str(out / "run"), str(out / "exported")
    return [
        ["train", variant, "--data", str(data), "-o", run, *small, "--set", "anchors=keep"],
        ["evaluate", "--model", f"{run}/best.safetensors", "--data", str(data), "-o", str(out / "figures"), "--json"],
        ["export", run, "-o", exported, "--data", str(data), "--verify-images", "2"],
        ["predict", str(image), "--model", exported, "-o", str(out / "found"), "--confidence", "0.001"],
    ]


def check(out: Path) -> None:
    """The files that the four steps leave."""
    assert json.loads((out / "run/evaluation/val/metrics.json").read_text())["images"] == 3
    assert "<svg" in (out / "run/evaluation/val/report.html").read_text(), "the run's own report"
    assert json.loads((out / "figures/metrics.json").read_text())["images"] == 3
    assert "<svg" in (out / "figures/report.html").read_text()
    verified = json.loads((out / "exported/verify.json").read_text())
    assert verified["passed"] and len(verified["images"]) == 2
    assert len(json.loads((out / "found/detections.json").read_text())["images"]) == 1


@pytest.mark.slow
def test_the_commands_need_no_package_of_the_pipeline(tmp_path):
    data = yolo_set(tmp_path / "set")
    commands = steps(data, tmp_path / "out", "small_detector:small_network")
    code = f"""{BLOCK}
from yolov7.cli import main
for command in {commands!r}:
    assert main(command) == 0, command
assert not [name for name in sys.modules if name.partition(".")[0] in {PIPELINE!r}]
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    check(tmp_path / "out")


@pytest.mark.thorough
@pytest.mark.timeout(1500)
def test_the_wheel_with_its_own_dependencies_trains_exports_and_predicts(tmp_path):
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("uv is not installed: it makes the fresh environment")
    links = [text for folder in os.environ.get("PIP_FIND_LINKS", "").split() for text in ("--find-links", folder)]
    source = tmp_path / "source"
    kept = shutil.ignore_patterns(".git", ".venv", ".state", "build", "*.egg-info", "__pycache__")
    source.mkdir()
    for name in ("yolov7", "stages", "flows"):
        shutil.copytree(ROOT / name, source / name, ignore=kept)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)

    def run(*command: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False
        )

    built = run(uv, "build", "--wheel", *links, "-o", str(tmp_path / "dist"), str(source))
    if built.returncode and ("connect" in built.stderr or "fetch" in built.stderr):
        pytest.skip(f"no package registry can be reached: {built.stderr[-300:]}")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert run(uv, "venv", "--python", sys.executable, str(tmp_path / "fresh")).returncode == 0
    python = str(tmp_path / "fresh/bin/python")
    installed = run(uv, "pip", "install", "--python", python, *links, str(wheel))
    if installed.returncode and ("connect" in installed.stderr or "fetch" in installed.stderr):
        pytest.skip(f"no package registry can be reached: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr
    listed = run(uv, "pip", "list", "--python", python).stdout.lower()
    assert "torch" in listed and not [name for name in ("dvc", "prefect", "mlflow", "boto3") if name in listed]
    data = yolo_set(tmp_path / "set")
    for command in steps(data, tmp_path / "out", "yolov7-tiny"):
        done = run(str(tmp_path / "fresh/bin/yolov7"), *command)
        assert done.returncode == 0, done.stderr
    check(tmp_path / "out")
