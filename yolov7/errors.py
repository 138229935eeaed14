"""The project's own errors: each names the mistake, its place, and the remedy.

The command line prints them in one line and exits with code 2; any other exception is a bug.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

from yolov7.redaction import redacted


class YoloError(Exception):
    """Base of every error a user can cause and fix. `str(error)` is one line fit for a terminal, without credentials.

    The message loses them here, because an error travels: into logs, pages, tags and the states of Prefect's runs.
    """

    def __init__(self, message: object = "", *args: object):
        super().__init__(redacted(message), *args)


class ConfigError(YoloError):
    """A parameter is unknown, of the wrong type or out of range."""


class DataError(YoloError):
    """An annotation file, an image or a data set is damaged or invalid.

    `path` is the file, `record` the id inside it (an annotation id, an image id, a line), where known.
    """

    def __init__(self, message: str, *, path: str | os.PathLike[str] | None = None, record: object | None = None):
        self.path = None if path is None else os.fspath(path)
        self.record = record
        where = [] if self.path is None else [self.path]
        if record is not None:
            where.append(str(record))
        super().__init__(": ".join([*where, message]))


class LostWorkerError(YoloError):
    """A process that loads data was killed from outside; the same command resumes the run."""


class ModelError(YoloError):
    """A network, a checkpoint or an exported artefact is unknown, damaged, or does not fit."""


class TrainingError(YoloError):
    """Training cannot continue: a resume that does not fit, too many bad batches or images, no memory, no disk."""


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of an error message about an unknown word.

    ` (did you mean 'x'?)`, or ` (known: x, y, z)` if no known word is close.
    """
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"
