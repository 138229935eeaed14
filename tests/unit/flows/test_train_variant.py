"""Training by revision: what the worker runs in the worktree of an older revision."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flows.runner.pipeline import Pipeline
from flows.train_variant import deliver


@pytest.mark.parametrize("module", ["deliver", "tracking"])
def test_records_are_delivered_by_the_module_that_the_revision_has(module: str, tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / f"stages/{module}.py").write_text("open('delivered', 'w').close()\n")
    with Pipeline(tmp_path) as pipeline:
        deliver(pipeline, logging.getLogger("test"))
    assert (tmp_path / "delivered").is_file()
