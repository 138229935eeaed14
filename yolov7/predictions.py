"""How a score comes from the columns of a decoded prediction."""

from __future__ import annotations

from typing import Literal

Scoring = Literal["objectness x class probability", "objectness", "class probability"]
