"""`export_weights`: an export folder from weights, verified and calibrated on images where there are any."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolov7.artefact import (
    DESCRIPTION,
    FILE_OF_FORMAT,
    FORMATS,
    INT8_FORMATS,
    ONNX,
    ONNX_NMS,
    OPTIONAL,
    SAFETENSORS,
    FormatName,
    Int8Settings,
)
from yolov7.config import parse, train_parameters
from yolov7.data.dataset import TrainDataset
from yolov7.data.index import Index
from yolov7.errors import ConfigError, ModelError, nearest
from yolov7.export import VerifyLimits, VerifyReport, export_folder, limits_of, verify
from yolov7.export.int8 import Int8Exporter
from yolov7.export.records import write_records
from yolov7.export.samples import augmented_like, evenly_spaced
from yolov7.model import Detector, ModelMetadata, load_checkpoint
from yolov7.model.quantized import learnt_ranges
from yolov7.model.spec import Network
from yolov7.model.variants import find_variant, recipe_of
from yolov7.ranges import Range
from yolov7.report.sensitivity import write_sensitivity_page
from yolov7.runs.data import DataSet, open_data


@dataclass(frozen=True)
class Exported:
    """An export folder."""

    folder: Path
    files: Mapping[str, Any]
    """Bytes and sha256 by name, as in `model.json`."""
    report: VerifyReport | None
    """The comparison of every file with the trained network; None without images."""


def export_weights(
    weights: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    formats: Sequence[FormatName] = (),
    data: DataSet | None = None,
    verify_images: int = 32,
    opset: int = 18,
    dynamic: bool = True,
    confidence: float = 0.25,
    iou: float = 0.45,
    max_detections: int = 100,
    int8: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    drop_bad_boxes: bool = False,
    network: Network | str | None = None,
) -> Exported:
    """Re-parameterise a `.safetensors` checkpoint; write model.safetensors, model.onnx, model-nms.onnx and `formats`.

    With `data`, every file is compared with the network on `verify_images` validation images, by tensor, detection and
    AP, as in the pipeline; the int8 formats need it, calibrate on training images and take `int8`
    (:class:`yolov7.artefact.Int8Settings`). The thresholds are those of `model-nms.onnx` and the defaults of the files.
    The int8 files of a quantised network have the ranges that it has learnt; its other files, which round nothing, are
    compared with the same weights without rounding.
    Raises :class:`ConfigError` for an unknown format, or int8 without data; :class:`ModelError` for weights that are no
    checkpoint, and if a file does not compute what the network does; :class:`DataError` as :func:`open_data`.
    """
    needs_int8 = _check_formats(formats, data)
    folder = Path(out)
    _check_folder(folder)
    loaded = _Loaded.of(weights, network)
    trained, metadata = loaded.network, loaded.metadata
    settings = parse(Int8Settings, int8, where="int8")
    with tempfile.TemporaryDirectory(prefix="yolov7-", ignore_cleanup_errors=True) as temporary:
        indices: Mapping[str, Index] = {}
        if data is not None:
            indices = open_data(
                data,
                Path(temporary),
                splits=("train", "val") if needs_int8 else ("val",),
                options=data_options,
                drop_bad_boxes=drop_bad_boxes,
                class_names=tuple(metadata.class_names),
            ).indices
        description = export_folder(
            trained,
            folder,
            metadata=metadata,
            opset=opset,
            dynamic=dynamic,
            confidence=confidence,
            iou=iou,
            max_detections=max_detections,
            formats=formats,
            int8=lambda graph, float_model: Int8Exporter(
                graph,
                float_model,
                calibration=indices["train"],
                validation=indices["val"],
                settings=settings,
                augmented=_augmented(metadata, network, indices["train"]) if settings.images == "mosaic" else None,
                learnt=loaded.learnt,
            ),
        )
        if data is None:
            return Exported(folder, description["files"], None)
        report = _verified(loaded, folder, indices["val"], formats, network=network, images=verify_images)
    write_sensitivity_page(folder, title=metadata.variant)
    write_records(folder, description, report)
    if not report.passed:
        problems = "; ".join(report.problems)
        raise ModelError(f"{folder}: an exported form does not compute what was trained: {problems}; see verify.json")
    return Exported(folder, description["files"], report)


@dataclass(frozen=True)
class _Loaded:
    """A network that is exported: of a quantised one its plain form."""

    network: Detector
    metadata: ModelMetadata
    learnt: Mapping[str, Range]
    """Ranges that a quantised network has learnt; of others none."""

    @classmethod
    def of(cls, weights: str | os.PathLike[str], network: Network | str | None) -> _Loaded:
        trained, metadata = load_checkpoint(weights, network=network or None)
        learnt = learnt_ranges(trained)
        if trained.form == "quantized":
            trained = trained.reparameterize()
            metadata = replace(metadata, form=trained.form)
        return cls(trained, metadata, learnt)


def _check_formats(formats: Sequence[FormatName], data: DataSet | None) -> bool:
    """Returns whether one of them is int8. Raises :class:`ConfigError` for unknown ones, and for int8 without data."""
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"formats: {name!r} is unknown{nearest(name, list(FORMATS))}")
    needs_int8 = not INT8_FORMATS.isdisjoint(formats)
    if data is None and needs_int8:
        raise ConfigError("formats: int8 is calibrated on training images and checked on validation images; give data")
    return needs_int8


def _check_folder(folder: Path) -> None:
    """Raise :class:`ConfigError` for a folder with files of somebody else that the export would replace."""
    ours = any((folder / name).is_file() for name in (DESCRIPTION, SAFETENSORS))
    if os.path.lexists(folder / OPTIONAL) and not ours:
        raise ConfigError(
            f"{folder}: holds `{OPTIONAL}`, not of an export, which would replace it; name another folder"
        )


def _verified(
    loaded: _Loaded,
    folder: Path,
    index: Index,
    formats: Sequence[FormatName],
    *,
    network: Network | str | None,
    images: int,
) -> VerifyReport:
    """Every file of the export folder against the network, on images of `index`."""
    metadata, limits = loaded.metadata, VerifyLimits()
    # The files are of a network of this name, whatever its function calls it.
    own = find_variant(metadata.variant, source=network) if isinstance(network, str) and network else network or None
    return verify(
        loaded.network,
        folder / SAFETENSORS,
        folder / ONNX,
        folder / ONNX_NMS,
        index,
        metadata=metadata,
        network=own,
        images=evenly_spaced(len(index), images),
        limits=limits,
        more={name: (folder / FILE_OF_FORMAT[name], limits_of(name, limits)) for name in formats},
    )


def _augmented(metadata: ModelMetadata, network: Network | str | None, index: Index) -> TrainDataset:
    """Training images with the augmentation of the variant's recipe."""
    recipe = "p5" if network else recipe_of(metadata.variant)
    values = {"image_size": metadata.image_size}
    return augmented_like(train_parameters(values, where="int8.images: mosaic", recipe=recipe), index)
