"""Every command and example of the documents is accepted by the program it is for; the long ones are run elsewhere.

Here: the syntax of every block, the arguments of every command against the program's own parser, every snippet of
params.yaml and of the rules through its reader, and the Python examples. `tests/pipeline/test_manual.py` runs those
that need real servers, in the order of the document.
"""

from __future__ import annotations

import argparse
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from manual import (
    NOT_RUN,
    PROGRAMS,
    ROOT,
    RUN_BY_MANUAL,
    RUN_ELSEWHERE,
    SYSTEM,
    Block,
    blocks,
    commands,
    inline_commands,
)

from stages.project import params as params_module
from stages.project.params_data import Data
from stages.validation.suite import read_suite

PLACEHOLDERS = {
    "ID": "00000000-0000-0000-0000-000000000000",
    "0f3c...": "0" * 64,
    "N": "1",
    "NAME": "flow/name",
    "FLOW/NAME": "flow/name",
}
WITHOUT_ARGUMENTS = ("stages.deliver", "stages.ingest", "flows.demo")
SHOWN = (
    "README.md: variant  ",
    "README.md: ingest -> validate",
    "docs/first-hour.md: Running stage",
    "docs/first-hour.md: yolov6-n: version 1 promoted",
    "docs/first-hour.md: 200 images, 334 detections",
    "docs/training.md: Ran experiment(s)",
    "docs/library.md: yolov7-tiny: 400 training",
    "docs/library.md: resuming",
    "docs/library.md: error: ",
)
"""Output and sketches."""


def words_of(document: str) -> list[list[str]]:
    in_blocks = [words for block in shell() if block.document.name == document for words in commands(block.text)]
    in_text = [words for name, words in inline_commands() if name == document]
    return in_blocks + [[*words, "--help"] if is_mention(words) else words for words in in_text]


def is_mention(words: list[str]) -> bool:
    """A command named in running text without its arguments, as `dvc add`."""
    return len(words) <= 3 and not any(word.startswith("-") and word != "-m" for word in words)


def shell() -> list[Block]:
    """Blocks of commands; one without a language is one too if it begins with a program."""
    return [block for block in blocks("sh", "") if not block.name.startswith(SHOWN)]


ALL = [words for document in sorted({block.document.name for block in blocks()}) for words in words_of(document)]


def of(program: str) -> list[list[str]]:
    found = {tuple(words[1:]) for words in ALL if words[0].removeprefix(".venv/bin/") == program}
    return [[PLACEHOLDERS.get(word, word) for word in words if word != "..."] for words in sorted(found)]


def ids(words: list[str]) -> str:
    return " ".join(words)


@pytest.mark.parametrize("block", shell(), ids=lambda block: block.name)
def test_a_block_is_shell_with_programs_that_are_known(block):
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    programs = {words[0].removeprefix(".venv/bin/") for words in commands(block.text)}
    assert programs <= {*PROGRAMS, *SYSTEM}, "check the arguments of a new program here, or add it to SYSTEM"


class Parsed(Exception):  # noqa: N818 - ends a command after its arguments
    """The arguments were accepted."""


def ended_by(arguments: list[str]) -> type[BaseException]:
    return SystemExit if "--help" in arguments else Parsed


@pytest.fixture
def only_parse(monkeypatch):
    original = argparse.ArgumentParser.parse_args

    def parse(self, *arguments, **more):
        original(self, *arguments, **more)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


@pytest.mark.parametrize("words", [words for words in of("python") if words[0] == "-m"], ids=ids)
def test_modules_take_the_arguments(words, only_parse, monkeypatch, capsys):
    module, arguments = words[1], words[2:]
    if module.startswith("stages.NAME"):
        return
    path = ROOT.joinpath(*module.split("."))
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    if module in WITHOUT_ARGUMENTS:
        assert arguments in ([], ["--help"])
        return
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(ended_by(arguments)):
        runpy.run_module(module, run_name="__main__")


@pytest.mark.parametrize("words", [words for words in of("python") if words[0] != "-m"], ids=ids)
def test_scripts_exist(words):
    assert any((ROOT / folder / words[0]).is_file() for folder in ("", "infra/compose")), words[0]


@pytest.mark.parametrize("words", of("yolov7"), ids=ids)
def test_yolov7_takes_the_arguments(words, only_parse):
    from yolov7.cli import main

    with pytest.raises(ended_by(words)):
        main(words)


@pytest.mark.parametrize("words", of("dvc"), ids=ids)
def test_dvc_takes_the_arguments(words):
    from dvc.cli.parser import get_main_parser

    parser = get_main_parser()
    if "--help" not in words:
        parser.parse_args(words)
        return
    with pytest.raises(SystemExit, match=r"^0$"):
        parser.parse_args(words)


@pytest.mark.parametrize("words", of("mlflow"), ids=ids)
def test_mlflow_takes_the_arguments(words):
    from click.exceptions import Exit
    from mlflow.cli import cli

    command, left, context = cli, words, None
    while True:
        try:
            context = command.make_context(command.name, list(left), parent=context)
        except Exit as end:  # --help
            assert end.exit_code == 0
            return
        if not hasattr(command, "resolve_command"):
            return
        _, command, left = command.resolve_command(context, context._protected_args + context.args)


def one_or_all(words: list[str]) -> bool:
    """A rule of Prefect that its parser does not know: pause and resume take a name and an id, or --all alone."""
    if words[:2] != ["deployment", "schedule"] or words[2] not in ("pause", "resume"):
        return True
    return words[3:] == ["--all"] or (len(words) == 5 and "--all" not in words)


@pytest.mark.parametrize("words", of("prefect"), ids=ids)
def test_prefect_takes_the_arguments(words):
    from prefect.cli._app import _app, _normalize_command_names

    assert one_or_all(words)
    _app.parse_args(_normalize_command_names(tuple(words)), exit_on_error=False, print_error=False)


@pytest.mark.parametrize("words", of("make"), ids=ids)
def test_make_has_the_target(words):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert words[0] in targets


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.name)
def test_yaml_is_what_its_reader_takes(block, tmp_path, monkeypatch):
    text = block.text.replace("0f3c...", "0f3c" * 16)
    values = yaml.safe_load(text)
    if isinstance(values, list):  # rules of the validation
        (tmp_path / "rules.yaml").write_text(text)
        assert read_suite(tmp_path, {}, where="here")
    elif "pull" in values:
        from prefect.deployments import steps

        assert all(hasattr(steps, name.rpartition(".")[2]) for step in values["pull"] for name in step)
    else:
        monkeypatch.syspath_prepend(str(tmp_path))
        networks = [example.text for example in blocks("python") if "def slim" in example.text]
        (tmp_path / "my_networks.py").write_text(networks[0])
        if values.keys() <= Data.model_fields.keys():  # part of the group `data`
            values = {"data": {"source": next(iter(values)), **values}}
        variants = values.get("variants", ["yolov7-tiny"])
        groups = {"variants": variants, "per_variant": {name: {} for name in variants}, **values}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(groups))
        assert params_module.load(tmp_path / "params.yaml")


NEEDS_A_MODEL = {
    "README.md: import yolov7": "needs the registered model of `make demo`",
    'docs/variants.md: model = yolov7.create_model("yolov7-w6", num_classes=80)': "needs published weights",
}


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.name)
def test_python_examples_run(block):
    code = compile(block.text, block.name, "exec")
    names: dict[str, Any] = {"__name__": "example"}
    if block.name not in NEEDS_A_MODEL:
        exec(code, names)  # noqa: S102 - an example of ours
        for name in re.findall(r"^def (\w+)\(\)", block.text, re.MULTILINE):
            names[name]()
        return
    import yolov7
    from yolov7.model.detector import Detector

    methods = set(re.findall(r"\b(?:detector|model|yolov7)\.(\w+)\(", block.text))
    assert methods <= {*dir(yolov7), *dir(Detector), "predict"}


def test_every_block_is_of_a_kind_that_is_checked():
    kinds = {block.language for block in blocks()}
    assert kinds <= {"sh", "", "yaml", "python", "mermaid"}
    assert {block.name for block in blocks("python")} >= NEEDS_A_MODEL.keys()
    assert Path(ROOT / "Makefile").is_file()


@pytest.mark.parametrize("block", shell(), ids=lambda block: block.name)
def test_a_block_is_run_by_a_test_or_listed_with_the_reason(block):
    listed = [*RUN_BY_MANUAL, *RUN_ELSEWHERE, *NOT_RUN]
    assert len([name for name in listed if block.name.startswith(name)]) == 1, f"say in manual.py who runs {block.name}"


def test_the_lists_are_of_blocks_and_tests_that_exist():
    names = [block.name for block in shell()]
    for listed in (*RUN_BY_MANUAL, *RUN_ELSEWHERE, *NOT_RUN):
        assert any(name.startswith(listed) for name in names), listed
    for test in RUN_ELSEWHERE.values():
        assert not test.startswith("tests/") or (ROOT / test).is_file(), test
