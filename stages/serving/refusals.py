"""Refusals as answers: a status, and a reason in the form of MLflow's own."""

from __future__ import annotations

import json

from starlette.responses import JSONResponse

_ECHO = "Failed to predict data '"
_LONGEST = 1000
"""Most characters of a reason."""


class Refused(Exception):  # noqa: N818 - an answer, not a fault of the server
    """A request that is answered with 4xx, or with 503 by a busy server, and the reason."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def refusal_of(refused: Refused, *, close: bool = False) -> JSONResponse:
    """The answer to a refused request; `close`: with it the connection ends."""
    codes = {413: "REQUEST_TOO_LARGE", 503: "REQUEST_LIMIT_EXCEEDED"}
    return response(refused.status, codes.get(refused.status, "INVALID_PARAMETER_VALUE"), str(refused), close=close)


def response(status: int, code: str, message: str, *, close: bool = False) -> JSONResponse:
    """An answer in the form of MLflow's own; `close`: more of the request may be on its way, which nobody will read."""
    headers = {"connection": "close"} if close or status in (408, 413, 503) else {}
    if status == 503:
        headers["retry-after"] = "1"
    text = message.encode(errors="replace").decode()  # half a surrogate pair cannot be sent
    return JSONResponse({"error_code": code, "message": text}, status, headers)


def reason_of(body: bytes) -> tuple[str, str]:
    """Error code and message of an answer of MLflow, without the request that it repeats."""
    try:
        document = json.loads(body)
        code, message = str(document["error_code"]), str(document["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "BAD_REQUEST", body.decode(errors="replace")
    if message.startswith(_ECHO):
        message = message.rpartition("\nError: ")[2]
    return code, message[:_LONGEST]
