"""Parameters of the promotion gate."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from yolov7.config import Group


def _or_zero(value: Any) -> Any:
    """A limit that is left empty is no limit."""
    return 0.0 if value is None else value


class Promotion(Group):
    """Conditions for a challenger to become the champion, measured side by side on the test split."""

    margin: float = Field(default=0.0, ge=0.0, le=1.0)
    """The challenger's test AP must exceed the champion's by more than this."""
    certain: bool = False
    """Require the whole 95 % interval of the difference to exceed `margin`, not only the measured difference."""
    max_class_loss: float = Field(default=0.2, gt=0.0, le=1.0)
    """No class's AP may fall by more than this."""
    min_class_objects: int = Field(default=30, ge=1)
    """Classes with fewer test objects do not count: their AP is mostly chance."""
    max_latency_ms: float = Field(default=0.0, ge=0.0)
    """Largest median time of one test image, with preparation and suppression, on the machine of the gate (0: any)."""
    max_size_mb: float = Field(default=0.0, ge=0.0)
    """Largest size of the ONNX file (0: any)."""
    max_int8_loss: Annotated[float, BeforeValidator(_or_zero)] = Field(default=0.0, ge=0.0, le=1.0)
    """The test AP of each int8 file of the challenger may be at most this below that of its float file (0 or empty:
    not checked)."""
