"""Hostile names of variants in params.yaml, with DVC's own commands: none of them reaches the shell as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages.project.command import environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TRACE = "touched"
HOSTILE = [
    f"yolov7-tiny; touch {TRACE}; #",
    f"$(touch {TRACE})",
    f"`touch {TRACE}`",
    f"a\ntouch {TRACE}\n",
    f"a'\ntouch {TRACE}\n'",
    f"a\rtouch {TRACE}\r",
    f"a\u2028touch {TRACE}\u2028",
    f"' ; touch {TRACE} ; '",
    f'"; touch {TRACE}; "',
    f"a\\'; touch {TRACE} #",
    f"a && touch {TRACE}",
    f"a | touch {TRACE}",
    f"a > {TRACE}",
    f"${{IFS}}touch {TRACE}",
    f"\\${{data}};touch {TRACE}",
    "-h",
    "--help",
    "../../x",
]
MAPPINGS = [{f"x; touch {TRACE}; #": 1}, {"x": f"; touch {TRACE}; #"}, ["a", f"; touch {TRACE}"]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The commands and the first outputs of the project's own stages, and a `python` that writes its arguments."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    kept = {
        name: {key: stage[key] for key in ("matrix", "cmd")} | {"outs": stage["outs"][:1]}
        for name, stage in stages.items()
        if name in ("train", "register")
    }
    folder = tmp_path / "project"
    (folder / "bin").mkdir(parents=True)
    shim = folder / "bin/python"
    shim.write_text('#!/bin/sh\nfor each; do printf "%s|" "$each"; done >> seen\necho >> seen\n')
    shim.chmod(0o755)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": kept}))
    (folder / ".gitignore").write_text("seen\nbin\n")
    write_variants(folder, ["yolov7-tiny"])
    run(folder, "git", "init", "-q")
    run(folder, sys.executable, "-m", "dvc", "init", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start")
    return folder


def run(folder: Path, *command: str) -> str:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {**environment(), "PATH": path, "SHELL": "/bin/sh"}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def write_variants(folder: Path, variants: list[object]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump({"variants": variants}, allow_unicode=False))


def traces(folder: Path) -> list[Path]:
    return list(folder.rglob(TRACE))


def test_dvc_repro_hands_a_hostile_variant_on_as_one_argument(project: Path) -> None:
    write_variants(project, [*HOSTILE])
    output = run(project, sys.executable, "-m", "dvc", "repro", "--keep-going")
    assert "Running stage 'train@-h'" in output and traces(project) == []
    seen = (project / "seen").read_text()
    assert f"-m|stages.train|--variant|yolov7-tiny; touch {TRACE}; #|" in seen
    assert f"-m|stages.register|--variant|$(touch {TRACE})|" in seen
    assert len(seen.splitlines()) > 20
    for variant in HOSTILE[:1]:
        run(project, sys.executable, "-m", "dvc", "repro", "--single-item", f"register@{variant}")
    assert traces(project) == []


def test_dvc_refuses_a_variant_that_is_a_mapping_or_a_list(project: Path) -> None:
    for variant in MAPPINGS:
        write_variants(project, [variant])
        output = run(project, sys.executable, "-m", "dvc", "repro", "--keep-going")
        assert traces(project) == []
        assert "Cannot interpolate data of type" in output and not (project / "seen").exists()


def test_an_experiment_with_hostile_variants_runs_no_command_of_theirs(project: Path) -> None:
    value = f"variants={json.dumps(HOSTILE[:3])}"
    output = run(project, sys.executable, "-m", "dvc", "exp", "run", "--set-param", value)
    assert "touch" in output and traces(project) == []
