"""`import yolov7` is quick, light, and offers what it promises."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
import typing
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import yolov7

PIPELINE = ("mlflow", "prefect", "dvc", "great_expectations", "boto3")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_import_loads_neither_the_pipeline_nor_torch():
    loaded = json.loads(python("import sys, json, yolov7; print(json.dumps(sorted(sys.modules)))"))
    roots = {name.split(".")[0] for name in loaded}
    assert "yolov7" in roots
    assert not roots & {*PIPELINE, "torch", "cv2", "onnxruntime", "pycocotools"}


@pytest.mark.parametrize("options", [[], ["--json"], ["--variant", "yolov9-c"]], ids=" ".join)
def test_info_of_listed_networks_loads_no_torch(options):
    code = f"import sys; from yolov7.cli import main; main(['info', *{options!r}]); print('torch' in sys.modules)"
    lines = python(code).splitlines()
    assert lines[-1] == "False" and any("yolov9-c" in line for line in lines)


def test_the_whole_library_loads_without_the_pipeline():
    code = (
        "import sys, json\n"
        f"for name in {PIPELINE!r}: sys.modules[name] = None\n"  # an import of one of them fails
        "import importlib, pkgutil, yolov7\n"
        "names = [m.name for m in pkgutil.walk_packages(yolov7.__path__, 'yolov7.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(json.dumps(names))\n"
    )
    names = json.loads(python(code))
    assert {"yolov7.cli", "yolov7.export.verify", "yolov7.evaluate.run", "yolov7.predict.load"} <= set(names)


def test_modules_import_only_what_the_library_itself_depends_on():
    """`pip install yolov7-pipeline` without extras is enough; imports inside functions may need more, and say so."""
    root = Path(yolov7.__file__).parent
    project = tomllib.loads((root.parent / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w.-]+", line).group().lower() for line in project["dependencies"]}
    distributions, undeclared, seen = packages_distributions(), [], set()
    for file in root.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"yolov7"}:
                seen.add(name)
                if not declared & {item.lower() for item in distributions.get(name, ())}:
                    undeclared.append(f"{file.relative_to(root)}: {name}")
    assert undeclared == [] and {"torch", "cv2", "yaml", "google"} <= seen


def test_every_public_name_is_there_and_is_typed():
    for name in yolov7.__all__:
        assert getattr(yolov7, name).__module__.startswith("yolov7."), name
    assert sorted(yolov7.__all__) == yolov7.__all__ == sorted(yolov7._HOME)
    assert set(yolov7.__all__) <= set(dir(yolov7))
    source = python("import inspect, yolov7; print(inspect.getsource(yolov7))")
    for name in yolov7.__all__:  # what type checkers see
        assert f"import {name} as {name}\n" in source
    assert typing.get_type_hints(yolov7.list_variants)["return"] == list[str]


def test_names_are_the_same_objects_wherever_they_are_taken_from():
    from yolov7.model import create_model

    assert yolov7.create_model is create_model
    assert "yolov7-tiny" in yolov7.list_variants()
    assert yolov7.__version__.count(".") == 2


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'yolov7' has no attribute 'creat_model'"):
        _ = yolov7.creat_model
