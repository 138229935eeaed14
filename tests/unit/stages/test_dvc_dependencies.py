"""What dvc.yaml names as dependencies: of code, what the stage imports, no more and no less, in `code/STAGE.sha256`."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from stages import code as code_stage
from stages.project import command, stage_code
from stages.project.params import Params
from stages.project.stage_code import (
    IGNORED,
    IGNORED_BY,
    PARAMETERS,
    STAGES,
    Code,
    covered,
    list_of,
    renew,
    write_lists,
)
from stages.project.workspace import INGESTED

ROOT = Path(__file__).resolve().parents[3]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
CODE = Code(ROOT)


def test_every_stage_depends_on_its_list_and_on_no_other_code():
    assert list(PIPELINE) == ["code", *STAGES]
    for stage in STAGES:
        stated = [dep for dep in PIPELINE[stage]["deps"] if dep.startswith(("code/", "stages", "yolov7"))]
        assert stated == [list_of(stage).as_posix()]


def test_the_lists_are_made_of_all_code_and_kept_while_the_stage_runs():
    assert PIPELINE["code"]["deps"] == ["stages", "yolov7"]
    assert PIPELINE["code"]["outs"] == [{list_of(stage).as_posix(): {"persist": True}} for stage in STAGES]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_that_its_files_import(stage):
    files = set(CODE.files(stage))
    assert f"stages/{stage}.py" in files
    for file in [one for one in files if one.endswith(".py")]:
        for target in CODE.imported_by(file):
            hands_on = target.endswith("/__init__.py")
            assert target in files or hands_on or covered(target, stage_code.ignored(stage)), f"{file}: {target}"


def test_each_stage_depends_on_its_own_part():
    files = {stage: set(CODE.files(stage)) for stage in STAGES}
    expected = {
        "yolov7/train/loop.py": {"train", "quantize"},
        "yolov7/train/quantization.py": {"quantize"},
        "yolov7/config/train.py": {"train", "quantize"},
        "yolov7/model/detector.py": {"train", "quantize", "export", "evaluate"},
        "yolov7/model/blocks/__init__.py": {"train", "quantize", "export", "evaluate"},  # defines KINDS
        "yolov7/nms.py": {"train", "quantize", "export", "evaluate"},
        "yolov7/report/templates/evaluation.html.jinja": {"evaluate"},
        "yolov7/report/charts.py": {"evaluate"},
        "yolov7/data/sandbox.py": {"ingest", "validate"},
        "yolov7/signature.py": {"register"},
        "stages/validation/templates/report.html.jinja": {"validate"},
        "yolov7/text.py": set(STAGES),
        "yolov7/model/published/load.py": set(),
        "yolov7/cli/__init__.py": set(),
        "stages/code.py": set(),
    }
    assert {file: {stage for stage in STAGES if file in files[stage]} for file in expected} == expected
    assert all((ROOT / file).is_file() for file in expected)


def test_charts_pages_and_importers_make_no_training_stale():
    used = CODE.files("train")
    assert not [file for file in used if file.startswith(("yolov7/report/", "yolov7/model/published/", "stages/val"))]


def test_ignored_files_exist_and_are_imported():
    followed = {
        stage: {target for file in CODE.files(stage) if file.endswith(".py") for target in CODE.imported_by(file)}
        for stage in STAGES
    }
    for stage, files in IGNORED_BY.items():
        for file in files:
            assert any(covered(target, {file}) for target in followed[stage]), f"{stage} does not import {file}"
    for file in (*IGNORED, PARAMETERS):
        assert any(covered(target, {file}) for target in set().union(*followed.values())), f"no stage imports {file}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project with a module that only `train` and `quantize` import, and one that nobody does."""
    monkeypatch.chdir(tmp_path)
    files = {f"stages/{stage}.py": "from yolov7 import text\n" for stage in STAGES}
    files["stages/train.py"] = files["stages/quantize.py"] = "from yolov7.train import run_epoch\n"
    files |= {
        "yolov7/__init__.py": "",
        "yolov7/text.py": "from yolov7.errors import YoloError\n",
        "yolov7/errors.py": "",
        "yolov7/train/__init__.py": "from yolov7.train.loop import run_epoch\nfrom yolov7.train.other import unused\n",
        "yolov7/train/loop.py": "def run_epoch():\n    from yolov7 import text\n",
        "yolov7/train/other.py": "unused = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def stale_after(name: str, text: str) -> set[str]:
    """Stages whose list differs after a change of one file, which is undone."""
    write_lists()
    path = Path(name)
    before, lists = path.read_text(), {stage: list_of(stage).read_bytes() for stage in STAGES}
    path.write_text(text)
    changed = write_lists()
    stale = {stage for stage in STAGES if list_of(stage).read_bytes() != lists[stage]}
    assert stale == {stage for stage in STAGES if changed[stage]}
    path.write_text(before)
    write_lists()
    assert {stage: list_of(stage).read_bytes() for stage in STAGES} == lists
    return stale


def test_a_changed_file_changes_the_lists_of_the_stages_that_run_it(project: Path) -> None:
    training = {"train", "quantize"}
    assert stale_after("yolov7/train/loop.py", "def run_epoch():\n    from yolov7 import text  # why\n") == training
    assert stale_after("yolov7/text.py", "") == set(STAGES)
    assert stale_after("stages/export.py", "from yolov7 import text, errors\n") == {"export"}
    assert stale_after("yolov7/train/other.py", "unused = 2\n") == set(), "nobody imports it"
    assert stale_after("yolov7/errors.py", "x = 1\n") == set(), "ignored"
    handed_on = "from yolov7.train.other import unused as run_epoch\n"
    assert stale_after("yolov7/train/__init__.py", handed_on) == training, "another module is run"
    assert stale_after("yolov7/train/loop.py", "def run_epoch(:\n") == training, "a mistake stops no other stage"


def test_relative_imports_are_followed_too(project: Path) -> None:
    """No linter refuses them."""
    Path("yolov7/train/__init__.py").write_text("from . import missing\nfrom .loop import run_epoch\n")
    Path("yolov7/train/loop.py").write_text("from .. import text\nfrom . import other\ndef run_epoch(): pass\n")
    Path("stages/export.py").write_text("from yolov7.train import missing\n")
    names = ["stages/train.py", "yolov7/text.py", "yolov7/train/loop.py", "yolov7/train/other.py"]
    assert Code().files("train") == names
    assert stale_after("yolov7/train/other.py", "unused = 2\n") == {"train", "quantize", "export"}


def test_a_list_can_be_checked_by_hand_and_is_the_same_in_any_folder(project: Path) -> None:
    write_lists()
    text = list_of("train").read_text()
    names = ["stages/train.py", "yolov7/text.py", "yolov7/train/loop.py"]
    assert text == "".join(f"{hashlib.sha256(Path(name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    shutil.copytree(project, project / "elsewhere/copy")
    assert Code(project / "elsewhere/copy").listing("train") == text
    if (tool := shutil.which("sha256sum")) is not None:
        Path("yolov7/text.py").write_text("x = 1\n")
        done = subprocess.run(
            [tool, "--quiet", "--check", str(list_of("train"))], capture_output=True, text=True, env={"LC_ALL": "C"}
        )
        assert done.returncode == 1 and done.stdout == "yolov7/text.py: FAILED\n"


def test_the_stage_says_what_has_changed_and_leaves_the_other_lists_alone(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    code_stage.main(Params(), None)
    assert "train: changed: stages/train.py, yolov7/text.py, yolov7/train/loop.py" in caplog.messages
    written = list_of("ingest").stat().st_mtime_ns
    caplog.clear()
    code_stage.main(Params(), None)
    assert caplog.messages == ["no stage runs other code than before"]
    caplog.clear()
    Path("yolov7/train/loop.py").write_text("run_epoch = len\n")
    code_stage.main(Params(), None)
    changed = "changed: yolov7/text.py, yolov7/train/loop.py"
    assert caplog.messages == [f"train: {changed}", f"quantize: {changed}"], "the text is no longer imported"
    assert list_of("ingest").stat().st_mtime_ns == written
    list_of("ingest").write_text("not a list\n")
    assert write_lists()["ingest"] == Code().files("ingest")
    assert list_of("ingest").read_text() == Code().listing("ingest"), "a spoilt list is replaced"
    assert stage_code.named([str(number) for number in range(7)]) == "0, 1, 2, 3, 4 and 2 more"


def test_a_stage_that_dvc_starts_is_recorded_with_the_code_that_it_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("params.yaml").write_text("per_variant: {yolov7-tiny: {}}\n")
    write_lists()
    lists = {stage: list_of(stage).read_bytes() for stage in STAGES}
    assert renew("train") == []
    Path("yolov7/text.py").write_text("x = 1\n")
    recorded = []

    def main(params: object, args: object) -> None:
        recorded.append(list_of("train").read_text())

    assert command._run(main, False, (), []) == 0, "by hand: the lists are DVC's affair"
    assert list_of("train").read_bytes() == lists["train"]
    monkeypatch.setenv("DVC_STAGE", "dvc.yaml:train@yolov7-tiny")
    assert command._run(main, False, (), []) == 0
    assert recorded == [lists["train"].decode(), Code().listing("train")] and recorded[0] != recorded[1]
    assert "the code has changed since `dvc repro code`: yolov7/text.py" in capsys.readouterr().err
    assert list_of("export").read_bytes() == lists["export"], "that stage has not run"
    list_of("train").unlink()
    assert renew("train") == [], "without a list there is nothing to keep true"


def test_stages_that_read_images_name_their_whole_folder():
    """Of a folder that a stage names by one of its files, `dvc repro --pull --allow-missing` brings that file alone."""
    for stage in ("train", "quantize", "export", "evaluate"):
        deps = [dep for dep in PIPELINE[stage]["deps"] if dep.startswith("data/ingested")]
        assert deps == [INGESTED.as_posix()]
