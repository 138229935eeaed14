"""`dvc repro` on a copy of the project with little data: the whole chain, what is stale, what stops it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
VARIANT = "yolov7-tiny"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(folder: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    if check:
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


def edit(folder: Path, change) -> None:
    path = folder / "params.yaml"
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def shrink(values: dict) -> None:
    values["data"]["digits"] |= {"image_size": 96, "train_images": 24, "val_images": 8, "test_images": 8}
    values["train"] |= {"epochs": 2, "batch_size": 8, "image_size": 96, "evaluate_every": 1}
    values["export"]["verify_images"] = 4
    values["evaluate"]["pictures"] = 2


@pytest.fixture(scope="module")
def project(tmp_path_factory, new_database) -> Path:
    """A git clone as a newcomer has it, with less data and an empty MLflow database, after one `dvc repro`."""
    folder = tmp_path_factory.mktemp("dvc") / "project"
    names = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file() and not name.endswith("dvc.lock"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start")
    edit(folder, shrink)
    shutil.copyfile(new_database, folder / "mlflow.db")
    run(folder, "dvc", "repro")
    return folder


# Asks DVC's own command about one params.yaml after the other: a process for each would import DVC again.
ASK = """
import shutil, sys
from dvc.cli import main
for path in sys.argv[1:]:
    shutil.copyfile(path, "params.yaml")
    print("asked about", path, flush=True)
    if main(["repro", "--dry"]) != 0:
        sys.exit(f"{path}: dvc failed")
"""


def stale(folder: Path, questions: list[Path]) -> list[set[str]]:
    """For each params.yaml, the stages that `dvc repro` would run before it knows whether their outputs change."""
    said = run(folder, sys.executable, "-c", ASK, *map(str, questions)).stdout
    parts = said.split("asked about ")[1:]
    assert [Path(part.splitlines()[0]) for part in parts] == questions
    lines = [[line for line in part.splitlines() if line.startswith("Running stage")] for part in parts]
    return [{line.split("'")[1].split("@")[0] for line in one} for one in lines]


def test_every_stage_leaves_what_it_declares(project):
    out = project / "models" / VARIANT
    assert json.loads((out / "train/metrics.json").read_text())["epochs"] == 2
    # Three batches of the first epoch and one of the last, with labels and with what learns them.
    assert len(list((out / "train/pictures").glob("epoch-*-batch-*-assignment.jpg"))) == 4
    assert len(list((out / "train/pictures").glob("epoch-*-batch-*-labels.jpg"))) == 4
    assert "| best epoch |" in (out / "train/summary.md").read_text()
    assert json.loads((out / "export/verify.json").read_text())["passed"] is True
    metrics = json.loads((project / "reports" / VARIANT / "metrics.json").read_text())
    assert {"AP", "AP_low", "AP_high", "AP50", "AR100"} <= set(metrics)
    assert (project / "reports" / VARIANT / "report.html").read_text().startswith("<!doctype html>")
    assert len(metrics["per_class"]) == 10
    assert len(list((project / "reports" / VARIANT / "detections").glob("*.jpg"))) == 2
    assert json.loads((out / "registered.json").read_text())["name"] == VARIANT
    assert (project / "reports/validation/index.html").stat().st_size > 10_000


def test_a_second_run_recomputes_nothing(project):
    done = run(project, "dvc", "repro")
    assert "Running stage" not in done.stdout
    assert "up to date" in done.stdout


# What people look at, in one process as above.
LOOK = """
import sys
from dvc.cli import main
for words in ("metrics show", "plots show -o plots", "dag --dot"):
    print("asked for", words, flush=True)
    if main(words.split()) != 0:
        sys.exit(f"{words}: dvc failed")
"""


def test_metrics_plots_and_graph_are_worth_reading(project):
    said = run(project, sys.executable, "-c", LOOK).stdout
    table, _, graph = said.split("asked for ")[1:]
    assert "AP50" in table
    assert f"reports/{VARIANT}/summary.json" in table
    page = (project / "plots/index.html").read_text()
    assert "Validation AP" in page
    assert "Losses and learning rate" in page and "classification loss" in page
    assert "recall" in page
    shutil.rmtree(project / "plots")
    for stage in ("ingest", "validate", "train", "quantize", "export", "evaluate", "register"):
        assert stage in graph


CHANGES = {
    "promotion": (lambda v: v["promotion"].update(margin=0.5), set()),
    "flow": (lambda v: v["flow"].update(retries=7), set()),
    "registry": (lambda v: v["registry"].update(experiment="other"), {"register"}),
    "evaluate": (lambda v: v["evaluate"].update(pictures=1), {"evaluate"}),
    "export": (lambda v: v["export"].update(confidence=0.3), {"export"}),
    "train": (lambda v: v["train"].update(seed=5), {"train", "quantize"}),
    "per_variant": (lambda v: v["per_variant"][VARIANT].update(seed=5), {"train", "quantize"}),
    "weights": (lambda v: v["train"].update(weights_sha256="0" * 64), {"train", "quantize"}),
    "quantization": (lambda v: v["quantization"].update(epochs=5), {"quantize"}),
    "validation": (lambda v: v["validation"].update(max_findings=7), {"validate"}),
    "data": (lambda v: v["data"]["digits"].update(seed=5), {"ingest"}),
}


@pytest.fixture(scope="module")
def stale_after(project, tmp_path_factory) -> dict[str, set[str]]:
    """Stale stages by change."""
    before, folder = (project / "params.yaml").read_text(), tmp_path_factory.mktemp("questions")
    questions = []
    for name, (change, _) in CHANGES.items():
        values = yaml.safe_load(before)
        change(values)
        questions.append(folder / f"{name}.yaml")
        questions[-1].write_text(yaml.safe_dump(values, sort_keys=False))
    try:
        return dict(zip(CHANGES, stale(project, questions), strict=True))
    finally:
        (project / "params.yaml").write_text(before)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_key_makes_stale_just_what_reads_it(stale_after, name):
    assert stale_after[name] == CHANGES[name][1]


def test_a_changed_evaluation_runs_two_stages_and_registers_no_second_version(project):
    before = (project / "params.yaml").read_text()
    version = json.loads((project / "models" / VARIANT / "registered.json").read_text())["version"]
    try:
        edit(project, lambda v: v["evaluate"].update(pictures=1))
        done = run(project, "dvc", "repro")
        ran = [line for line in done.stdout.splitlines() if line.startswith("Running stage")]
        assert len(ran) <= 2, ran
        assert len(list((project / "reports" / VARIANT / "detections").glob("*.jpg"))) == 1
        assert json.loads((project / "models" / VARIANT / "registered.json").read_text())["version"] == version
    finally:
        (project / "params.yaml").write_text(before)


def test_a_mistyped_key_stops_before_any_work_and_keeps_the_outputs(project):
    before = (project / "params.yaml").read_text()
    weights = (project / "models" / VARIANT / "train/best.safetensors").read_bytes()
    try:
        edit(project, lambda v: v["train"].update(epocs=3))
        done = run(project, sys.executable, "-m", "stages.train", "--variant", VARIANT, check=False)
        assert done.returncode == 2
        assert "train.epocs: unknown key (did you mean 'epochs'?)" in done.stderr
        assert "Traceback" not in done.stderr
        assert (project / "models" / VARIANT / "train/best.safetensors").read_bytes() == weights
    finally:
        (project / "params.yaml").write_text(before)
