"""No value of params.yaml reaches the shell that DVC starts for a stage, unless DVC has quoted it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_command_holds_nothing_but_the_quoted_item(stage: str) -> None:
    """`${item}`, a mapping, becomes options whose values DVC quotes; any text in braces is copied as it is."""
    command = STAGES[stage]["cmd"]
    assert isinstance(command, str), "a list of commands: check each of them here"
    assert re.fullmatch(r"python -m stages\.\w+( \$\{item\})?", command)
    assert ("${item}" in command) == ("matrix" in STAGES[stage])


@pytest.mark.parametrize("stage", [name for name in STAGES if "matrix" in STAGES[name]])
def test_a_variant_that_is_no_text_is_refused_by_dvc(stage: str) -> None:
    """DVC does not quote the keys of a mapping; it refuses a mapping in the path of an output, before any command."""
    assert list(STAGES[stage]["matrix"]) == ["variant"]
    assert any("${item.variant}" in str(out) for out in STAGES[stage]["outs"])
