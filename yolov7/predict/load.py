"""`load_detector`: a predictor from a path or URI.

A URI such as `models:/NAME@ALIAS` belongs to a registry that this library does not know. Packages that do offer a
resolver, a function from the URI to a local path, under the entry point group `yolov7.resolvers`, named after the URI's
scheme. This project's pipeline has one for MLflow's `models:`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import torch

from yolov7.artefact import DESCRIPTION, FILES, PrecisionName, RuntimeName, check_beside, check_files, read_description
from yolov7.device import choose_device
from yolov7.errors import ModelError
from yolov7.model.checkpoint import load_checkpoint
from yolov7.model.detector import Detector
from yolov7.model.spec import Network
from yolov7.predict.about import require_finite
from yolov7.predict.augmented import Views
from yolov7.predict.openvino_runtime import open_openvino
from yolov7.predict.predictor import Predictor
from yolov7.predict.runtimes import (
    DecodingFile,
    DetectingFile,
    DetectingRuntime,
    OnnxRawRuntime,
    Runtime,
    TorchRuntime,
    open_onnx,
)
from yolov7.weights.fetch import published_detector
from yolov7.weights.releases import RELEASED, is_published_name

Resolver = Callable[[str], Path]

RESOLVERS = "yolov7.resolvers"
"""Entry point group of the functions that turn a URI into a local path."""
_URI = re.compile(r"^([a-z][a-z0-9+.-]+):/", re.IGNORECASE)  # two letters at least: `C:/` is a path
_OPENED_BY: dict[str, RuntimeName] = {".onnx": "onnx", ".safetensors": "torch", ".xml": "openvino"}
_KNOWN = ".safetensors, .onnx or .xml"


def load_detector(
    path: str | os.PathLike[str],
    *,
    resolve: Resolver | None = None,
    runtime: RuntimeName | None = None,
    precision: PrecisionName = "float32",
    confidence: float | None = None,
    iou: float | None = None,
    max_detections: int | None = None,
    image_size: int | None = None,
    rectangular: bool = False,
    border: int = 0,
    batch_size: int = 8,
    augment: bool | Views = False,
    device: str = "cpu",
    threads: int = 0,
    network: Network | str | None = None,
) -> Predictor:
    """Load a detector from a file, an export folder, a URI such as `models:/yolov7-tiny@champion`, or by the name of a
    variant with published weights, such as `yolov7-tiny`.

    `path`: a `.safetensors` checkpoint (a training form is re-parameterised; a quantised form computes as its int8
    files do), an `.onnx` file this project exported, an OpenVINO `.xml` with its .bin beside it, or an export folder,
    whose files are checked against the sha256 in its model.json. `runtime` and `precision` choose among the files of a
    folder (default: ONNX in float32, the file that is evaluated). `resolve` turns a URI into a local path (default: the
    installed resolver of its scheme). Published weights are fetched once (:mod:`yolov7.weights`); a file or export
    folder of that name comes first. `threads` is ONNX Runtime's or OpenVINO's, 0 lets it choose. `network` (or
    MODULE:FUNCTION) supplies your own kinds of block for a checkpoint that has them; the other files need none. The
    other parameters are :class:`Predictor`'s.

    Raises :class:`ModelError` for a missing, damaged, changed or foreign file, and for a scheme without a resolver;
    :class:`ConfigError` as :class:`Predictor` does.
    """
    opened = open_runtime(
        path, resolve=resolve, runtime=runtime, precision=precision, device=device, threads=threads, network=network
    )
    if isinstance(opened, DecodingFile | DetectingFile | OnnxRawRuntime):
        opened.file.require_finite()
    return Predictor(
        opened,
        confidence=confidence,
        iou=iou,
        max_detections=max_detections,
        image_size=image_size,
        rectangular=rectangular,
        border=border,
        batch_size=batch_size,
        augment=augment,
    )


def open_runtime(
    path: str | os.PathLike[str],
    *,
    resolve: Resolver | None = None,
    runtime: RuntimeName | None = None,
    precision: PrecisionName = "float32",
    device: str = "cpu",
    threads: int = 0,
    network: Network | str | None = None,
) -> Runtime | DetectingRuntime:
    """The runtime behind :func:`load_detector`."""
    file = _locate(os.fspath(path), resolve)
    of_folder = file.is_dir()
    if of_folder:
        file = _file_of_folder(file, runtime, precision)
    elif precision != "float32":
        raise ModelError(f"{file}: precision {precision!r} selects a file of an export folder, but this is a file")
    if not file.is_file():
        close = difflib.get_close_matches(str(file), list(RELEASED), n=1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        known = f"pass a {_KNOWN} file, an export folder, models:/NAME, or a variant with published weights"
        raise ModelError(f"{file}: no such model{guess}; {known}")
    kind = file.suffix.lower()
    if kind not in _OPENED_BY:
        raise ModelError(f"{file}: a {_KNOWN} file is expected; `yolov7 import-weights` reads published .pt files")
    if runtime is not None and runtime != _OPENED_BY[kind]:
        wanted = next(suffix for suffix, name in _OPENED_BY.items() if name == runtime)
        raise ModelError(f"{file}: runtime {runtime!r} needs a {wanted} file")
    if not of_folder:
        check_beside(file)
    if kind == ".onnx":
        return open_onnx(file, threads=threads, device=device)
    if kind == ".xml":
        return open_openvino(file, threads=threads, device=device)
    model, metadata = load_checkpoint(file, network=network)
    model = model.inference()
    _try(model, file)
    return TorchRuntime(model.to(choose_device(device)), metadata)


@torch.inference_mode()
def _try(model: Detector, file: Path) -> None:
    """One tiny image through the network: its description may fit the weights and still not run.

    Takes milliseconds. Raises :class:`ModelError`.
    """
    try:
        answer = model(torch.zeros(1, 3, model.stride, model.stride))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{file}: the network in its header does not run: {reason}") from None
    require_finite(answer.numpy(), str(file))


def _locate(text: str, resolve: Resolver | None) -> Path:
    if is_published_name(text):
        return published_detector(text)
    uri = _URI.match(text)
    if uri is None or Path(text).exists():
        return Path(text)
    if resolve is None:
        resolve = _installed_resolver(uri.group(1).lower(), text)
    return Path(resolve(text))


def _installed_resolver(scheme: str, uri: str) -> Resolver:
    for entry in entry_points(group=RESOLVERS, name=scheme):
        try:
            found: Resolver = entry.load()
        except ImportError as error:
            raise ModelError(
                f"{uri}: {scheme}: needs a missing package ({error}); `pip install '.[pipeline]'` in the project"
            ) from None
        return found
    raise ModelError(
        f"{uri}: nothing installed resolves {scheme}:/; `pip install '.[pipeline]'` in the project, for models:/"
    )


def _file_of_folder(folder: Path, runtime: RuntimeName | None, precision: PrecisionName) -> Path:
    description = read_description(folder)
    name = FILES.get((runtime or "onnx", precision))
    if name is None:
        raise ModelError(f"{folder}: there is no {precision} file for the runtime {runtime or 'onnx'}")
    if name not in description["files"]:
        more = f"; add it to params.yaml: export.formats (there are {', '.join(description['files'])})"
        raise ModelError(f"{folder}: {DESCRIPTION} lists no {name}{more}")
    check_files(folder, description, tuple(str(Path(name).with_suffix(end)) for end in (Path(name).suffix, ".bin")))
    return folder / name
