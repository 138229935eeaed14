"""Write `.env` from `.env.example`, with a random secret for every empty value; an existing `.env` stays as it is.

Needs only Python. The file is readable only by its owner. It also holds the ID of the user who runs this; the worker
works in the checkout as that user.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def filled(example: str) -> str:
    """`example` with a secret for every `NAME=` without a value."""
    lines = []
    for line in example.splitlines():
        if line.endswith("=") and not line.startswith("#"):
            secret = secrets.token_urlsafe(24)
            line += f"pipeline:{secret}" if line == "PREFECT_AUTH_STRING=" else secret
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> int:
    """Return the exit code."""
    target = HERE / ".env"
    text = filled((HERE / ".env.example").read_text(encoding="utf-8"))
    text += f"\n# The owner of the checkout\nHOST_UID={os.getuid()}\nHOST_GID={os.getgid()}\n"
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        sys.stderr.write(f"{target} exists already and stays as it is\n")
        return 0
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    sys.stderr.write(f"{target} written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
