"""Deliver the records of trainings that ran while MLflow was away: `python -m stages.deliver`."""

from __future__ import annotations

import sys

from stages.project.command import EXIT_ERROR, check_system
from stages.project.redaction import log_to_stderr, redacted
from stages.registry.address import tracking_uri
from stages.registry.journal import flush
from yolov7.errors import YoloError


def main() -> None:
    """Deliver every journal; exit with a message if some could not be, with code 2 for a mistake it explains."""
    log_to_stderr()
    try:
        check_system()
        left = flush()
    except YoloError as error:
        print(f"error: {redacted(error)}", file=sys.stderr)  # noqa: T201 - the one line a user sees
        sys.exit(EXIT_ERROR)
    sys.exit(f"{left} journals could not be delivered to {redacted(tracking_uri())}" if left else 0)


if __name__ == "__main__":
    main()
