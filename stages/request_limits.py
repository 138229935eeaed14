"""Old address of :mod:`stages.serving.request_limits`; `UVICORN_HTTP` of running servers may still name it."""

from stages.serving.request_limits import LimitedProtocol

__all__ = ["LimitedProtocol"]
