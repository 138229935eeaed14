"""The data of docs/first-hour.md, with its parameters: counts and findings are those that the document shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RACCOON = ROOT.parent / "shared" / "data" / "raccoon"
DOCUMENT = (ROOT / "docs/first-hour.md").read_text()
# One process for both: their imports take seconds.
STAGES = """
import runpy, sys
for name in ("ingest", "validate"):
    sys.argv[1:] = []
    try:
        runpy.run_module(f"stages.{name}", run_name="__main__")
    except SystemExit as end:
        print(name, end.code, flush=True)
"""


@pytest.mark.skipif(not RACCOON.is_dir(), reason="the raccoon data (../shared) are not here")
def test_the_data_are_as_the_document_shows_them(tmp_path: Path) -> None:
    folder = tmp_path / "datasets/raccoon"
    (folder / "data").mkdir(parents=True)
    for name in ("images", "annotations"):
        (folder / name).symlink_to(RACCOON / name)
    for name in ("train_labels.csv", "test_labels.csv"):
        (folder / "data" / name).write_bytes((RACCOON / name).read_bytes())
    values = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)[0])
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
    values = {**shipped, **values, "data": {**values["data"], "split": shipped["data"]["split"]}}
    values["validation"] = {**shipped["validation"], "suite": str(ROOT / "validation")}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-c", STAGES], capture_output=True, text=True, timeout=250, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ingest", "0", "validate", "0"], done.stderr
    output = done.stderr
    shown = re.findall(r"```\nRunning stage 'code'.*?\n(Running stage 'ingest'.*?)```", DOCUMENT, re.DOTALL)[0]
    lines = [
        line.removesuffix(" ...") for line in shown.splitlines() if line and not line.startswith(("Run", ">", "."))
    ]
    assert len(lines) == 8
    lines = [re.sub("^240 images: .*", "240 images: ", line) for line in lines]  # how many are decoded is the cache's
    assert [line for line in lines if line not in output] == []
