"""The JSON forms that a served model takes, as pydantic models, and the reason why any other document is refused.

MLflow takes more than these four; only the documented ones pass (docs/operations.md). Each names base64 texts of image
files in the one column `image`. A text of any length has been decoded before (stages/serving/document_stream.py).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from stages.serving.base64_stream import ImageText, NotBase64
from stages.serving.document_stream import FormError

FORMS = ("dataframe_split", "dataframe_records", "inputs", "instances")

_KINDS = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
_FRACTION = "must be a number and must lie between 0 and 1"
_EXPECTED = {
    "model_type": "a JSON object is expected",
    "list_type": "a list is expected",
    "missing": "is missing",
    "extra_forbidden": "is not a key of this form",
    **dict.fromkeys(("float_type", "greater_than_equal", "less_than_equal"), _FRACTION),
}
"""Plain words for pydantic's types of errors; the others speak for themselves."""


def _image(cell: Any, info: ValidationInfo) -> bytes:
    """The image file of a cell. A long text has been decoded as it arrived; a short one is decoded here."""
    if not isinstance(cell, str):
        raise _wrong(f"base64 text of an image file is expected, got {_kind(cell)}")
    if not cell:
        raise _wrong("the image is empty")
    known: dict[str, bytes] = info.context or {}
    if cell in known:
        return known[cell]
    text = ImageText(most=len(cell))
    try:
        text.feed(cell.encode("ascii"))
        return text.finish()
    except (NotBase64, UnicodeError):
        raise _wrong("the text is not base64 of an image file") from None


def _columns(names: list[Any]) -> list[Any]:
    if names != ["image"]:
        raise _wrong("the one column is called 'image'")
    return names


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("request", "{reason}", {"reason": message})


Image = Annotated[Any, AfterValidator(_image)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Params(_Form):
    """Thresholds of this request alone. They may be absent, but not null; the defaults are never read."""

    confidence: Fraction = 0.0
    iou: Fraction = 0.0


class Split(_Form):
    """A table as pandas writes it with `orient="split"`."""

    columns: Annotated[list[Any], AfterValidator(_columns)]
    data: list[Annotated[list[Image], Field(min_length=1, max_length=1)]]
    index: list[Any] | None = None

    @model_validator(mode="after")
    def _one_label_per_row(self) -> Split:
        labels = range(len(self.data)) if self.index is None else self.index
        if len(labels) != len(self.data) or not all(isinstance(label, int | str) for label in labels):
            raise _wrong("index: leave it out, or give a number or a name for every row")
        return self


class Row(_Form):
    """One row of a table."""

    image: Image


class Column(_Form):
    """A table of one column; a single image may stand without its list."""

    image: Annotated[list[Image], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]


class Request(_Form):
    """One of the four forms, with or without parameters."""

    params: Params | None = None
    dataframe_split: Split | None = None
    dataframe_records: list[Row] | None = None
    instances: list[Row] | None = None
    inputs: Column | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_form(cls, document: Any) -> Any:
        given = [key for key in document if key != "params"] if isinstance(document, dict) else FORMS[:1]
        if len(given) != 1 or given[0] not in FORMS:
            names = ", ".join(repr(key[:40]) for key in given[:5]) or "none"
            raise _wrong(f"exactly one of {', '.join(FORMS)} is expected, next to params; got {names}")
        return document

    @model_validator(mode="after")
    def _some_image(self) -> Request:
        split, column = self.dataframe_split, self.inputs
        if not (self.dataframe_records or self.instances or (split and split.data) or (column and column.image)):
            raise _wrong("no image given: send at least one row in the column 'image'")
        return self

    @property
    def images(self) -> list[bytes]:
        """The image files, in the order of the rows."""
        if self.dataframe_split:
            return [row[0] for row in self.dataframe_split.data]
        return (
            self.inputs.image if self.inputs else [row.image for row in self.dataframe_records or self.instances or []]
        )

    @property
    def thresholds(self) -> dict[str, float]:
        """The parameters that the request gives."""
        return self.params.model_dump(exclude_unset=True) if self.params else {}


def read_request(document: Any, texts: dict[str, bytes]) -> Request:
    """The request that a document makes; `texts` holds the image files of its placeholders.

    Raises :class:`FormError`, with the place and the reason, unless the document is one of the four forms. A row that
    is not base64 text is named by its number. The reason never repeats the request's content.
    """
    try:
        return Request.model_validate(document, context=texts)
    except ValidationError as error:
        raise FormError(_reason(error.errors(include_url=False)[0])) from None


def _reason(error: Any) -> str:
    expected = _EXPECTED.get(error["type"], error["msg"])
    got = f", got {_kind(error['input'])}" if expected.endswith("expected") else ""
    return ": ".join([*_place(error["loc"]), expected + got])


def _place(keys: tuple[int | str, ...]) -> list[str]:
    """The path of an error in words: `instances`, `row 3`, `image`."""
    return [f"row {key}" if isinstance(key, int) else key[:40] for key in keys[:3]]


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")
