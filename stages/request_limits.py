"""Old name of :mod:`stages.serving.request_limits`, kept for servers whose `UVICORN_HTTP` still holds it."""

from stages.serving.request_limits import LimitedProtocol

__all__ = ["LimitedProtocol"]
