"""A tiny DVC project with the pipeline's stages, each a one-line script: for tests of what runs stages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from stages.project.command import environment

VARIANTS = ("yolov7-tiny", "yolov7")

# argv: the output to write, then the inputs. A file `break` or `sleep` beside it makes one stage fail or hang.
SCRIPT = """
import json, os, pathlib, subprocess, sys, time
name, out, *inputs = sys.argv[1:]
print("working on", name, flush=True)
trouble = pathlib.Path("trouble") / name
if trouble.is_file():
    text = trouble.read_text().split()
    if text[0] == "once":
        trouble.unlink()
    if text[0] == "sleep":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path("started").write_text(str(os.getpid()))
        time.sleep(600)
    print("error: the disk of", name, "is on fire", file=sys.stderr)
    sys.exit(int(text[1]))
path = pathlib.Path(out)
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps({"made by": name, "from": [pathlib.Path(i).read_text() for i in inputs]}))
"""


def make_project(folder: Path) -> Path:
    """Write params.yaml, dvc.yaml and the script, and make the folder a git and DVC repository."""
    folder.mkdir(parents=True, exist_ok=True)
    configure(folder)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": _stages()}, sort_keys=False))
    (folder / "stage.py").write_text(SCRIPT)
    (folder / "source.txt").write_text("1")
    (folder / "trouble").mkdir()
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=folder, check=True, env=environment(), timeout=60)
    return folder


def configure(folder: Path, variants: tuple[str, ...] = VARIANTS, **flow: object) -> None:
    """Write params.yaml; `flow` are keys of its group of that name."""
    settings = {"retries": 0, "retry_seconds": 0, "push": False, **flow}
    values = {"variants": list(variants), "per_variant": {name: {} for name in variants}, "flow": settings}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


def make_trouble(folder: Path, stage: str, text: str) -> None:
    """`always N`: the stage fails with exit code N; `once N`: only the next time; `sleep 0`: it hangs."""
    (folder / "trouble" / stage).write_text(text)


def _stages() -> dict[str, object]:
    def stage(name: str, out: str, *inputs: str) -> dict[str, object]:
        matrix = {"matrix": {"variant": "${variants}"}} if "item" in out else {}
        label = f"{name}@${{item.variant}}" if matrix else name
        command = f"python stage.py {label} {out} {' '.join(inputs)}"
        return {**matrix, "cmd": command, "deps": list(inputs), "outs": [out]}

    at = "models/${item.variant}"
    return {
        "ingest": stage("ingest", "data/ingested.json", "source.txt"),
        "validate": stage("validate", "data/index.json", "data/ingested.json"),
        "train": stage("train", f"{at}/train/run.json", "data/index.json"),
        "quantize": stage("quantize", f"{at}/quantized/run.json", f"{at}/train/run.json"),
        "export": stage("export", f"{at}/export/model.onnx", f"{at}/train/run.json", f"{at}/quantized/run.json"),
        "evaluate": stage("evaluate", "reports/${item.variant}/metrics.json", f"{at}/export/model.onnx"),
        "register": stage("register", f"{at}/registered.json", "reports/${item.variant}/metrics.json"),
    }


def with_code(folder: Path) -> None:
    """Add the stage `code`, which hands `code.txt` on to all other stages."""
    document = yaml.safe_load((folder / "dvc.yaml").read_text())
    for stage in document["stages"].values():
        stage["deps"].append("code/list.json")
    command = "python stage.py code code/list.json code.txt"
    code = {"cmd": command, "deps": ["code.txt"], "outs": [{"code/list.json": {"persist": True}}]}
    document["stages"] = {"code": code, **document["stages"]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (folder / "code.txt").write_text("1")


def with_real_registration(folder: Path, export: Path, image: bytes, *, ap: float) -> None:
    """Let the project hand on a real export folder, and register it by the real stage."""
    document = yaml.safe_load((folder / "dvc.yaml").read_text())
    stages, at = document["stages"], "models/${item.variant}"
    stages["export"] |= {"cmd": f"mkdir -p {at}/export && cp {export}/* {at}/export", "outs": [f"{at}/export"]}
    stages["export"]["cmd"] += f""" && echo '{{"passed": true}}' > {at}/export/verify.json"""
    stages["evaluate"] |= {"cmd": "python measure.py ${item.variant}", "deps": [f"{at}/export", "measure.py"]}
    stages["register"] |= {"cmd": "python -m stages.register --variant ${item.variant}"}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    figures = {"AP": ap, "AP50": 0.9, "test_data_sha256": "0" * 64}
    (folder / "measure.py").write_text(
        "import json, pathlib, sys\n"
        "out = pathlib.Path('reports', sys.argv[1], 'metrics.json'); out.parent.mkdir(parents=True, exist_ok=True)\n"
        f"out.write_text(json.dumps({figures!r}))\n"
        "out.with_name('report.html').write_text('<!doctype html><title>report</title>')\n"
    )
    (folder / "reports/validation").mkdir(parents=True)
    (folder / "reports/validation/results.json").write_text('{"success": true}')
    images = folder / "data/ingested/test/images"
    images.mkdir(parents=True)
    (images / "first.png").write_bytes(image)
    (folder / "data/ingested/dataset.json").write_text('{"sha256": "1"}')
