"""Write a part of params.yaml into it, comments kept: `python -m stages.apply_params reports/search/best.yaml`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, MutableMapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.project import params as params_module
from stages.project.command import run_stage
from stages.project.params import PARAMS_FILE, Params
from yolov7.documents import MAX_YAML, DocumentError, read_text
from yolov7.errors import ConfigError
from yolov7.files import atomic_path
from yolov7.yaml_text import read_yaml

log = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """Change `params.yaml`; it stays as it is if the result would not be valid."""
    patch = read_patch(Path(args.patch))
    changes = apply(patch, PARAMS_FILE)
    for line in changes:
        log.info("%s", line)
    if not changes:
        log.info("%s has these values already", PARAMS_FILE)


def read_patch(path: Path) -> Mapping[str, Any]:
    """The part of params.yaml in a file. Raises :class:`ConfigError` where it is none."""
    try:
        values = read_yaml(read_text(path, MAX_YAML)).value
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (DocumentError, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(f"{path}: expected a mapping, a part of params.yaml")
    return values


def apply(patch: Mapping[str, Any], file: Path) -> list[str]:
    """Lay `patch` over `file`; returns a line for each changed value. Raises :class:`ConfigError`, and changes nothing,
    where the result would not be valid."""
    yaml = YAML()  # keeps comments, order and quotes
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(file.read_text(encoding="utf-8"))
    changes = _lay(document, patch, "")
    if not changes:
        return []
    text = StringIO()
    yaml.dump(document, text)
    with atomic_path(file) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
        try:
            params_module.load(temporary)
        except ConfigError as error:
            raise ConfigError(f"not applied: {str(error).replace(str(temporary), str(file))}") from None
    return changes


def _lay(document: MutableMapping[str, Any], patch: Mapping[str, Any], at: str) -> list[str]:
    changes = []
    for key, value in patch.items():
        place, present = f"{at}.{key}".strip("."), document.get(key)
        if isinstance(value, Mapping) and isinstance(present, MutableMapping):
            changes += _lay(present, value, place)
        elif present != value:
            changes.append(f"{place}: {'new' if key not in document else present} -> {value}")
            document[key] = value
    return changes


if __name__ == "__main__":
    run_stage(main, options=[("patch", {"help": "a YAML file with a part of params.yaml"})])
