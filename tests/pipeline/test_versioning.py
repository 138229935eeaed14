"""DVC on the project's own data stages: one changed image or label is seen, only that is checked again, and a push to a
real S3-compatible server brings the same bytes back in another clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from stages.project.command import environment
from tests.pipeline.servers import s3_credentials, s3_server

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "val", "test")

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(600)]


def run(folder: Path, *command: str) -> str:
    """A command in a project; what it said."""
    variables = environment({**os.environ, "PYTHONPATH": str(ROOT), **s3_credentials(0)})
    del variables["AWS_ENDPOINT_URL"]  # the project's own configuration names it
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables["PATH"]])
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of an S3-compatible server on loopback that knows one key and has a bucket `data`."""
    with s3_server(tmp_path_factory.mktemp("s3"), "data") as port:
        yield port


def make_project(folder: Path, port: int) -> Path:
    """The project's ingest and validate stages on a small COCO data set, without the code as a dependency."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["validation"] |= {"sample_pictures": 0, "severity": {"class-has-enough-training-boxes": "off"}}
    parts = {split: {"images": split, "annotations": f"{split}.json"} for split in SPLITS}
    values["data"] |= {"source": "coco", "coco": parts}
    folder.mkdir()
    for name in ("ingest", "validate"):
        stages[name]["deps"] = [path for path in stages[name]["deps"] if not path.startswith("code/")]
    data_stages = {name: stages[name] for name in ("ingest", "validate")}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": data_stages}))
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    (folder / ".gitignore").write_text("/datasets/\n/.state/\n")
    shutil.copytree(ROOT / "validation", folder / "validation", ignore=shutil.ignore_patterns("reference.json"))
    for number, split in enumerate(SPLITS):
        write_split(folder / "datasets", split, number)
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    remote = f"[core]\n    remote = s3\n['remote \"s3\"']\n    url = s3://data/project\n    endpointurl = http://127.0.0.1:{port}\n"
    (folder / ".dvc/config").write_text(remote)
    return folder


def write_split(folder: Path, split: str, number: int) -> None:
    (folder / split).mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(3)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [2, 3, 20, 15]} for i in range(3)]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (folder / f"{split}.json").write_text(json.dumps(document))
    for i in range(3):
        write_image(folder / split / f"{i}.png", seed=3 * number + i)


def write_image(path: Path, seed: int) -> None:
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (30, 40, 3)).astype(np.uint8))


def stale(folder: Path) -> set[str]:
    return set(json.loads(run(folder, "dvc", "status", "--json").splitlines()[0]))


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in ("data", "reports")
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }


def test_only_a_changed_file_is_checked_again_and_a_push_brings_it_to_another_clone(tmp_path, s3):
    project = make_project(tmp_path / "project", s3)
    assert "9 images: 9 decoded" in run(project, "dvc", "repro")
    labels = project / "datasets/val.json"
    before = labels.read_text()
    labels.write_text(before.replace("[2, 3, 20, 15]", "[2, 3, 20, 16]", 1))
    assert "ingest" in stale(project)
    labels.write_text(before)
    assert stale(project) == set()
    write_image(project / "datasets/test/1.png", seed=77)
    said = run(project, "dvc", "repro")
    assert "Running stage 'ingest'" in said
    assert "Running stage 'validate'" in said and "9 images: 1 decoded" in said
    run(project, "git", "add", "-A")
    run(project, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "data")
    run(project, "dvc", "push", "-q")
    run(tmp_path, "git", "clone", "-q", str(project), "clone")
    assert not (tmp_path / "clone/data/ingested").exists()
    run(tmp_path / "clone", "dvc", "pull", "-q")
    assert content(tmp_path / "clone") == content(project)
    assert len(content(project)) > 40
