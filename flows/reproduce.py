"""Rebuild a registered version from its git revision and its data, and compare the result.

    python -m flows.reproduce models:/NAME@champion [--keep]

The revision is checked out in a worktree, the data comes by its DVC hash, and the stages from `validate` to `evaluate`
run there again, even if the run cache has their results. Nothing is registered; DVC's cache and MLflow do not receive
the result. Exit code: 0 byte-equal, 1 different, 2 could not be rebuilt.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from flows.markdown import duration
from flows.promotion.models import variant_of
from flows.runner.pipeline import CODE, Log, Pipeline, StageError
from flows.runner.worktree import bring, bring_files, commit_of, hashes_of, worktree
from stages.project import params as params_module
from stages.project.command import NO_TELEMETRY, check_system
from stages.project.provenance import DIRTY, UNKNOWN, UNTRACKED
from stages.project.redaction import log_to_stderr, redacted
from stages.project.workspace import INGESTED, dataset_document, measured, model_dir
from stages.registry.versions import ModelRegistry, Version, download_model
from stages.training.state_remote import SWITCH
from yolov7.artefact import ONNX
from yolov7.errors import DataError, ModelError, YoloError
from yolov7.files import sha256_file

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
STAGES = ("validate", "train", "quantize", "export", "evaluate")
_FOLDERS = ("coco", "voc", "yolo")
"""Sources whose data is in a folder outside git: a fresh checkout cannot ingest them again."""
_NEEDED = ("git_revision", "data_dvc", "data_sha256", "artefact_sha256", "manifest_sha256", "AP")


@dataclass(frozen=True)
class Origin:
    """Revision, data and figures of a version, from its tags."""

    version: Version
    variant: str
    revision: str
    data_dvc: str
    data_sha256: str
    artefact_sha256: str
    ap: float
    packages_sha256: str | None
    """Hash of the `requirements.lock` it was registered with."""


@dataclass(frozen=True)
class Reproduction:
    """A version that was built again, compared with the registered one."""

    version: Version
    revision: str
    artefact_sha256: str
    """Hash of the ONNX file built now."""
    equal: bool
    """It is byte for byte the registered file."""
    parameter_difference: float
    """Largest absolute difference of a parameter; infinite if the networks differ in shape."""
    parameter: str
    """The parameter with that difference."""
    ap: float
    """Test AP of the model built now."""
    recorded_ap: float
    seconds: float

    def describe(self) -> str:
        """The comparison in one line."""
        head = f"{self.version} of {self.revision[:12]}: "
        took = f" Rebuilt in {duration(self.seconds)}."
        if self.equal:
            return f"{head}byte-equal ({ONNX}, sha256 {self.artefact_sha256[:12]}), AP {self.ap:.4f}.{took}"
        if math.isinf(self.parameter_difference):
            parameters = f"its parameters have other shapes ({self.parameter})"
        elif self.parameter_difference == 0.0:
            parameters = "all parameters are equal"
        else:
            parameters = f"parameters differ by up to {self.parameter_difference:.3g} ({self.parameter})"
        ap = f"AP {self.ap:.4f} against {self.recorded_ap:.4f} ({self.ap - self.recorded_ap:+.4f})"
        return f"{head}NOT byte-equal: {parameters}; {ap}.{took}"


def origin_of(version: Version, variant: str) -> Origin:
    """Read the tags of a version. Raises :class:`ModelError` if it cannot be rebuilt from them."""
    missing = [name for name in _NEEDED if not version.tags.get(name)]
    if missing:
        raise ModelError(f"{version} has no tag {missing[0]}; it was not registered by this project")
    revision = version.tags["git_revision"]
    if revision == UNKNOWN:
        raise ModelError(f"{version} was registered outside git: its code is unknown")
    if revision.endswith(DIRTY):
        changed = version.tags.get("git_changes", "not recorded")
        raise ModelError(
            f"{version} was registered from {revision.removesuffix(DIRTY)} with changes that were not committed "
            f"({changed}); only a version of a committed tree can be rebuilt"
        )
    if version.tags["data_dvc"] == UNTRACKED:
        raise ModelError(f"{version}: its data was not tracked by DVC; register the result of `dvc repro`")
    return Origin(
        version=version,
        variant=variant,
        revision=revision,
        data_dvc=version.tags["data_dvc"],
        data_sha256=version.tags["data_sha256"],
        artefact_sha256=version.tags["artefact_sha256"],
        ap=float(version.tags["AP"]),
        packages_sha256=version.tags.get("packages_sha256"),
    )


def reproduce(uri: str, *, root: Path | None = None, keep: bool = False, log: Log = log) -> Reproduction:
    """Rebuild the version that `uri` names (`models:/NAME@ALIAS` or `models:/NAME/NUMBER`) and compare.

    `keep` leaves the worktree in place. Raises :class:`YoloError` if version, revision or data are not available, or if
    a stage fails.
    """
    root = (root or Path.cwd()).resolve()
    params = params_module.load(root / params_module.PARAMS_FILE)
    version = ModelRegistry().resolve(uri)
    origin = origin_of(version, variant_of(version, params))
    revision = commit_of(root, origin.revision)
    registered = download_model(version.uri, root / ".local/models")
    name = f"reproduce-{version.name}-{version.number}"
    with worktree(root, revision, name, log, keep=keep) as folder:
        variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", SWITCH: ""}
        limit = params.flow.stage_timeout_hours * 3600
        with Pipeline(folder, timeout_seconds=limit, variables=variables) as pipeline:
            _warn_of_packages(origin, folder, log)
            bring_files(pipeline, origin.variant, log)
            if pipeline.has_stage(CODE):
                pipeline.reproduce(CODE, log, commit=False)
            _bring_data(pipeline, origin, log)
            seconds = 0.0
            for stage in filter(pipeline.has_stage, STAGES):
                full = stage if stage == "validate" else f"{stage}@{origin.variant}"
                log.info("%s: running %s", revision[:12], full)
                seconds += pipeline.reproduce(full, log, force=True, commit=False).seconds
        return _compare(origin, registered, folder, seconds)


def _warn_of_packages(origin: Origin, folder: Path, log: Log) -> None:
    path = folder / "requirements.lock"
    if origin.packages_sha256 and path.is_file() and sha256_file(path) != origin.packages_sha256:
        log.warning(
            "requirements.lock of that revision differs from the one that %s was registered with", origin.version
        )
    here = Path("requirements.lock")
    if path.is_file() and here.is_file() and sha256_file(path) != sha256_file(here):
        log.warning(
            "the packages of this environment differ from those of that revision; they may cause small differences"
        )


def _bring_data(pipeline: Pipeline, origin: Origin, log: Log) -> None:
    """Bring the same data: by its hash, or from the source if that still gives the same."""
    try:
        bring(pipeline, {"ingest": {str(INGESTED): origin.data_dvc}}, log)
    except DataError as error:
        source = params_module.load(pipeline.root / params_module.PARAMS_FILE).data.source
        if source in _FOLDERS:
            raise
        log.info("%s; ingesting again from the source %s", error, source)
        pipeline.reproduce("ingest", log, force=True, commit=False)
        found = hashes_of(pipeline.root, ("ingest",))["ingest"].get(str(INGESTED))
        if found != origin.data_dvc:
            raise DataError(f"{error}; and the source {source} gives other data now ({found})") from None
    document = dataset_document(pipeline.root / INGESTED)
    if document["sha256"] != origin.data_sha256:
        raise DataError(f"sha256 {document['sha256']} where {origin.data_sha256} was registered", path=INGESTED)


def _compare(origin: Origin, registered: Path, folder: Path, seconds: float) -> Reproduction:
    built = folder / model_dir(origin.variant) / "export"
    sha256 = sha256_file(built / ONNX)
    parameter, difference = largest_difference(built / WEIGHTS, registered / WEIGHTS)
    metrics = measured(origin.variant, folder)
    return Reproduction(
        version=origin.version,
        revision=origin.revision,
        artefact_sha256=sha256,
        equal=sha256 == origin.artefact_sha256,
        parameter_difference=difference,
        parameter=parameter,
        ap=metrics["AP"],
        recorded_ap=origin.ap,
        seconds=seconds,
    )


def largest_difference(ours: Path, theirs: Path) -> tuple[str, float]:
    """The parameter that differs most in two weight files, and its difference; infinite if names or shapes differ."""
    one, other = load_file(ours), load_file(theirs)
    if strange := sorted(one.keys() ^ other.keys()):
        return strange[0], math.inf
    worst, most = "", 0.0
    for name, values in one.items():
        if values.shape != other[name].shape:
            return name, math.inf
        difference = np.abs(values.astype(np.float64) - other[name].astype(np.float64)).max(initial=0.0)
        if not difference <= most:  # NaN counts as a difference
            worst, most = name, float(difference) if np.isfinite(difference) else math.inf
    return worst, most


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.reproduce", description="Rebuild a registered version.")
    parser.add_argument("model", metavar="MODEL", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument(
        "--keep", action="store_true", help="keep the worktree with everything that was built, in .local"
    )
    args = parser.parse_args(arguments)
    os.environ.update(NO_TELEMETRY)
    log_to_stderr()
    try:
        check_system()
        found = reproduce(args.model, keep=args.keep)
    except StageError as error:
        print(f"error: {redacted(error)} (--keep leaves the worktree and its logs)", file=sys.stderr)  # noqa: T201
        return 2
    except YoloError as error:
        print(f"error: {redacted(error)}", file=sys.stderr)  # noqa: T201 - the one line a user sees
        return 2
    print(found.describe())  # noqa: T201
    return 0 if found.equal else 1


if __name__ == "__main__":
    sys.exit(main())
