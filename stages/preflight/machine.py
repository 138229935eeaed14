"""Requirements on this machine: writable folders, disk space, keys, a place for copies of the states."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from stages.preflight.findings import Findings
from stages.project.home import STATE
from stages.project.params import Flow, Params
from stages.project.workspace import dataset_document, model_dir, reports
from stages.training.state_remote import SWITCH, open_store, remote_address
from stages.training.state_store import StoreError
from yolov7 import signature
from yolov7.errors import ConfigError, ModelError, YoloError
from yolov7.folders import gigabytes
from yolov7.train.chain import link_of

_WRITTEN = (STATE, Path("models"), Path("reports"))
_STATE_BYTES, _WEIGHT_BYTES = 12, 4
"""Per parameter: network, average and momentum in a state; weights in any other file."""
_STATES, _WEIGHTS, _FORMS = 3, 4, 3
"""States at once (two and the one being written); best and last, here and among the outputs; exported files without
`export.formats`."""


def check_folders(variants: Iterable[str], found: Findings) -> None:
    """The folders that stages write to."""
    made = ("train", "quantized", "export")
    own = [folder for v in variants for folder in (*(model_dir(v) / name for name in made), reports(v))]
    for folder in (*_WRITTEN, *own):
        present = next(each for each in (folder.resolve(), *folder.resolve().parents) if each.exists())
        if any(f"{present}: " in line for line in found.problems):
            continue
        if not present.is_dir() or not os.access(present, os.W_OK | os.X_OK):
            found.problem(f"{present}: not a folder that can be written to; {folder} belongs there")


def check_space(params: Params, variant: str, found: Findings) -> None:
    """Room for the states, the weights and the exported files of one variant, less what is there already."""
    parameters = _parameters(params, variant)
    if parameters is None:
        return
    files = _WEIGHTS + _FORMS + len(params.export.formats)
    needed = parameters * (_STATES * _STATE_BYTES + files * _WEIGHT_BYTES)
    if link_of(params.train_for(variant)) is not None:  # two trainings: the first leaves states, best and last
        needed += parameters * (_STATES * _STATE_BYTES + 2 * _WEIGHT_BYTES)
    old = [*(STATE / "train" / variant).glob("*/*"), *(Path("models") / variant).rglob("*")]
    needed -= sum(path.stat().st_size for path in old if path.is_file())
    free = shutil.disk_usage(Path.cwd()).free
    if free < needed:
        found.problem(
            f"{Path.cwd()}: training and exporting {variant} needs {gigabytes(needed)} of disk space; "
            f"{gigabytes(free)} are free"
        )


def _parameters(params: Params, variant: str) -> int | None:
    """Parameters of the network; None where it cannot be made, which the training itself explains."""
    from yolov7.model import create_model
    from yolov7.model.cost import count_parameters
    from yolov7.model.trained import training_network

    try:
        classes = len(dataset_document(needs={"classes": list})["classes"])
        network = training_network(variant, params.train_for(variant))
        return count_parameters(create_model(network, classes))
    except (YoloError, KeyError, TypeError):
        return None


def check_keys(found: Findings) -> None:
    """The keys that sign and verify registered models can be read, and go together."""
    digest = "0" * 64
    try:
        signed = signature.sign("probe", digest)
        signature.require("probe", digest, signed, what="a registered model")
    except ConfigError as error:
        found.problem(str(error))
    except ModelError:
        if os.environ.get(signature.SIGNING_KEY):
            found.problem(
                f"{signature.VERIFY_KEY} does not hold the public key of {signature.SIGNING_KEY}: the gate would "
                "refuse what is registered"
            )
        else:
            found.warning(
                f"{signature.VERIFY_KEY} is set and {signature.SIGNING_KEY} is not: the gate refuses the new version "
                "until `python -m flows.promote --sign` has signed it"
            )


def check_state_remote(settings: Flow, found: Findings) -> None:
    """Copies of training states can be written where `flow.state_remote` says."""
    address = remote_address(settings)
    if not address:
        return
    where = SWITCH if SWITCH in os.environ else "params.yaml: flow.state_remote"
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme not in ("", "s3") or (address.startswith("s3:/") and not address.startswith("s3://")):
        found.problem(f"{where}: {address}: a folder or s3://BUCKET/PREFIX is expected")
        return
    name = f".probe-{uuid.uuid4().hex[:8]}"
    try:
        store = open_store(address)
        local = STATE / name
        local.parent.mkdir(exist_ok=True)
        local.write_text("probe\n", encoding="utf-8")
        try:
            store.put(local, name)
            store.remove(name)
        finally:
            local.unlink(missing_ok=True)
    except StoreError as error:
        text = f"{where}: {address}: no copy of a training state can be written: {error}"
        if error.lasting:
            found.problem(text)
        else:
            found.warning(f"{text}; the training continues without, and tries again")
