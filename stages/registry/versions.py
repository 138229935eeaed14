"""Versions of a registered model in MLflow: find, create, alias, fetch and verify them.

A version holds one export folder. Its `model.json` lists the sha256 of every other file, so the sha256 of `model.json`
identifies the whole folder. The version carries it as a tag: a folder that is registered already makes no second
version, and a download with a changed byte is refused. With keys in the environment (:mod:`yolov7.signature`) versions
are signed, and unsigned ones are refused. Works on a SQLite file and over HTTP alike.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.project.home import STATE, home
from stages.project.locks import file_lock
from stages.project.redaction import redacted
from stages.registry import delivery
from stages.registry.address import tracking_uri
from stages.registry.advice import how_to_register
from stages.registry.errors import reported
from stages.registry.logged_model import log_model
from stages.registry.names import foreign
from stages.registry.server import connect, connect_marks, experiment_id, metric_name
from yolov7 import signature
from yolov7.artefact import DESCRIPTION, ONNX, check_folder
from yolov7.documents import DocumentError, load_json
from yolov7.errors import ConfigError, ModelError
from yolov7.files import sha256_file, write_json

log = logging.getLogger(__name__)

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
DATA_STATISTICS = "data_statistics"
"""Tag of a version: the path under which its run keeps the statistics of the data it was trained on."""
ARTEFACT_VERIFICATION, DATA_VALIDATION, PASSED = "artefact_verification", "data_validation", "passed"
"""Tags of a version: how the stages export and validate have ended; the promotion gate wants both `passed`."""
SIGNATURE = "signature"
"""Tag of a version: its signature (:mod:`yolov7.signature`), in base64."""
DOWNLOADS = Path(".local/models")
CHECKPOINT = "checkpoint/best.safetensors"
"""Path of the best weights among the artifacts of a training's run."""
_URI = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    number: int
    run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """Its name in MLflow."""
        return f"models:/{self.name}/{self.number}"

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"


class ModelRegistry:
    """The registry behind :func:`stages.registry.server.tracking_uri`."""

    def __init__(self) -> None:
        # Unlike a training, a registration has nothing else to do: it may wait for a slow server.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        with reported():
            self.client = connect()
            self._marks = connect_marks()

    # Reading ---------------------------------------------------------------------------------------------------------

    def resolve(self, uri: str) -> Version:
        """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names now. Raises ModelError if none does."""
        match = _URI.fullmatch(uri)
        if match is None:
            raise ModelError(f"{uri}: write models:/NAME@ALIAS or models:/NAME/VERSION")
        name, alias, number = match["name"], match["alias"], match["version"]
        found = self.by_alias(name, alias) if alias else self.by_number(name, int(number))
        if found is None:
            raise ModelError(f"{uri}: {self._missing(name, alias or f'version {number}', is_alias=bool(alias))}")
        return found

    def by_alias(self, name: str, alias: str) -> Version | None:
        """The version an alias points to, or None."""
        return self._one(lambda: self.client.get_model_version_by_alias(name, alias))

    def by_number(self, name: str, number: int) -> Version | None:
        """The version of that number, or None."""
        return self._one(lambda: self.client.get_model_version(name, str(number)))

    def by_manifest(self, name: str, manifest_sha256: str) -> Version | None:
        """The newest version that holds the export folder of this manifest, or None."""
        query = f"name = '{name}' and tags.manifest_sha256 = '{manifest_sha256}'"
        with reported():
            records = self.client.search_model_versions(query)
        found = [_version(record) for record in records if record.status == "READY"]
        return max(found, key=lambda version: version.number, default=None)

    def aliases(self, name: str) -> dict[str, int]:
        """Alias -> version number; empty for a model that is not registered."""
        with reported(absent={}) as absent:
            return {alias: int(number) for alias, number in self.client.get_registered_model(name).aliases.items()}
        return absent.value

    def listed(self, most: int) -> list[tuple[Version, list[str]]]:
        """Versions of every registered model with their aliases: those with one first, then the newest, `most` each."""
        with reported():
            models = list(self.client.search_registered_models())
        listed = []
        for model in models:
            with reported():
                order, quoted = ["version_number DESC"], model.name.replace("'", "")
                records = self.client.search_model_versions(f"name = '{quoted}'", max_results=most, order_by=order)
            for one in (_version(record) for record in records if record.status == "READY"):
                listed.append((one, sorted(a for a, number in model.aliases.items() if int(number) == one.number)))
        # The sort is stable, so names and numbers keep their order inside each group.
        rank = {CHAMPION: 0, CHALLENGER: 1}
        return sorted(listed, key=lambda entry: min((rank.get(alias, 2) for alias in entry[1]), default=3))

    def _one(self, ask: Any) -> Version | None:
        with reported(absent=None) as absent:
            return _version(ask())
        return absent.value

    def _missing(self, name: str, wanted: str, *, is_alias: bool) -> str:
        present = self.aliases(name)
        where = f"in MLflow at {redacted(tracking_uri())}"
        if is_alias and present:
            known = ", ".join(f"{alias} (version {number})" for alias, number in sorted(present.items()))
            judge = f"; `python -m flows.promote {name}` judges the challenger" if wanted == CHAMPION else ""
            return f"model {name!r} has no alias {wanted!r}; it has {known}{judge}"
        if is_alias:
            return f"no model {name!r} with the alias {wanted!r} {where}; {how_to_register(name)}"
        return f"no {wanted} of a model {name!r} {where}"

    # Writing ---------------------------------------------------------------------------------------------------------

    def set_aliases(self, name: str, aliases: Mapping[str, int]) -> None:
        """Point aliases at versions, one by one in the order given."""
        with reported():
            for alias, number in aliases.items():
                self._marks.set_registered_model_alias(name, alias, str(number))

    def set_tags(self, version: Version, tags: Mapping[str, object]) -> None:
        """Set tags of a version; None removes one."""
        with reported():
            for key, value in tags.items():
                if value is not None:
                    self._marks.set_model_version_tag(version.name, str(version.number), key, str(value))
                elif key in version.tags:
                    self._marks.delete_model_version_tag(version.name, str(version.number), key)

    def record(self, version: Version, path: str, document: Mapping[str, Any]) -> None:
        """Keep a JSON document with the run of the version; does nothing if the run was deleted."""
        if version.run_id is None:
            return
        with reported(absent=None):
            self.client.log_dict(version.run_id, dict(document), path)

    def recorded(self, version: Version, path: str) -> dict[str, Any] | None:
        """The document that :meth:`record` kept under `path`, or None."""
        if version.run_id is None:
            return None
        with tempfile.TemporaryDirectory() as folder, reported(absent=None):
            kept = self.client.list_artifacts(version.run_id, str(Path(path).parent))
            if path not in [entry.path for entry in kept]:
                return None
            local = Path(self.client.download_artifacts(version.run_id, path, folder))
            try:
                return load_json(local)
            except DocumentError as error:
                raise ModelError(f"{version}: {path} of its run is not readable as JSON ({error})") from None
        return None

    def checkpoint(self, version: Version, folder: Path) -> Path:
        """The best weights of the training that the version was exported from, in training form, fetched into `folder`.

        Raises :class:`ModelError` where its run does not have them.
        """
        with reported(absent=None):
            kept = self.client.list_artifacts(version.run_id or "", str(Path(CHECKPOINT).parent))
            if CHECKPOINT in [entry.path for entry in kept]:
                return Path(self.client.download_artifacts(version.run_id, CHECKPOINT, str(folder)))
        raise ModelError(f"{version}: its run does not have the weights of the training ({CHECKPOINT})")

    def register(
        self,
        export: Path,
        *,
        name: str,
        run_id: str,
        origin: Mapping[str, object],
        measured: Mapping[str, object],
        example: bytes | None = None,
    ) -> tuple[Version, bool]:
        """Make the export folder a version of `name` with the alias `challenger`.

        Returns the version, and whether it is new. A folder that is registered already keeps its version: the tags
        `measured` are updated, those of its `origin` stay as first recorded. The version is signed if the environment
        has a key. `example` is an image file's bytes, stored as the model's input example. Raises :class:`ModelError`
        for a folder that does not match its manifest.
        """
        sums = check_folder(export)
        manifest = sha256_file(export / DESCRIPTION)
        signed = signature.sign(name, manifest)  # before anything is written: a bad key fails here
        proof = {"run_id": run_id, "artefact_sha256": sums[ONNX], "manifest_sha256": manifest}
        # In the home: copies of the project register in the same MLflow.
        with file_lock(home() / STATE / f"register-{name}.lock"):
            version = self.by_manifest(name, manifest)
            new = version is None
            if version is None:
                with reported():
                    taken = foreign(self.client, name)
                if taken is not None:
                    raise ModelError(taken)
                version = self._create(export, name, run_id, {**origin, **measured, **proof}, example)
            else:
                self.set_tags(version, {k: v for k, v in measured.items() if version.tags.get(k) != str(v)})
            self._sign(version, manifest, signed)
            challenger = self.by_alias(name, CHALLENGER)
            if challenger is None or challenger.number != version.number:
                self.set_aliases(name, {CHALLENGER: version.number})
        found = self.by_number(name, version.number)
        return (found or version), new

    def _create(
        self, export: Path, name: str, run_id: str, tags: Mapping[str, object], example: bytes | None
    ) -> Version:
        import mlflow

        with reported(), self._run_as_it_was(run_id):
            with mlflow.start_run(run_id=run_id):
                logged = log_model(export, example)
            # Tags are set with the version: a kill between the two would leave a version without an identity.
            text = {key: str(value) for key, value in tags.items() if value is not None}
            return _version(mlflow.register_model(logged.model_uri, name, tags=text))

    def _sign(self, version: Version, manifest_sha256: str, signed: str | None) -> None:
        """Store the signature next to the export folder, for those who load the model by MLflow, and as a tag."""
        if signed is None or version.tags.get(SIGNATURE) == signed:
            return
        document = {"name": version.name, "manifest_sha256": manifest_sha256, "signature": signed}
        with reported(), tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / signature.SIGNATURE
            write_json(file, document)
            source = self.client.get_model_version(version.name, str(version.number)).source
            self.client.log_model_artifact(source.removeprefix("models:/"), str(file), "artifacts")
        # Last: a version with the tag has both.
        self.set_tags(version, {SIGNATURE: signed})

    def sign(self, version: Version) -> None:
        """Sign a registered version after checking its files against its manifest.

        Raises :class:`ConfigError` if no signing key is set, and :class:`ModelError` for a changed byte, or for an
        existing signature by none of the keys to verify with: a person must look into that.
        """
        manifest = manifest_of(version)
        signed = signature.sign(version.name, manifest)
        if signed is None:
            raise ConfigError(f"{version} cannot be signed: {signature.SIGNING_KEY} is not set")
        if version.tags.get(SIGNATURE):
            self.require_signature(version)
        _fetched(version, manifest, DOWNLOADS)
        self._sign(version, manifest, signed)

    def require_signature(self, version: Version) -> None:
        """Raise ModelError for a version without a good signature, if the environment has keys to verify with."""
        manifest, signed = version.tags.get("manifest_sha256", ""), version.tags.get(SIGNATURE)
        signature.require(version.name, manifest, signed, what=str(version))

    @contextmanager
    def _run_as_it_was(self, run_id: str) -> Iterator[None]:
        """Restore the end of a run that MLflow reopens to log a model."""
        import mlflow

        before = self.client.get_run(run_id).info
        mlflow.set_experiment(experiment_id=before.experiment_id)
        try:
            yield
        finally:
            if before.end_time is not None:
                self.client.set_terminated(run_id, before.status, before.end_time)

    # Runs ------------------------------------------------------------------------------------------------------------

    def run_for(self, run: Mapping[str, Any], *, experiment: str, name: str) -> str:
        """Id of the run in a training's `run.json`; if this server does not have it any more, of a new one."""
        run_id = run.get("run_id")
        if run_id:
            with reported(absent=None):
                if delivery.run_exists(self.client, run_id):
                    return str(run_id)
        with reported():
            identifier = experiment_id(self.client, experiment)
            mark = str(run.get("fingerprint", ""))
            found = self.client.search_runs([identifier], f"tags.fingerprint = '{mark}'", max_results=1) if mark else []
            if found:
                return found[0].info.run_id
            log.info("MLflow does not have the run of this training; the model gets a new one")
            created = self.client.create_run(identifier, run_name=name, tags={"fingerprint": mark})
            self.client.set_terminated(created.info.run_id)
            return created.info.run_id

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Final figures of a run."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with reported():
            items = [Metric(metric_name(key), value, now, 0) for key, value in metrics.items()]
            self.client.log_batch(run_id, metrics=items)

    def log_page(self, run_id: str, page: Path) -> None:
        """A page of a run, under `reports`."""
        with reported():
            self.client.log_artifact(run_id, str(page), "reports")


def download_model(uri: str, folder: Path = DOWNLOADS) -> Path:
    """Fetch and verify the export folder of a version; a folder fetched before is verified and reused.

    `uri` is `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Raises :class:`ModelError` if there is no such version or
    a byte differs from what was registered or signed, and :class:`RegistryUnavailableError` if MLflow is away.
    """
    registry = ModelRegistry()
    version = registry.resolve(uri)
    manifest = manifest_of(version)
    registry.require_signature(version)
    return _fetched(version, manifest, folder)


def manifest_of(version: Version) -> str:
    """The sha256 of the manifest that a version was registered with. Raises :class:`ModelError` if it has none."""
    try:
        return version.tags["manifest_sha256"]
    except KeyError:
        raise ModelError(f"{version} has no tag manifest_sha256; it was not registered by this project") from None


def _fetched(version: Version, expected: str, folder: Path) -> Path:
    """The export folder on this machine, verified."""
    target = folder / version.name / f"{version.number}-{expected[:12]}"
    if _is_whole(target, expected):
        return target
    # One process at a time: a second one would remove the folder that the first has just put in place.
    with file_lock(target.with_name(f".{target.name}.lock")):
        if not _is_whole(target, expected):
            _fetch(version, expected, target)
    return target


def _is_whole(target: Path, expected: str) -> bool:
    if not target.is_dir():
        return False
    try:
        _verified(target, expected)
    except (ModelError, FileNotFoundError) as error:  # the latter while another process replaces it
        log.warning("%s; it is fetched again", error)
        return False
    return True


def _fetch(version: Version, expected: str, target: Path) -> None:
    import mlflow

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as temporary:
        with reported():
            fetched = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=temporary))
        manifests = list(fetched.glob(f"artifacts/*/{DESCRIPTION}"))
        if len(manifests) != 1:
            raise ModelError(f"{version} holds no export folder")
        _verified(manifests[0].parent, expected)
        shutil.rmtree(target, ignore_errors=True)
        manifests[0].parent.replace(target)


def _verified(folder: Path, manifest_sha256: str) -> None:
    check_folder(folder)
    if sha256_file(folder / DESCRIPTION) != manifest_sha256:
        raise ModelError(f"{folder / DESCRIPTION}: not the manifest that was registered: the model was changed")


def _version(found: Any) -> Version:
    """MLflow's record as ours. MLflow gives the number as an int on SQLite and as a str over HTTP."""
    return Version(found.name, int(found.version), found.run_id or None, dict(found.tags or {}))
