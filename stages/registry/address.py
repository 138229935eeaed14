"""The address of MLflow: `MLFLOW_TRACKING_URI`, anchored in the project's home, and whether it can work at all."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from stages.project.home import home
from stages.project.redaction import in_one_line, redacted
from yolov7.errors import nearest

DATABASE = Path("mlflow.db")
TRACKING, REGISTRY = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"
SQLITE = "sqlite:///"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https")
_HOSTED = ("databricks", "databricks-uc", "uc")
# The error of the library would quote the part that it cannot read: the beginning of a password.
_UNREADABLE = "not readable as an address; in a user or password, write / as %2F, ? as %3F, # as %23, @ as %40"
_ADVICE = f"write {SQLITE}{DATABASE}, or the address of a server: http://HOST:5000"


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the SQLite file `mlflow.db` in the project's home.

    A relative path is relative to that folder (:func:`stages.project.home.home`), wherever the process runs.
    """
    given = os.environ.get(TRACKING, "").strip()
    return anchored(given) if given else f"{SQLITE}{home() / DATABASE}"


def registry_uri() -> str:
    """`MLFLOW_REGISTRY_URI`, or :func:`tracking_uri`."""
    given = os.environ.get(REGISTRY, "").strip()
    return anchored(given) if given else tracking_uri()


def anchored(uri: str) -> str:
    """The address with the relative path of a database or folder made absolute; anything else as it is."""
    prefix = next((each for each in (SQLITE, "file:") if uri.startswith(each)), "")
    path = uri.removeprefix(prefix)
    if not path or path.startswith(("/", "~", ":")) or not (prefix or _is_folder(uri)):
        return uri
    return f"{prefix}{home() / path}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite database, None for any other address."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def unusable(uri: str, variable: str = TRACKING) -> str | None:
    """Why MLflow can never work with this address, in one line; None if it can. Nothing is contacted."""
    scheme, _, rest = uri.partition(":")
    dialect = scheme.partition("+")[0]
    known = [*_DATABASES, *_SERVERS, *_HOSTED, *(found.name for found in entry_points(group="mlflow.tracking_store"))]
    shown = f"{variable}={redacted(os.environ.get(variable) or uri)}"
    if dialect == "file" or _is_folder(uri):
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("1", "true"):
            return None
        return f"{shown}: MLflow no longer keeps runs in a folder; {_ADVICE}"
    if dialect in _SERVERS:
        return _unusable_host(uri, shown)
    if dialect not in known:
        if scheme == uri or rest.partition("/")[0].isdecimal():  # localhost:5000
            return f"{shown}: this has no scheme; {_ADVICE}"
        return f"{shown}: unknown scheme {scheme!r}{nearest(dialect, known)}; {_ADVICE}"
    return _unusable_database(uri, shown) if dialect in _DATABASES else None


def _is_folder(uri: str) -> bool:
    """No scheme at all: MLflow takes it for the path of a folder."""
    return ":" not in uri.partition("/")[0] and uri not in _HOSTED


def _unusable_host(uri: str, shown: str) -> str | None:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return f"{shown}: {_UNREADABLE}; {_ADVICE}"
    return None if host else f"{shown}: no host; {_ADVICE}"


def _unusable_database(uri: str, shown: str) -> str | None:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        url = make_url(uri)
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except ValueError:
        return f"{shown}: {_UNREADABLE}; {_ADVICE}"
    except (ArgumentError, NoSuchModuleError) as error:
        return f"{shown}: {in_one_line(error, 200)}; {_ADVICE}"
    except ImportError as error:
        return (
            f"{shown}: its driver is not installed ({in_one_line(error, 100)}); "
            "name one that is, for example postgresql+psycopg2://"
        )
    if url.get_backend_name() != "sqlite":
        return None
    if url.host:
        return f"{shown}: a file needs three slashes; write {SQLITE}{url.host}"
    if url.database in (None, "", ":memory:"):
        return f"{shown}: a database in memory is gone with its process; {_ADVICE}"
    if str(url.database).startswith("~"):
        return f"{shown}: ~ is not expanded here; write the whole path"
    return None
