"""HTML pages from templates: one file each, with nothing loaded from elsewhere."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

MISSING = "–"
"""Shown for a figure that is not defined."""


@lru_cache(maxsize=1)
def _templates() -> Environment:
    """Every value is escaped unless it is markup; an undefined name is an error."""
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = figure
    return environment


def render(template: str, **values: Any) -> str:
    """The page of a template in `templates/`. Equal values give equal bytes."""
    return _templates().get_template(f"{template}.html.jinja").render(**values) + "\n"


def figure(value: float) -> str:
    """Three decimals; a dash for NaN and for the COCO tool's -1."""
    return MISSING if math.isnan(value) or value < 0 else f"{value:.3f}"
