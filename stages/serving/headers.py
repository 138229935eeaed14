"""Heads of requests: what two readers could understand differently is refused, before anything else is looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable

from stages.serving.refusals import Refused

_ONCE = (
    "content-type",
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "host",
    "expect",
    "upgrade",
    "authorization",
)
"""Headers with one value: of two, a proxy might take the other one."""
_LINES = re.compile(rb"\r?\n")


def fault_of_head(start: bytes) -> str | None:
    """The reason to refuse the head that these bytes begin with, or None; None also if its end has not arrived.

    h11 unites several equal lengths, and continues a line that begins with a blank: only the bytes show them.
    """
    ends = [end for end in (start.find(b"\n\r\n"), start.find(b"\n\n")) if end >= 0]
    if not ends:
        return None
    lines = _LINES.split(start[: min(ends)])[1:]
    if any(line[:1] in (b" ", b"\t") for line in lines):
        return "A header continues on the next line."
    named = [line.partition(b":") for line in lines]
    lengths = [value.strip(b" \t\r") for name, _, value in named if name.lower() == b"content-length"]
    if len(lengths) > 1:
        return "There are several Content-Length headers."
    if lengths and not (lengths[0].isdigit() and len(lengths[0]) <= 18):
        return "Content-Length is not a number."
    return None


def check_headers(headers: Iterable[tuple[bytes, bytes]], *, takes_body: bool) -> None:
    """Raise :class:`Refused` for headers that contradict each other, or a body that nobody reads."""
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    for once in _ONCE:
        if len(values.get(once, ())) > 1:
            raise Refused(400, f"the header {once} occurs {len(values[once])} times")
    length, encoding = values.get("content-length", [""])[0], values.get("transfer-encoding")
    if length and encoding:
        raise Refused(400, "the request has both content-length and transfer-encoding")
    if not takes_body and (encoding or length not in ("", "0")):
        raise Refused(413, "only POST /invocations takes a body")


def check_kind(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise :class:`Refused` unless the body is plain JSON."""
    values = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    kind, *parameters = (part.strip().lower() for part in values.get("content-type", "").split(";"))
    if kind != "application/json":
        found = f"not {kind[:80]!r}" if kind else "and this request names none"
        raise Refused(415, f"the content type must be application/json, {found}; images travel as base64 text")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(' "') not in ("utf-8", "utf8"):
            raise Refused(415, "The scoring server only supports UTF-8")
    if values.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Refused(415, "the body must not be compressed: send it without content-encoding")
