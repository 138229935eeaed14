"""Int8 files of an export folder: which there are, their size, and how each was made (`optional/formats.json`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolov7.artefact import DESCRIPTION, FILE_OF_FORMAT, FORMATS_FILE, INT8_FORMATS, OPTIONAL, read_description
from yolov7.documents import DocumentError, load_json
from yolov7.errors import ModelError

SENSITIVITY_PAGE = f"{OPTIONAL}/sensitivity.html"
"""What each layer costs in eight bits, for people, where that was measured."""
_RUNTIMES = {".onnx": "ONNX Runtime", ".xml": "OpenVINO"}


@dataclass(frozen=True)
class Int8Making:
    """How an int8 file was made."""

    file: str
    """Its name, without the folder."""
    layers: int
    """Convolutions that can be quantised."""
    kept_in_float: Sequence[str] = ()
    """Those that stayed in float, the most sensitive first; by their names in the network where these are recorded."""
    ap: float = -1.0
    """On the validation images of the export; -1 where it is not recorded."""
    float_ap: float = -1.0
    calibration_images: int = 0
    validation_images: int = 0
    steps: Sequence[tuple[int, float]] = ()
    """Each attempt: layers in float, and AP."""
    method: str = ""
    """How ranges were chosen, if recorded."""
    pictures: str = ""
    """How calibration images were framed, if recorded."""
    shared: bool = False
    """Values that are joined have one range."""
    rounding: str = "nearest"
    """How weights were rounded: nearest or compensated."""
    trained: bool = False
    """Ranges and weights were trained further (quantisation-aware training), not only calibrated."""
    metric: str = "shift"
    """What layers were ranked by."""
    sensitivity: Sequence[Mapping[str, Any]] = ()
    """What each layer costs alone in eight bits, the worst first: layer, kind, channels, mse, snr, cosine, shift, ap,
    as far as recorded; empty if it was not measured."""

    @property
    def how(self) -> str:
        """Training and calibration in a few words."""
        # A training begins with ranges of its own settings; these are of the values that it does not round.
        kind = "quantisation-aware training; other" if self.trained else "post-training,"
        ranges = f"ranges by {self.method}" if self.method else "ranges"
        framed = f" ({self.pictures})" if self.pictures else ""
        shared = ", shared where values are joined" if self.shared else ""
        rounded = ", weights by compensated rounding" if self.rounding == "compensated" else ""
        return f"{kind} {ranges} on {self.calibration_images} training images{framed}{shared}{rounded}"

    @property
    def kept(self) -> str:
        """The layers in float in a few words."""
        count = len(self.kept_in_float)
        return f"{count} of {self.layers}: {', '.join(self.kept_in_float)}" if count else f"none of {self.layers}"

    @property
    def attempts(self) -> str:
        """AP after each attempt."""
        return "; ".join(f"{count} in float: AP {ap:.4f}" for count, ap in self.steps)


def runtime_of(file: str) -> str:
    """The runtime that a file is measured with, and the one it is for if that is another."""
    if file == Path(FILE_OF_FORMAT["onnx-int8-tensorrt"]).name:
        return "ONNX Runtime (for TensorRT)"  # an engine is tied to one GPU; this runtime reads the same numbers
    return _RUNTIMES.get(Path(file).suffix, "")


def int8_files(folder: Path) -> list[str]:
    """The int8 files that the manifest of an export folder lists, as paths in it; none for a folder without manifest.

    Raises :class:`ModelError` for a manifest that cannot be read.
    """
    if not (folder / DESCRIPTION).is_file():
        return []
    listed = read_description(folder)["files"]
    return [file for name, file in FILE_OF_FORMAT.items() if name in INT8_FORMATS and file in listed]


def size_mb(file: Path) -> float:
    """Size of a model file in 10^6 bytes, with the `.bin` of an `.xml`."""
    parts = [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]
    return sum(part.stat().st_size for part in parts) / 1e6


def read_makings(folder: Path) -> dict[str, Int8Making]:
    """How the int8 files of an export folder were made, by file name; empty where that is not recorded.

    Raises :class:`ModelError` for a record that cannot be read.
    """
    path = folder / FORMATS_FILE
    if not path.is_file():
        return {}
    try:
        return makings(load_json(path).get("int8", {}))
    except (DocumentError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: not a record of an export's formats ({error!r:.100}); export again") from None


def makings(reports: Mapping[str, Any]) -> dict[str, Int8Making]:
    """:class:`Int8Making` by file name, from the entry `int8` of formats.json (format name -> report)."""
    found = [_making(name, report) for name, report in reports.items()]
    return {making.file: making for making in found}


def _making(name: str, report: Mapping[str, Any]) -> Int8Making:
    # Exports of earlier revisions have fewer entries.
    known = FILE_OF_FORMAT.get(name, name)  # type: ignore[call-overload]  # a name of another revision
    rows = [dict(row) for row in report.get("layer_sensitivity", ())]
    if not rows:
        moved = sorted(dict(report.get("sensitivity", {})).items(), key=lambda item: -float(item[1]))
        rows = [{"layer": str(layer), "shift": float(shift)} for layer, shift in moved]
    named = {str(row["node"]): str(row["layer"]) for row in rows if "node" in row}
    return Int8Making(
        file=str(report.get("file", Path(known).name)),
        layers=int(report["layers"]),
        kept_in_float=tuple(named.get(str(node), str(node)) for node in report["kept_in_float"]),
        ap=float(report.get("ap", -1.0)),
        float_ap=float(report.get("float_ap", -1.0)),
        calibration_images=int(report.get("calibration_images", 0)),
        validation_images=int(report.get("validation_images", 0)),
        steps=tuple((int(step["in_float"]), float(step["AP"])) for step in report.get("steps", ())),
        method=str(report.get("method", "")),
        pictures=str(report.get("pictures", "")),
        shared=bool(report.get("share_ranges", False)),
        rounding=str(report.get("rounding", "nearest")),
        trained=bool(report.get("trained", False)),
        metric=str(report.get("metric", "shift")),
        sensitivity=tuple(rows),
    )
