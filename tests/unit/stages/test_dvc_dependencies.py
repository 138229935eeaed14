"""dvc.yaml names the code that each stage depends on: what the stage imports, no more and no less.

Followed are the imports that a stage uses, through all modules of `stages` and `yolov7`: a name that a package hands on
leads to the module that defines it, and not to the whole package. A folder stands for its files where all are imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
CODE = ("stages/", "yolov7/")

IGNORED = {
    "stages/project/command.py": "starts and ends the process: messages, exit codes",
    "stages/project/home.py": "the place of records and locks",
    "stages/project/locks.py": "keeps processes apart",
    "stages/project/params.py": "DVC compares the values, group by group",
    "stages/project/params_data.py": "DVC compares the values, group by group",
    "stages/project/provenance.py": "records where the result comes from",
    "stages/project/redaction.py": "wording of messages",
    "stages/project/workspace.py": "paths; whoever opens an index imports it from yolov7.data.index",
    "yolov7/__init__.py": "the names of the public API",
    "yolov7/catalogue.py": "published results of the networks, for tables",
    "yolov7/errors.py": "wording of messages",
    "yolov7/files.py": "writes whole files or none, whatever their content",
    "yolov7/predict/notebook.py": "what a notebook shows of a detector",
    "yolov7/model/published": "reads published checkpoints: their tensors are checked by name, shape and AP",
    "yolov7/weights": "fetches published checkpoints, whose digest params.yaml names",
}
"""Imported by most stages, and no reason to run one again. Their own imports are not followed."""

IGNORED_BY: dict[str, dict[str, str]] = {
    "validate": {"stages/preflight": "warns of what later stages will refuse"},
    "train": {
        "stages/preflight": "refuses, and changes no result",
        "stages/registry": "where a run is recorded, not what it computes",
        "stages/training/processes.py": "starts and ends processes",
        "stages/training/state_remote.py": "copies states elsewhere",
    },
    "quantize": {
        "stages/registry": "where a run is recorded, not what it computes",
        "stages/training/processes.py": "starts and ends processes",
        "stages/training/state_remote.py": "copies states elsewhere",
    },
    "export": {
        "stages/registry": "the id of the run",
        "yolov7/report": "a page on what the export has measured",
    },
    "register": {
        "yolov7/data/decode.py": "the code that serves a version is not part of it",
        "yolov7/predict": "the code that serves a version is not part of it",
    },
}
"""And for one stage each."""

PARAMETERS = "yolov7/config"
"""Defaults and presets of trainings, and the base class of all groups: a reason for the stages that train."""

NOT_IMPORTED: dict[str, dict[str, str]] = {}
"""Dependencies that are used without an import."""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, *, types: bool = False) -> Iterator[ast.Import | ast.ImportFrom]:
    """All import statements, also those in functions; with `types` those for type checking too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif types or not is_type_checking(child):
            yield from imports(child, types=types)


def module_file(name: str) -> str | None:
    """The file of a module of ours, relative to the root."""
    path = ROOT.joinpath(*name.split("."))
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found.relative_to(ROOT).as_posix() if found.is_file() else None


def home(module: str, name: str) -> str | None:
    """The file behind `from module import name`."""
    submodule, file = module_file(f"{module}.{name}"), module_file(module)
    if submodule is not None or file is None or not file.endswith("/__init__.py"):
        return submodule or file
    for node in imports(parse(ROOT / file), types=True):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return home(node.module, alias.name)
    return file


@cache
def imported_by(file: str) -> frozenset[str]:
    """The files of ours that a file imports."""
    found: set[str | None] = set()
    for node in imports(parse(ROOT / file)):
        if isinstance(node, ast.Import):
            found |= {module_file(alias.name) for alias in node.names}
        else:
            assert node.module is not None and node.level == 0, f"{file}: imports are absolute"
            found |= {home(node.module, alias.name) for alias in node.names}
    return frozenset(path for path in found if path is not None and path.startswith(CODE))


def covered(file: str, deps: set[str]) -> bool:
    return any(file == dep or file.startswith(f"{dep}/") for dep in deps)


def ignored(stage: str) -> set[str]:
    return {*IGNORED, *IGNORED_BY.get(stage, ()), *(() if stage in ("train", "quantize") else (PARAMETERS,))}


def has_code(file: str) -> bool:
    """True if a file is a module, or a package file that defines something."""
    if not file.endswith("/__init__.py"):
        return True
    defined = [node for node in parse(ROOT / file).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return any(node.name != "__getattr__" for node in defined)


@cache
def used_by(stage: str) -> frozenset[str]:
    """The files that a stage imports, directly or not, and the templates beside them.

    Package files that only hand names on are left out.
    """
    seen: set[str] = set()
    todo = [f"stages/{stage}.py"]
    while todo:
        file = todo.pop()
        if file not in seen and not covered(file, ignored(stage)):
            seen.add(file)
            todo += imported_by(file)
    folders = {Path(file).parent for file in seen}
    templates = {one.as_posix() for folder in folders if (one := folder / "templates") and (ROOT / one).is_dir()}
    return frozenset(file for file in seen if has_code(file)) | templates


def files_of(dep: str) -> set[str]:
    path = ROOT / dep
    found = [*path.rglob("*.py"), *path.rglob("templates")] if path.is_dir() and path.name != "templates" else [path]
    return {one.relative_to(ROOT).as_posix() for one in found if one.name != "__init__.py"}


def expected(stage: str) -> list[str]:
    """The shortest list: folders where all files are imported, else files."""
    left = set(used_by(stage)) | set(NOT_IMPORTED.get(stage, ()))
    found: set[str] = set()
    folders = {parent.as_posix() for file in left for parent in Path(file).parents if len(parent.parts) > 1}
    for folder in sorted(folders, key=lambda name: name.count("/")):
        if not covered(folder, found) and files_of(folder) <= left and len(files_of(folder)) > 1:
            found.add(folder)
    return sorted(found | {file for file in left if not covered(file, found)})


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_what_it_imports(stage):
    stated = {dep for dep in STAGES[stage]["deps"] if dep.startswith(CODE)}
    missing = sorted(file for file in used_by(stage) if not covered(file, stated))
    needless = sorted(
        file
        for dep in stated
        for file in files_of(dep)
        if file not in used_by(stage) and file not in NOT_IMPORTED.get(stage, ())
    )
    lines = "\n".join(f"      - {dep}" for dep in expected(stage))
    assert (missing, needless) == ([], []), f"dvc.yaml, stage {stage}: the code among the deps should read\n{lines}"


def test_charts_pages_and_importers_make_no_training_stale():
    used = used_by("train")
    assert not [file for file in used if file.startswith(("yolov7/report/", "yolov7/model/published/", "stages/val"))]
    assert {"yolov7/train/loop.py", "yolov7/config/train.py", "yolov7/model/detector.py", "yolov7/nms.py"} <= used


def test_ignored_files_exist_and_are_imported():
    for file in (dep for deps in NOT_IMPORTED.values() for dep in deps):
        assert (ROOT / file).exists(), file
    followed = {
        stage: {target for file in used_by(stage) if file.endswith(".py") for target in imported_by(file)}
        for stage in STAGES
    }
    for stage, files in IGNORED_BY.items():
        for file in files:
            assert any(covered(target, {file}) for target in followed[stage]), f"{stage} does not import {file}"
    for file in (*IGNORED, PARAMETERS):
        assert any(covered(target, {file}) for target in set().union(*followed.values())), f"no stage imports {file}"
