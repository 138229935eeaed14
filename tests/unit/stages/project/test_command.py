"""An error of a stage is one line, whatever the file that it names is called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.project.command import Interrupted, check_chosen, run_stage
from stages.project.params import Params
from stages.validate import _summary
from stages.validation.check import Finding
from yolov7.errors import ConfigError, DataError

NAME = "a\nb\x1b[31m\u202e.jpg"


@pytest.mark.parametrize(
    ("error", "begins"), [(DataError("is damaged", path=NAME), "error: a b\\x1b[31m"), (Interrupted(NAME), "stopped: ")]
)
def test_an_error_is_one_line(tmp_path, monkeypatch, capsys, error, begins):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("per_variant: {yolov7-tiny: {}}\n")

    def main(params: object, args: object) -> None:
        raise error

    with pytest.raises(SystemExit):
        run_stage(main, arguments=[])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(begins)
    assert line.isprintable()


def test_a_finding_is_one_line():
    finding = Finding("rule", "warning", "train", NAME, 1, None, "is black", "")
    outcome = SimpleNamespace(rule=SimpleNamespace(name="rule"), failures=1, records=2)
    assert _summary(outcome, [finding]).startswith("rule (1 of 2): train/a b\\x1b[31m\\u202e.jpg (image 1")


def test_a_variant_that_is_not_chosen_is_refused_by_name():
    params = Params.model_validate({"variants": ["yolov7-tiny"], "per_variant": {"yolov7-tiny": {}}})
    check_chosen(params, "yolov7-tiny")
    with pytest.raises(
        ConfigError, match=r"'yolov7-tinny' is not in params.yaml: variants \(did you mean 'yolov7-tiny'"
    ):
        check_chosen(params, "yolov7-tinny")
