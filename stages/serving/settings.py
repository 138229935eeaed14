"""Limits of the server before the model, from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

_PREFIX = "YOLOV7_SERVE_"


@dataclass(frozen=True)
class Settings:
    """The environment variable of a limit is YOLOV7_SERVE_ plus its name in capitals. The model has limits of its own
    (stages/serving/model.py); those of the number of images and their bytes have the same names and defaults."""

    max_request_bytes: int = 64 * 1024 * 1024
    """Bytes of a request's body; images travel as base64, which makes them a third larger."""
    max_images: int = 64
    """Images in one request. The model has the same limit; here it bounds what is read at all."""
    max_image_bytes: int = 32 * 1024 * 1024
    """Size of an image file."""
    max_waiting: int = 32
    """Complete requests that wait or are processed; others get 503."""
    max_waiting_bytes: int = 48 * 1024 * 1024
    """Bytes of all requests that arrive, wait or are processed; one request may exceed it."""
    max_running: int = min(32, max(2, os.cpu_count() or 2))
    """Requests that are processed at a time."""
    body_seconds: int = 60
    """Seconds for a body to arrive, without the time that it was kept waiting."""
    min_bytes_per_second: int = 4096
    """Rate below which a body is refused, over any ten seconds."""
    head_seconds: int = 10
    """Seconds for the head of a request to arrive."""
    response_seconds: int = 60
    """Seconds for a client to read its answer."""
    max_connections: int = 256
    """Open connections; beyond it, those that have waited longest without a request are closed."""

    @classmethod
    def from_environment(cls) -> Settings:
        """The limits that the environment sets.

        Raises ValueError with the variable for any but a positive integer.
        """
        values = {}
        for field in fields(cls):
            name = _PREFIX + field.name.upper()
            text = os.environ.get(name)
            if text is None:
                continue
            if not text.isascii() or not text.isdecimal() or len(text) > 18 or int(text) < 1:
                raise ValueError(f"{name}: a whole number above 0 is expected, got {text[:80]!r}")
            values[field.name] = int(text)
        return cls(**values)


VARIABLES = tuple(_PREFIX + field.name.upper() for field in fields(Settings))
"""The environment variables of all limits."""
