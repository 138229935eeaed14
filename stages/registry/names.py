"""Whether the name of a registered model is ours to use."""

from __future__ import annotations

from typing import Any

_NEWEST = 100
"""Versions looked at: a project that shares the name has registered one of them."""


def foreign(client: Any, name: str) -> str | None:
    """Who else has the name, as a message; None if it is free, or holds a version that this project has made."""
    what = _other(client, name)
    if what is None:
        return None
    return f"MLflow has {what} under the name {name!r}; choose another with params.yaml: registry.model_prefix"


def _other(client: Any, name: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
            raise
        return None if client.get_prompt(name) is None else "a prompt"
    query = f"name = '{name}'"
    newest = client.search_model_versions(query, max_results=_NEWEST, order_by=["version_number DESC"])
    if not newest or any("manifest_sha256" in (version.tags or {}) for version in newest):
        return None
    return f"a model with {len(newest)} versions of something else"
