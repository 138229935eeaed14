"""Keep credentials out of logs, error messages and pages.

Addresses lose the user and password before their host; values of environment variables whose names mark them as secrets
are replaced wherever they appear. Both are needed: a library may print an address or a header as it is.
"""

from __future__ import annotations

import logging
import os
import re
import sys

from yolov7.text import for_terminal

HIDDEN = "***"
_USERINFO = re.compile(r"(?<=://)[^\s/'\"<>]+@")
_SECRET_NAME = re.compile(r"(PASSWORD|SECRET|TOKEN|AUTH_STRING|SECRET_KEY|ACCESS_KEY|API_KEY|SIGNING_KEY)$")
_SHORTEST_SECRET = 6
"""Shorter values may be ordinary words of a text."""
_PEM = "-----BEGIN "


def redacted(text: object) -> str:
    """`text` without credentials: user and password of addresses, and values of secret environment variables."""
    shown = _USERINFO.sub(f"{HIDDEN}@", str(text))
    for secret in _secrets():
        shown = shown.replace(secret, HIDDEN)
    return shown


def in_one_line(text: object, longest: int) -> str:
    """`text` without credentials and line breaks, cut at `longest` characters."""
    return " ".join(redacted(text).split())[:longest]


class RedactingFormatter(logging.Formatter):
    """Format records, tracebacks included, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's text."""
        return for_terminal(redacted(super().format(record)))


def log_to_stderr(*, force: bool = False) -> None:
    """Log messages to stderr, without credentials; `force` replaces an earlier setup."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=force)


def _secrets() -> list[str]:
    """Secret values, longest first: one may be part of another. The path of a key is not secret, its text is."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if not _SECRET_NAME.search(name) or len(value) < _SHORTEST_SECRET:
            continue
        if name.endswith("SIGNING_KEY"):
            if value.lstrip().startswith(_PEM):
                found.update(line for line in value.split("\n") if len(line) > 40)
            continue
        found.add(value)
        if name.endswith("AUTH_STRING"):
            found.update(part for part in [value.partition(":")[2]] if len(part) >= _SHORTEST_SECRET)
    return sorted(found, key=len, reverse=True)
