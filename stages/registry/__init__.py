"""MLflow: the server, the journal of runs, and the registry of models."""

from __future__ import annotations

from pathlib import Path


def download_model(uri: str) -> Path:
    """The export folder behind a `models:/` address; see :func:`stages.registry.versions.download_model`.

    The entry point of the group `yolov7.resolvers`; MLflow is imported on the first call.
    """
    from stages.registry import versions

    return versions.download_model(uri)
