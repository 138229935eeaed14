"""Let every message of a process pass through :mod:`yolov7.redaction`: logs, warnings and tracebacks of all libraries.

Our own errors (`yolov7.errors`) pass through it when they are made.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any

from yolov7.redaction import bare_address, in_one_line, redacted
from yolov7.text import for_terminal

__all__ = ["RedactingFormatter", "bare_address", "in_one_line", "log_to_stderr", "redact_process", "redacted"]


class RedactingFormatter(logging.Formatter):
    """Format records, tracebacks included, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's text."""
        return for_terminal(redacted(super().format(record)))


class RedactedRecord(logging.LogRecord):
    """A record whose text and traceback hold no credentials, whichever handler formats it."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            # A formatter uses this text where it is there.
            self.exc_text = redacted("".join(traceback.format_exception(*self.exc_info))).rstrip("\n")

    def getMessage(self) -> str:  # noqa: N802 - the name of the base class
        """The message with its arguments."""
        return redacted(super().getMessage())


def redact_process() -> None:
    """Redact the logs, warnings and uncaught exceptions of this process, those of other libraries included."""
    logging.setLogRecordFactory(RedactedRecord)
    sys.excepthook = _show_exception
    threading.excepthook = _show_exception_of_thread
    if warnings.formatwarning is not _format_warning:
        warnings.formatwarning = _format_warning


def log_to_stderr(*, force: bool = False) -> None:
    """Log messages to stderr, without credentials; `force` replaces an earlier setup."""
    redact_process()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=force)


def _show_exception(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, value, trace))))


def _show_exception_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        _show_exception(args.exc_type, args.exc_value, args.exc_traceback)


_formatted = warnings.formatwarning


def _format_warning(*args: Any, **kwargs: Any) -> str:
    return redacted(_formatted(*args, **kwargs))
