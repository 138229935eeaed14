"""The layout of an export folder: its files, the optional formats, and the manifest `model.json`.

Writing (:mod:`yolov7.export.folder`), loading (:mod:`yolov7.predict.load`), signing and the model registry all take it
from here; nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from yolov7.config import Group, RangeMethod
from yolov7.documents import DocumentError, load_json
from yolov7.errors import ModelError
from yolov7.files import sha256_file
from yolov7.metadata import StatedFolder, stated

RuntimeName = Literal["onnx", "torch", "openvino"]
PrecisionName = Literal["float32", "float16", "int8"]
FormatName = Literal["openvino", "openvino-float16", "onnx-int8", "openvino-int8", "onnx-int8-tensorrt", "onnx-raw"]

DESCRIPTION = "model.json"
"""The manifest: content of the folder, with the sha256 of every file. A folder with one is an export folder."""
SAFETENSORS, ONNX, ONNX_NMS = "model.safetensors", "model.onnx", "model-nms.onnx"
QUANTIZED = "quantized.safetensors"
"""The network of a quantisation-aware training, in its folder: what int8 files are made of."""
OPTIONAL = "optional"
"""Subfolder for the files that not every export has."""
FORMATS_FILE = f"{OPTIONAL}/formats.json"
"""Lists the optional formats, the layers kept in float in those of int8, and the result of the TensorRT check."""
SENSITIVITY_FILE = f"{OPTIONAL}/sensitivity.csv"
"""What each layer costs in eight bits, if that was measured."""

FORMATS: tuple[FormatName, ...] = get_args(FormatName)
FILE_OF_FORMAT: dict[FormatName, str] = {
    "openvino": f"{OPTIONAL}/openvino.xml",
    "openvino-float16": f"{OPTIONAL}/openvino-float16.xml",
    "onnx-int8": f"{OPTIONAL}/model-int8.onnx",
    "openvino-int8": f"{OPTIONAL}/openvino-int8.xml",
    "onnx-int8-tensorrt": f"{OPTIONAL}/model-int8-tensorrt.onnx",  # to build engines from
    "onnx-raw": f"{OPTIONAL}/model-raw.onnx",  # the network of model.onnx again, so no runtime chooses it
}
"""Optional formats, and the file of each."""
INT8_FORMATS: frozenset[FormatName] = frozenset(("onnx-int8", "openvino-int8", "onnx-int8-tensorrt"))

FILES: dict[tuple[RuntimeName, PrecisionName], str] = {
    ("onnx", "float32"): ONNX,
    ("onnx", "int8"): FILE_OF_FORMAT["onnx-int8"],
    ("torch", "float32"): SAFETENSORS,
    ("openvino", "float32"): FILE_OF_FORMAT["openvino"],
    ("openvino", "float16"): FILE_OF_FORMAT["openvino-float16"],
    ("openvino", "int8"): FILE_OF_FORMAT["openvino-int8"],
}
"""The file for a runtime and a precision."""


class Int8Settings(Group):
    """Parameters of the int8 formats."""

    max_ap_drop: float = Field(default=0.005, ge=0.0, le=1.0)
    """Largest allowed drop of AP on the validation images (0.005 is half a point of a hundred); beyond it, the layers
    that cost most return to float, one group after another."""
    calibration_images: int = Field(default=128, ge=1)
    """Training images that ranges are measured on, as many as the published partial quantisation took."""
    validation_images: int = Field(default=500, ge=1)
    """Validation images that AP is measured on, evenly spread over the split."""
    method: RangeMethod = "mse"
    """How the range of a value is chosen (:func:`yolov7.ranges.range_of`): `max`, `percentile` (99.99), `mse` or
    `entropy`."""
    images: Literal["letterbox", "mosaic"] = "letterbox"
    """How calibration images are framed: as in evaluation, or with the augmentation of the training (as YOLOv6's)."""
    share_ranges: bool = False
    """Values that are joined by concatenations, pools and the like have one range."""
    rounding: Literal["compensated", "nearest"] = "compensated"
    """How weights are rounded: so that their errors cancel in a layer's outputs on the calibration images
    (:mod:`yolov7.export.compensate`), or each to its nearest step. Networks trained in eight bits keep the nearest."""
    metric: Literal["shift", "mse", "snr", "cosine", "ap"] = "shift"
    """What layers are ranked by for their way back to float. `ap` costs an evaluation per layer; the others differ in
    what they compare on a few images (docs/export.md)."""
    keep_in_float: int | None = Field(default=None, ge=0)
    """Layers that stay in float, the most sensitive ones, whatever AP is; null: as many as `max_ap_drop` asks for."""
    sensitivity: bool = False
    """Measure every layer also where none has to return to float (`optional/sensitivity.csv`)."""


def listed(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The manifest's entries (`files` of model.json) for files of the folder: sha256 and bytes, by name."""
    return {name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size} for name in names}


def read_description(folder: Path) -> dict[str, Any]:
    """The model.json of an export folder. Raises :class:`ModelError` where it is missing or damaged."""
    file = folder / DESCRIPTION
    try:
        content: dict[str, Any] = load_json(file)
        stated(StatedFolder, content)
    except FileNotFoundError:
        raise ModelError(
            f"{folder}: not an export folder, it has no {DESCRIPTION}; an export that was interrupted leaves none"
        ) from None
    except (OSError, DocumentError) as error:
        raise ModelError(f"{file}: not readable as JSON: {error}") from None
    except ModelError as error:
        raise ModelError(f"{file}: not a list of the folder's files with their sha256: {error}") from None
    return content


def check_beside(file: Path) -> None:
    """Compare a file with the manifest of the export folder it lies in; nothing is checked outside of one.

    So a mixture of two exports, which an interrupted export or a copy leaves, is refused file by file too. Raises
    :class:`ModelError`.
    """
    folder = file.parent.parent if file.parent.name == OPTIONAL else file.parent
    name = file.name if folder == file.parent else f"{OPTIONAL}/{file.name}"
    try:
        entries = stated(StatedFolder, load_json(folder / DESCRIPTION)).files
    except (OSError, DocumentError, ModelError):
        return  # others have files of this name too
    names = [name, str(Path(name).with_suffix(".bin"))] if file.suffix == ".xml" else [name]
    check_files(folder, {"files": {key: {"sha256": entries[key].sha256} for key in names if key in entries}})


def check_files(folder: Path, description: dict[str, Any], names: tuple[str, ...] | None = None) -> None:
    """Compare files (all, or `names`) with the sha256 in the description. Raises :class:`ModelError` if one differs."""
    for name, entry in description["files"].items():
        if names is not None and name not in names:
            continue
        file = folder / name
        # A downloaded description must not lead out of its folder.
        if name.removeprefix(f"{OPTIONAL}/") != Path(name).name or not isinstance(entry, dict) or "sha256" not in entry:
            raise ModelError(f"{folder / DESCRIPTION}: the entry {name!r} under `files` is not a file with its sha256")
        if not file.is_file():
            raise ModelError(f"{file}: missing, but listed in {DESCRIPTION}; fetch or export the folder again")
        if sha256_file(file) != entry["sha256"]:
            raise ModelError(f"{file}: its bytes are not those {DESCRIPTION} lists (sha256); fetch or export it again")


def check_folder(folder: Path) -> dict[str, str]:
    """Compare the whole folder with its manifest; returns file name -> sha256.

    Raises :class:`ModelError` that names the first file that is missing or differs.
    """
    description = read_description(folder)
    check_files(folder, description)
    sums = {name: str(entry["sha256"]) for name, entry in description["files"].items()}
    if ONNX not in sums:
        raise ModelError(f"{folder / DESCRIPTION}: lists no {ONNX}; export the model again")
    return sums
