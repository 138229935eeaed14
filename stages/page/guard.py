"""Who may talk to the page: its own tab in a browser of this machine, and nobody through another site.

A page of another site can send requests to a server on loopback (cross-site request), and its own name can be made to
point there (DNS rebinding). Neither can forge `Host` and `Origin`, so these two are checked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from stages.serving.headers import check_headers
from stages.serving.refusals import Refused

SECURITY = {
    # Nothing from elsewhere is loaded, embedded, or sent to; `blob:` are the visitor's own pictures.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every answer."""


def check_request(scope: MutableMapping[str, Any], host: str) -> None:
    """Raise :class:`Refused` for a request that the page itself cannot have sent to a server bound to `host`."""
    takes_body = scope["method"] == "POST"
    check_headers(scope["headers"], takes_body=takes_body)
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    asked = headers.get("host", "")
    if not is_ours(_name(f"//{asked}"), host):
        raise Refused(421, "this server does not go by that name; open the address it printed when it started")
    origin = headers.get("origin")
    if origin is not None and _netloc(origin) != asked.lower():
        raise Refused(403, "requests from other sites are refused")
    # A link to the page itself may be anywhere; nothing else is asked for by others.
    if scope["path"] != "/" and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise Refused(403, "requests from other sites are refused")


def is_ours(name: str, host: str) -> bool:
    """True if a `Host` header may carry this name: the one that was asked for, this machine, or an address.

    An address cannot be rebound: only names are looked up. A server on loopback has addresses there alone.
    """
    if name in (host.lower(), "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or not is_loopback(host)


def is_loopback(host: str) -> bool:
    """True for a host that only this machine reaches."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def secured(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer with those of :data:`SECURITY`."""
    return [*headers, *((name.encode(), value.encode()) for name, value in SECURITY.items())]


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
