"""Old name of :mod:`stages.serving.request_limits`, kept for servers whose `UVICORN_HTTP` still holds it."""

from stages.serving.refusals import Refused
from stages.serving.request_limits import LimitedProtocol, check_request

__all__ = ["LimitedProtocol", "Refused", "check_request"]
