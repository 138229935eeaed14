"""A registered version is built again from its revision and its data: equal, different, or impossible in words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from flows import reproduce as module
from flows.reproduce import largest_difference, main, origin_of
from flows.runner.worktree import WORKTREES
from stages.project.command import environment
from stages.registry.versions import CHAMPION, ModelRegistry, Version
from tests.pipeline.export_folder import describe, image_bytes
from tests.pipeline.project import configure, make_project, with_real_registration
from yolov7.errors import ModelError

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(900)]
VARIANT = "yolov7-tiny"

# What ingest makes is a matter of source.txt; AP is one of what was exported.
INGEST = """
import pathlib, shutil
out = pathlib.Path("data/ingested"); shutil.rmtree(out, ignore_errors=True)
(out / "test/images").mkdir(parents=True)
shutil.copy("first.png", out / "test/images")
(out / "dataset.json").write_text('{"sha256": "of-%s"}' % pathlib.Path("source.txt").read_text())
"""
MEASURE = """
import json, pathlib, sys
out = pathlib.Path("reports", sys.argv[1], "metrics.json"); out.parent.mkdir(parents=True, exist_ok=True)
ap = json.loads(pathlib.Path("models", sys.argv[1], "export/ap.json").read_text())
out.write_text(json.dumps({"AP": ap, "AP50": 0.9, "test_data_sha256": "0" * 64}))
out.with_name("report.html").write_text("<!doctype html><title>report</title>")
"""


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.fixture(scope="module")
def built(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A project whose champion `dvc repro` has made of a committed tree; `made` is what its export stage hands on."""
    base = tmp_path_factory.mktemp("reproduce")
    made = Path(shutil.copytree(export, base / "made"))
    (made / "ap.json").write_text("0.61")
    project = make_project(base / "project")
    configure(project, (VARIANT,))
    with_real_registration(project, made, image_bytes(), ap=0.0)
    shutil.rmtree(project / "data")
    for name, text in {"ingest.py": INGEST, "measure.py": MEASURE}.items():
        (project / name).write_text(text)
    (project / "first.png").write_bytes(image_bytes())
    document = yaml.safe_load((project / "dvc.yaml").read_text())
    ingest = {"cmd": "python ingest.py", "deps": ["source.txt"], "outs": ["data/ingested"]}
    document["stages"] |= {"ingest": ingest}
    document["stages"]["validate"] |= {"cmd": "python stage.py validate data/index.json", "deps": ["data/ingested"]}
    (project / "dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    git(project, "add", "-A")
    git(project, "commit", "-qm", "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{environment()['PATH']}")
        command = [sys.executable, "-m", "dvc", "repro", "--quiet"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        registry = ModelRegistry()
        registry.set_aliases(VARIANT, {CHAMPION: 1})
        yield SimpleNamespace(project=project, made=made, registry=registry)
    import mlflow

    mlflow.set_tracking_uri(None)


def versions(registry: ModelRegistry) -> list[dict[str, str]]:
    return [dict(one.tags) for one in registry.client.search_model_versions(f"name = '{VARIANT}'")]


def test_the_same_bytes_or_how_far_from_them(
    built: SimpleNamespace, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    project, before = built.project, versions(built.registry)
    lock = (project / "dvc.lock").read_text()
    runs = sorted(path.name for path in (project / ".dvc/cache/runs").rglob("*"))
    # The tree moves on meanwhile, and the data is gone from the cache: it is made again from its source.
    (project / "source.txt").write_text("2")
    git(project, "commit", "-qam", "other data")
    shutil.move(project / ".dvc/cache/files", project / ".dvc/cache/elsewhere")
    caplog.set_level("INFO")
    assert main([f"models:/{VARIANT}@champion"]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(rf"{VARIANT} version 1 of \w{{12}}: byte-equal .*, AP 0\.6100\. Rebuilt in .*\n", said), said
    assert "ingesting again from the source digits" in caplog.text
    assert "working on train@yolov7-tiny" in caplog.text, "it was trained, not restored"
    assert not list((project / WORKTREES).glob("reproduce-*/")), "the worktree is gone"
    shutil.rmtree(project / ".dvc/cache/files", ignore_errors=True)
    shutil.move(project / ".dvc/cache/elsewhere", project / ".dvc/cache/files")

    # Another machine rounds otherwise.
    weights = load_file(built.made / "model.safetensors")
    name = sorted(weights)[3]
    weights[name] = weights[name] + np.float32(0.25)
    save_file(weights, built.made / "model.safetensors")
    (built.made / "model.onnx").write_bytes((built.made / "model-nms.onnx").read_bytes())
    describe(built.made, "first")
    (built.made / "ap.json").write_text("0.6")
    assert main([f"models:/{VARIANT}/1", "--keep"]) == 1
    said = capsys.readouterr().out
    assert f"NOT byte-equal: parameters differ by up to 0.25 ({name}); AP 0.6000 against 0.6100 (-0.0100)" in said
    (kept,) = (project / WORKTREES).glob("reproduce-*/")
    assert (kept / "source.txt").read_text() == "1" and (kept / f"models/{VARIANT}/export/model.onnx").is_file()
    assert git(project, "status", "--porcelain", "--untracked-files=no") == ""
    assert versions(built.registry) == before and (project / "dvc.lock").read_text() == lock
    assert runs == sorted(path.name for path in (project / ".dvc/cache/runs").rglob("*")), "the run cache is as it was"


def test_data_that_is_nowhere_is_named(built: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    version = built.registry.resolve(f"models:/{VARIANT}/1")
    missing = "0" * 32 + ".dir"
    built.registry.set_tags(version, {"data_dvc": missing})
    try:
        assert main([version.uri]) == 2
    finally:
        built.registry.set_tags(version, {"data_dvc": version.tags["data_dvc"]})
    said = capsys.readouterr().err
    assert f"data/ingested ({missing}) is neither in DVC's cache nor in a remote (there is no remote)" in said
    assert "the source digits gives other data now" in said and said.count("\n") == said.count("error: ")


def test_a_revision_of_another_repository_is_named(built: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    version = built.registry.resolve(f"models:/{VARIANT}/1")
    built.registry.set_tags(version, {"git_revision": "f" * 40})
    try:
        assert main([version.uri]) == 2
    finally:
        built.registry.set_tags(version, {"git_revision": version.tags["git_revision"]})
    assert f"error: revision {'f' * 40} is not in this repository" in capsys.readouterr().err


TAGS = {
    "git_revision": "a" * 40,
    "data_dvc": "1.dir",
    "data_sha256": "2",
    "artefact_sha256": "3",
    "manifest_sha256": "4",
    "AP": "0.5",
}


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"artefact_sha256": ""}, "has no tag artefact_sha256; it was not registered by this project"),
        ({"git_revision": "unknown"}, "registered outside git"),
        ({"git_revision": "a" * 40 + "-dirty", "git_changes": "stages/train.py"}, r"not committed \(stages/train.py\)"),
        ({"data_dvc": "not tracked by DVC"}, "not tracked by DVC"),
    ],
)
def test_a_version_that_cannot_be_rebuilt_says_why(tags: dict[str, str], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        origin_of(Version("m", 3, tags={**TAGS, **tags}), VARIANT)
    assert origin_of(Version("m", 3, tags=TAGS), VARIANT).ap == 0.5


def test_parameters_are_compared_by_name_shape_and_value(tmp_path: Path) -> None:
    def weights(name: str, **values: list[float]) -> Path:
        save_file({key: np.array(value, np.float32) for key, value in values.items()}, tmp_path / name)
        return tmp_path / name

    first = weights("a", x=[1.0, 2.0], y=[0.0])
    assert largest_difference(first, weights("b", x=[1.0, 2.0], y=[0.0])) == ("", 0.0)
    assert largest_difference(first, weights("c", x=[1.0, 2.5], y=[0.125])) == ("x", 0.5)
    assert largest_difference(first, weights("d", x=[1.0, 2.0], z=[0.0])) == ("y", np.inf)
    assert largest_difference(first, weights("e", x=[1.0], y=[0.0])) == ("x", np.inf)
    assert largest_difference(first, weights("f", x=[1.0, np.nan], y=[0.0])) == ("x", np.inf)
    assert json.dumps(module.STAGES) == '["validate", "train", "quantize", "export", "evaluate"]'
