"""MLflow: names, the server, its experiment, its artifacts and its registry, tried before they are needed.

A server that is away is a warning, because the journal of a training waits for it. A refusal is a problem: it would be
the same after the training.
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from stages.preflight.findings import Findings
from stages.project.home import home
from stages.project.params import Params
from stages.project.redaction import in_one_line
from stages.registry import delivery
from stages.registry.address import REGISTRY, TRACKING, registry_uri, sqlite_file, tracking_uri, unusable
from stages.registry.names import foreign
from stages.registry.server import ARTIFACTS, connect, experiment_id
from stages.registry.versions import CHAMPION, ModelRegistry
from yolov7.errors import ModelError, YoloError

_REFUSED = re.compile(
    # codes of HTTP, S3, PostgreSQL, MySQL and SQLite, as MLflow quotes them
    r"UNAUTHENTICATED|PERMISSION_DENIED|error code 40[0134]|40[13] (Client Error|Forbidden|Unauthorized)|NoSuchBucket|"
    r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|NoCredentials|Unable to locate credentials|ExpiredToken|"
    r"(password|authentication) (authentication )?failed|(database|role) \S+ does not exist|Access denied for user|"
    r"Unknown database|file is not a database|readonly database|unable to open database file|Permission denied|"
    r"Read-only file system|Not a directory|Is a directory|CERTIFICATE_VERIFY_FAILED|not in a valid JSON format|"
    r"'detail': 'Not Found'|WRONG_VERSION_NUMBER|out-of-date database schema|No module named|Can't locate revision|"
    r"Invalid Host|must not be set|Could not find a suitable TLS",
    re.IGNORECASE,
)


def check_addresses(found: Findings) -> None:
    """Addresses that can never work."""
    found.problem(unusable(tracking_uri()))
    if os.environ.get(REGISTRY):
        found.problem(unusable(registry_uri(), REGISTRY))


def check_records(params: Params, variants: Sequence[str], found: Findings) -> None:
    """The server answers, lets us in, and takes runs, artifacts and versions."""
    if found.problems and any(TRACKING in line or REGISTRY in line for line in found.problems):
        return
    places = {tracking_uri(): TRACKING} | ({} if _one_place() else {registry_uri(): REGISTRY})
    new = {uri for uri, variable in places.items() if _is_new(uri, variable, found)}
    if tracking_uri() not in new:
        with _judged(found, "records of the training wait until it is back, and `register` needs it"):
            client = connect()
            experiment = client.get_experiment(experiment_id(client, params.registry.experiment))
            # Needs the right to change the experiment, as a new run does.
            client.set_experiment_tag(experiment.experiment_id, "yolov7.preflight", uuid.uuid4().hex[:8])
            _check_artifacts(experiment, found)
            if _one_place():
                _check_models(params, variants, found)
    if not _one_place() and registry_uri() not in new:
        with _judged(found, "`register` needs it", "the registry", registry_uri()):
            _check_models(params, variants, found)


def _one_place() -> bool:
    return registry_uri() == tracking_uri()


def _is_new(uri: str, variable: str, found: Findings) -> bool:
    """True for a SQLite file that does not exist yet: nothing can be asked there. A problem if it cannot be made."""
    file = sqlite_file(uri)
    if file is None or file.exists():
        return False
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        found.problem(f"{variable}: {file} cannot be made: {in_one_line(error, 200)}")
    return True


@contextmanager
def _judged(found: Findings, meanwhile: str, what: str = "MLflow", uri: str = "") -> Iterator[None]:
    """Turn what MLflow and its libraries raise into a problem or a warning. `uri`: default the tracking address."""
    try:
        yield
    except YoloError as error:
        found.problem(str(error))
    except delivery.unreachable() as error:
        text = f"{what} at {in_one_line(uri or tracking_uri(), 200)}: {in_one_line(error, 300)}"
        if _is_refusal(error):
            found.problem(text + _remedy(str(error)))
        else:
            found.warning(f"{text}; {meanwhile}")
    except ValueError as error:
        found.problem(f"a setting of MLflow in the environment: {in_one_line(error, 300)}")


def _is_refusal(error: BaseException) -> bool:
    if isinstance(error, PermissionError | NotADirectoryError | IsADirectoryError):
        return True
    words = f"{getattr(error, 'error_code', '')} {type(error).__name__} {error}"
    return bool(_REFUSED.search(words))


def _remedy(text: str) -> str:
    if re.search(r"UNAUTHENTICATED|error code 401|401 ", text):
        return "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if re.search(r"error code 404|valid JSON|'detail': 'Not Found'", text):
        return f"; is this MLflow's address? ({TRACKING})"
    if "out-of-date" in text:
        return "; `mlflow db upgrade` with this address, after a backup"
    return ""


def _check_artifacts(experiment: Any, found: Findings) -> None:
    """Write a small file where the runs keep theirs, and remove it again."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = str(experiment.artifact_location)
    local = _local_folder(location)
    if local is not None and _is_elsewhere(local, experiment.name, found):
        return
    waits = (
        "files of the training wait for it, and `register` needs it: if the server's log names its bucket or its "
        "credentials, this does not pass by itself"
    )
    with _judged(found, waits, f"the artifacts of experiment {experiment.name!r} ({location})"):
        repository = get_artifact_repository(location, tracking_uri())
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.txt"
            probe.write_text("probe\n", encoding="utf-8")
            repository.log_artifact(str(probe), "preflight")
            with suppress(*delivery.unreachable()):  # who may write may not always delete
                repository.delete_artifacts("preflight")


def _local_folder(location: str) -> Path | None:
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def _is_elsewhere(folder: Path, name: str, found: Findings) -> bool:
    """True, with a problem, where the experiment's folder is of a project that was moved or of another machine."""
    file = sqlite_file(tracking_uri())
    if file is not None and not folder.exists() and file.resolve().parent / ARTIFACTS not in (folder, *folder.parents):
        found.problem(
            f"{file}: experiment {name!r} keeps its files in {folder}, which does not exist: the project was moved or "
            f"the database copied; put the files back there (a link will do), or set registry.experiment to a new name"
        )
        return True
    host = urlsplit(tracking_uri()).hostname
    if file is None and host not in (None, "localhost", "127.0.0.1", "::1") and home() not in folder.parents:
        found.warning(
            f"the server at {host} keeps the files of experiment {name!r} in {folder} of this machine: start it with "
            "--artifacts-destination, unless both machines share that folder"
        )
    return False


def _check_models(params: Params, variants: Sequence[str], found: Findings) -> None:
    registry = ModelRegistry()
    for variant in variants:
        name = f"{params.registry.model_prefix}{variant}"
        found.problem(foreign(registry.client, name))
        champion = registry.by_alias(name, CHAMPION)
        if champion is not None:
            try:
                registry.require_signature(champion)
            except ModelError as error:
                found.warning(f"the gate will stop: {error}")
