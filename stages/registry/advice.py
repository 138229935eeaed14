"""The command that puts a missing model into MLflow, by the state of the project it is given in."""

from __future__ import annotations

import json
from pathlib import Path

from stages.project.home import project_root

RECORD = "registered.json"


def how_to_register(name: str) -> str:
    """How to get a version of the registered model `name`, as the end of a message."""
    root = project_root()
    if not (root / "dvc.yaml").is_file():
        return "set MLFLOW_TRACKING_URI to the server that has it, or run the command in the project that registered it"
    if (variant := _recorded_variant(root, name)) is not None:
        # DVC holds the stage for done: its output came from a cache, or MLflow is another one by now.
        return f"register the present result again with `{again(variant)}`"
    return "register one with `dvc repro`"


def again(variant: str) -> str:
    """The command that registers the artefact of a variant although DVC finds nothing to do."""
    return f"dvc repro --force --single-item register@{variant}"


def _recorded_variant(root: Path, name: str) -> str | None:
    for path in sorted(root.glob(f"models/*/{RECORD}")):
        try:
            if json.loads(path.read_text(encoding="utf-8"))["name"] == name:
                return path.parent.name
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
