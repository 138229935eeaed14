"""Images on their way to the model: decoded before MLflow, passed beside it, and given to the model as they are.

MLflow parses a request's JSON as a whole, several times over, and holds Python's global lock while it does: for 60 MB,
half a second in which the server answers nobody, and four times the memory. It gets a document with a ticket instead of
the images; in front of the model, the ticket is replaced by the images. A ticket is random, valid once, and never sent
to a client. Registered models of every age are served so: they are given what MLflow's own parsing gives them.
"""

from __future__ import annotations

import base64
import functools
import json
import secrets
from typing import Any

_waiting: dict[bytes, list[bytes]] = {}
"""Images by their ticket, until the model takes them."""


def deposit(images: list[bytes]) -> bytes:
    """Keep the images of a request, and return their ticket."""
    ticket = secrets.token_bytes(24)
    _waiting[ticket] = images
    return ticket


def withdraw(ticket: bytes) -> list[bytes] | None:
    """Take the images of a ticket; None if it is unknown or has been used."""
    return _waiting.pop(ticket, None)


def document_of(ticket: bytes, thresholds: dict[str, float]) -> bytes:
    """The document that MLflow reads: one row with the ticket, in the form whose base64 MLflow decodes itself."""
    row = base64.b64encode(ticket).decode()
    document: dict[str, Any] = {"dataframe_split": {"columns": ["image"], "data": [[row]]}}
    return json.dumps({**document, "params": thresholds} if thresholds else document).encode()


def ticket_of(data: Any) -> bytes | None:
    """The ticket that a table consists of, or None."""
    try:
        (cell,) = data["image"]
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return cell if isinstance(cell, bytes) and len(cell) == 24 else None


def install() -> None:
    """Let every model that MLflow has loaded take images by their ticket. A second call does nothing."""
    import pandas as pd
    from mlflow.pyfunc import PyFuncModel

    if hasattr(PyFuncModel.predict, "__wrapped__") and getattr(PyFuncModel.predict, "takes_tickets", False):
        return
    predict = PyFuncModel.predict

    @functools.wraps(predict)
    def predict_handed_over(self: Any, data: Any, *arguments: Any, **options: Any) -> Any:
        ticket = ticket_of(data)
        images = None if ticket is None else withdraw(ticket)
        if images is not None:
            data = pd.DataFrame({"image": pd.Series(images, dtype=object)})
        return predict(self, data, *arguments, **options)

    predict_handed_over.takes_tickets = True  # type: ignore[attr-defined]
    PyFuncModel.predict = predict_handed_over
