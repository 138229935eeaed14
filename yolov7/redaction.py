"""Keep credentials out of messages: the one place through which errors, logs and pages pass.

Three layers, because a library may print an address, a header or a value as it is: addresses lose user, password,
query and fragment; headers and settings whose names mark them as secrets lose their values; and the values of secrets
in the environment are replaced wherever they appear. An address whose parts cannot be told apart, because a password
holds `/`, `?`, `#` or `@` unescaped, loses everything that may belong to the password. Every pattern is linear in the
text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"

_ADDRESS = re.compile(r":?(?:\\?/){2}\S+")
"""From the slashes to the next space: a password may hold every other character."""
_IS_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}://")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}$")
_LONGEST_SCHEME = 40
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")
_OF_FILES = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "file", "sqlite", "models", "runs", "mlflow-artifacts", "dbfs", "hdfs", "webhdfs"}
)
"""Schemes whose paths may hold an `@`, and which rarely name a user."""
_CLOSING = "'\"`<>)]},;:.!"
"""Ends a sentence or a quotation, and not an address."""

_WORD = re.compile(r"[^\s'\"<>]++")
_USER = re.compile(r"[\w.+%~-]{1,60}$")

_QUERY = re.compile(r"(?<=\S)\?[^\s=?&]{1,100}=\S*")
_REQUEST = re.compile(r"((?:with url:|\b(?:GET|HEAD|POST|PUT|DELETE)) /[^\s?#]*[?#])\S+")
"""As urllib3 names the address of a request."""
_HEADER = re.compile(
    r"""(\b(?:(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|x-auth-token|x-amz-security-token)(?:['"]?\s*[:=]\s*|['"],\s*)b?)"""
    r"""(?:'[^'\n]*'|"[^"\n]*"|[^\n'"][^\n]*)""",
    re.IGNORECASE,
)
_SCHEMED = re.compile(r"\b((?i:bearer|basic|token)) +(?=\S{0,200}(?:[0-9=+/]|[a-z][A-Z]))\S{8,}")
"""The text after the scheme looks like no word."""
_WORDS = (
    r"(?:password|passwd|passphrase|pwd|secret|token|signature|sig|credentials?|auth|(?:account|api|access|secret|shared|private)"
    r"[_-]?(?:access)?[_-]?key(?:[_-]?id)?)"
)
_SETTING = re.compile(
    rf"""(?<![\w.-])([\w.-]{{0,40}}?{_WORDS}(?:=|["']\s*[:,]\s*|[ \t]{{0,3}}[:=][ \t]{{0,3}}(?=\S{{0,200}}\d)))"""
    r"""("[^"\n]*"|'[^'\n]*'|\([^)\n]*\)|\S+)""",
    re.IGNORECASE,
)
"""With blanks, as in a file of settings, only a value that holds a digit is no word."""
_PORT = re.compile(r"""(\bport\b[^'"\n]{0,50}['"])(?!\d*['"])\S*""", re.IGNORECASE)
"""A port that is no number is the beginning of a password with a slash in it; every parser of addresses quotes it."""
_PRIVATE_KEY = re.compile(r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)[^-]*")
_TOKENS = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,255}|eyJ[\w-]{10,4000}\.[\w-]{10,4000}\.[\w-]{10,4000})\b"
)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_SECRET_NAME = re.compile(
    r"(PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|AUTH_STRING|SECRET_KEY|ACCESS_KEY|ACCESS_KEY_ID|API_KEY|ACCOUNT_KEY"
    r"|SIGNING_KEY|CONNECTION_STRING|COOKIE|SAS)$",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 6
"""Shorter values may be ordinary words of a text."""
_SHORTEST_PART = 8
"""The same for a part of an address: `prefect:prefect@` must not hide a word of every message."""
_MOST_ENDS = 20
_SHORTEST_USER = 5
"""With the password and the colon between them."""
_PEM = "-----BEGIN "


def redacted(text: object) -> str:
    """`text` without credentials."""
    shown = str(text)
    for secret in _secrets():
        shown = shown.replace(secret, HIDDEN)
    if "/" in shown:
        shown = _ADDRESS.sub(_hide_address, shown)
        shown = _REQUEST.sub(rf"\1{HIDDEN}", shown)
    if "@" in shown:
        shown = _WORD.sub(_hide_user, shown)
    if "=" in shown or ":" in shown or "," in shown:
        shown = _QUERY.sub(lambda found: f"?{HIDDEN}{_tail(found[0])}", shown)
        shown = _HEADER.sub(lambda found: f"{found[1]}{HIDDEN}", shown)
        shown = _SETTING.sub(_hide_setting, shown)
    shown = _SCHEMED.sub(lambda found: f"{found[1]} {HIDDEN}", shown)
    shown = _PORT.sub(rf"\1{HIDDEN}'", shown)
    if _PEM in shown:
        shown = _PRIVATE_KEY.sub(rf"\1{HIDDEN}", shown)
    return _TOKENS.sub(HIDDEN, shown)


def in_one_line(text: object, longest: int) -> str:
    """`text` without credentials, line breaks and control characters, cut at `longest` characters."""
    return " ".join(_CONTROL.sub(" ", redacted(text)).split())[:longest]


def _tail(text: str) -> str:
    """The closing quotes and brackets at the end, which belong to the sentence."""
    return text[len(text.rstrip(_CLOSING)) :]


def bare_address(address: str) -> str:
    """An address alone, without user, password, query and fragment, and without a mark in their place."""
    scheme, slashes, rest = address.partition("://")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    end = rest.rfind("@") if "@" in host or ":" in host else -1
    if end >= 0:
        before = re.split("[?#]", rest[:end], maxsplit=1)
        if len(before) > 1 and "/" in before[0]:
            return f"{scheme}{slashes}{HIDDEN}"  # the `@` may be one of a password, or of a query
    return f"{scheme}{slashes}{re.split('[?#]', rest[end + 1 :], maxsplit=1)[0]}"


def _hide_setting(found: re.Match[str]) -> str:
    quoted = found[2].startswith(("'", '"'))
    return f"{found[1]}{HIDDEN}{'' if quoted else _tail(found[2])}"


def _hide_address(found: re.Match[str]) -> str:
    start = found.start()
    before = found.string[max(0, start - _LONGEST_SCHEME) : start]
    scheme = _SCHEME.search(before) if found[0].startswith(":") else None
    slashes = found[0][: len(found[0]) - len(found[0].lstrip(":\\/"))]
    if scheme is not None and scheme[0].lower().partition("+")[0] in _OF_FILES:
        slashes = found[0][:3]  # the fourth slash begins an absolute path
    rest = found[0][len(slashes) :]
    tail = _tail(rest)
    rest = rest.removesuffix(tail)
    of_files = scheme is not None and scheme[0].lower().partition("+")[0] in _OF_FILES
    return f"{slashes}{_without_secrets(rest, of_files=of_files)}{tail}"


def _hide_user(found: re.Match[str]) -> str:
    """`user:password@host`: an address whose slashes are missing, or that a library has taken apart."""
    word = found[0]
    colon, at = word.find(":"), word.rfind("@")
    if colon < 1 or at <= colon + 1 or "//" in word or word[colon + 1] == "\\":
        return word
    user = _USER.search(word[max(0, colon - 60) : colon])
    if user is None or user[0].lower() in _OF_FILES:
        return word
    return f"{word[: colon + 1]}{HIDDEN}{word[at:]}"


def _without_secrets(rest: str, *, of_files: bool) -> str:
    """An address after its slashes."""
    host = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    end = rest.rfind("@")
    if of_files and "@" not in host and ":" not in host:
        end = -1
    shown = ""
    if end >= 0:
        if re.search(r"[?#]", rest[:end]):
            return HIDDEN  # of a password, or of a query that holds an `@`
        shown, rest = f"{HIDDEN}@", rest[end + 1 :]
    elif not _HOST.fullmatch(host):
        return HIDDEN  # a user and the beginning of a password: someone has cut the message
    cut = re.search(r"[?#]", rest)
    return f"{shown}{rest}" if cut is None else f"{shown}{rest[: cut.start()]}{cut[0]}{HIDDEN}"


def _secrets() -> tuple[str, ...]:
    """Secret values of the environment, longest first: one may be part of another."""
    return _secrets_of(tuple(os.environ.items()))


@lru_cache(maxsize=4)
def _secrets_of(variables: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    found: set[str] = set()
    for name, value in variables:
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            found.update(_values(name, value))
        if _IS_ADDRESS.match(value):
            found.update(_address_parts(value))
    found |= {form for value in found for form in (quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1])}
    return tuple(sorted(found, key=len, reverse=True))


def _values(name: str, value: str) -> Iterator[str]:
    """The secret in a variable. The path of a key is not secret, its text is."""
    if name.upper().endswith("SIGNING_KEY"):
        if value.lstrip().startswith(_PEM):
            yield from (line for line in value.split("\n") if len(line) > 40)
        return
    yield value
    parts = [value.partition(":")[2]] if name.upper().endswith("AUTH_STRING") else []
    if name.upper().endswith("CONNECTION_STRING"):
        parts = [part.partition("=")[2] for part in value.split(";") if re.search("key|signature", part, re.IGNORECASE)]
    yield from (part for part in parts if len(part) >= _SHORTEST_SECRET)


def _address_parts(value: str) -> Iterator[str]:
    """Password and query of an address in a variable, with spaces or without, and as a library may decode them."""
    rest = value.partition("://")[2]
    user, at, _ = rest.rpartition("@")
    ends = [found.start() for found in re.finditer("@", rest)][:_MOST_ENDS]
    passwords = [rest[:end].partition(":")[2] for end in ends]  # it may hold an `@` itself
    query = [part.partition("=")[2] for part in re.split("[?&#]", rest)[1:]]
    if at and ":" in user and len(user) >= _SHORTEST_USER:
        # With an `@` after a `?`, nobody can tell where the password ends.
        yield from {rest if re.search("[?#]", user) else user, unquote(user)}
    for part in (*passwords, *query):
        # Letters alone may be a word.
        if len(part) >= _SHORTEST_PART and not part.isalpha() and not part.isspace():
            yield from {part, unquote(part)}
