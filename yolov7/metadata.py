"""A model file's description of itself: one typed and bounded reader for every format.

The header of .safetensors, the metadata of ONNX and OpenVINO files, and `model.json` hold JSON that anyone may have
written. It is checked here, so that the code behind it meets only types and sizes it can work with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from yolov7.documents import DocumentError, parse_json
from yolov7.errors import ModelError
from yolov7.text import printable

MAX_SIDE = 8192
"""Pixels of a side of the network's input. A single batch of this size takes a gigabyte before the network."""
MAX_STRIDE = 1024
MAX_CLASSES = 100_000
MAX_NAME = 1000
MAX_DETECTIONS = 2**31
_INT64 = 2**63 - 1


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 640.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= _INT64 else value


Whole = Annotated[int, BeforeValidator(_whole)]
Length = Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)]
Anchors = list[Annotated[list[Annotated[list[Length], Field(min_length=2, max_length=2)]], Field(max_length=64)]]
Word = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Side = Whole | Word


class _Stated(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class StatedThresholds(_Stated):
    """Default thresholds of a file; None: ours."""

    confidence: float | None = Field(default=None, ge=0.0, le=1.0, allow_inf_nan=False)
    iou: float | None = Field(default=None, gt=0.0, le=1.0, allow_inf_nan=False)
    max_detections: Whole | None = Field(default=None, ge=1, le=MAX_DETECTIONS)


class StatedModel(_Stated):
    """The entry `yolov7` of every format: the model."""

    variant: Word
    form: Literal["training", "deploy", "quantized"]
    num_classes: Whole = Field(ge=1, le=MAX_CLASSES)
    class_names: list[str]
    category_ids: list[Annotated[Whole, Field(ge=-_INT64, le=_INT64)]]
    image_size: Whole = Field(ge=1, le=MAX_SIDE)
    anchors: Annotated[Anchors, Field(max_length=64)] = []
    extra: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> StatedModel:
        for name in ("class_names", "category_ids"):
            if len(getattr(self, name)) != self.num_classes:
                raise ValueError(f"{name}: {self.num_classes} are expected, got {len(getattr(self, name))}")
        if len(set(self.category_ids)) < self.num_classes:
            raise ValueError("category_ids: one is given twice")
        if len({len(level) for level in self.anchors}) > 1:
            raise ValueError("anchors: the levels have different numbers of them")
        if printable(self.variant) != self.variant:
            raise ValueError(f"variant: {self.variant!r} has control characters")
        if "thresholds" in self.extra:
            _read(StatedThresholds, self.extra["thresholds"], "extra.thresholds")
        return self


class StatedInput(_Stated):
    """The contract's `input`."""

    stride: Whole = Field(ge=1, le=MAX_STRIDE)
    name: Literal["images"] = "images"
    type: Literal["float32"] = "float32"
    shape: Annotated[list[Side], Field(min_length=4, max_length=4)] | None = None


class StatedOutput(_Stated):
    """The contract's `output`. Each kind's further fields are checked where that kind is opened."""

    kind: Word
    shape: Annotated[list[Side], Field(min_length=1, max_length=8)] | None = None
    score: str | None = Field(default=None, max_length=MAX_NAME)
    decoding: str | None = Field(default=None, max_length=MAX_NAME)
    anchors: Annotated[Anchors, Field(max_length=64)] | None = None
    confidence: float | None = Field(default=None, ge=0.0, le=1.0, allow_inf_nan=False)
    iou: float | None = Field(default=None, gt=0.0, le=1.0, allow_inf_nan=False)
    max_detections: Whole | None = Field(default=None, ge=1, le=MAX_DETECTIONS)

    @model_validator(mode="after")
    def _has_thresholds(self) -> StatedOutput:
        if self.kind == "nms" and None in (self.confidence, self.iou, self.max_detections):
            raise ValueError("the thresholds of the suppression inside are missing")
        return self


class StatedContract(_Stated):
    """The entry `yolov7.contract` of exported files: input and output."""

    input: StatedInput
    output: StatedOutput


class StatedFile(_Stated):
    """An entry of a manifest's `files`."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: Whole | None = Field(default=None, ge=0)


class StatedFolder(_Stated):
    """`model.json`: the parts that decide which files are opened."""

    files: dict[Word, StatedFile] = Field(max_length=10_000)


S = TypeVar("S", bound=_Stated)


def read_stated(kind: type[S], text: str | bytes) -> tuple[S, dict[str, Any]]:
    """A JSON text as `kind`, and as a plain object. Raises :class:`ModelError` of one line for anything else."""
    try:
        value = parse_json(text)
    except DocumentError as error:
        raise ModelError(str(error)) from None
    return stated(kind, value), value


def stated(kind: type[S], value: Any) -> S:
    """A JSON value as `kind`. Raises :class:`ModelError` with every field that is missing or wrong, in one line."""
    try:
        return _read(kind, value, "")
    except ValueError as error:
        raise ModelError(str(error)) from None


def _read(kind: type[S], value: Any, at: str) -> S:
    if not isinstance(value, Mapping):
        raise ValueError(f"{at or 'it'} is {_shown(value)}; an object with {', '.join(kind.model_fields)} is expected")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        lines = [_explained(item, at) for item in found[:_LISTED]]
        more = [f"and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
        raise ValueError("; ".join([*lines, *more])) from None


_LISTED = 5


def _explained(item: Any, at: str) -> str:
    place = ".".join([at, *map(str, item["loc"])]).strip(".")
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] in ("missing", "value_error"):
        return printable(f"{place}: {message}" if place else message)
    return printable(f"{place}: {message}, got {_shown(item['input'])}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
