"""A session that looks at a redirect before it follows it."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urljoin, urlsplit

import requests

from stages.project.redaction import redacted
from yolov7.errors import DataError


class GuardedSession(requests.Session):
    """Follows redirects to http and https, never from https to http, and never from a public host to a private one.

    A server on the internet must not be able to make this machine ask a service of the inner network, and hand its
    answer on as data. A source that is itself on a private network may redirect inside it.
    """

    def get_redirect_target(self, response: requests.Response) -> str | None:
        """The address of the next request, or None. Raises :class:`DataError` for one that must not be asked."""
        target = super().get_redirect_target(response)
        if target is not None:
            _judge(response.url, target)
        return target


def _judge(source: str, target: str) -> None:
    where = redacted(source)
    try:
        before, after = urlsplit(source), urlsplit(urljoin(source, target))
    except ValueError:
        raise DataError("the server redirects to something that is not an address", path=where) from None
    if after.scheme not in ("http", "https"):
        raise DataError(f"the server redirects to an address of another kind ({after.scheme[:20]!r})", path=where)
    if before.scheme == "https" and after.scheme == "http":
        raise DataError("the server redirects from https to http; give the address it redirects to", path=where)
    if _is_private(after.hostname) and not _is_private(before.hostname):
        raise DataError(
            f"the server redirects to a private address ({redacted(after.hostname)}); if that is right, give the "
            "address it redirects to",
            path=where,
        )


def _is_private(host: str | None) -> bool:
    """True if the host has an address that is not of the internet; False if this machine does not know the host."""
    try:
        found = socket.getaddrinfo(host or "", None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    plain = [getattr(address, "ipv4_mapped", None) or address for address in addresses]
    return any(not address.is_global for address in plain)
