"""Translate MLflow exceptions into ours, separating "server unavailable" from real errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stages.project.command import UnavailableError
from stages.project.redaction import in_one_line, redacted
from stages.registry.address import tracking_uri
from yolov7.errors import ModelError

_AWAY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "BAD_REQUEST")
"""MLflow also reports most errors of a restarting database as the last of these."""
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")


class RegistryUnavailableError(ModelError, UnavailableError):
    """The MLflow server or its database cannot be reached now; the same command may work later."""


@dataclass
class Absent:
    """Value of the block when the object does not exist."""

    value: Any


_RAISE = object()


@contextmanager
def reported(absent: Any = _RAISE) -> Iterator[Absent]:
    """Translate the exceptions of the block; with `absent`, a missing object ends the block without an error."""
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield Absent(absent)
    except MlflowException as error:
        if absent is not _RAISE and error.error_code in _ABSENT:
            return
        message = f"MLflow at {redacted(tracking_uri())}: {in_one_line(error, 500)}"
        # Without the cause: its message may hold the address with a password, which a traceback would show.
        raise (RegistryUnavailableError if error.error_code in _AWAY else ModelError)(message) from None
    except (requests.RequestException, sqlalchemy.exc.OperationalError) as error:
        where = redacted(tracking_uri())
        raise RegistryUnavailableError(f"MLflow at {where} cannot be reached: {in_one_line(error, 300)}") from None
