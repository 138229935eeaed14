"""Detections of one image, and what other tools take: COCO records, supervision, a notebook's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from yolov7.errors import ConfigError
from yolov7.text import printable

if TYPE_CHECKING:
    import supervision

_SHOWN = 50
"""Rows of a notebook's table."""


@dataclass(frozen=True)
class Detections:
    """Detections of one image by falling score, on the CPU."""

    boxes: Tensor
    """(n, 4) float32 xyxy in pixels."""
    scores: Tensor
    """(n,) float32."""
    labels: Tensor
    """(n,) int64 class numbers."""
    class_names: tuple[str, ...] = ()
    """Names of all classes of the model, by class number; empty where they are unknown."""
    category_ids: tuple[int, ...] = ()
    """Ids of the training data's categories, by class number; empty where they are unknown."""

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class of each detection: its name, or its number where names are unknown."""
        return [self.class_names[label] if self.class_names else str(label) for label in self.labels.tolist()]

    def to_numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, scores, labels as arrays."""
        return self.boxes.numpy(), self.scores.numpy(), self.labels.numpy()

    def to_coco(
        self, image_id: int, *, category_ids: Sequence[int] | None = None, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """COCO annotations with a score, which are COCO results too; `bbox` is left, top, width, height in pixels.

        The categories are those of the model's training data; `category_ids`, by class number, are others. Without
        either, the class numbers stand for them. Annotations are numbered from `first_id`.
        """
        ids = self.category_ids if category_ids is None else category_ids
        records = []
        columns = (column.tolist() for column in self.to_numpy())
        for number, (box, score, label) in enumerate(zip(*columns, strict=True), first_id):
            left, top, right, bottom = box
            width, height = right - left, bottom - top
            records.append(
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": ids[label] if ids else label,
                    "bbox": [round(side, 3) for side in (left, top, width, height)],
                    "area": round(width * height, 3),
                    "iscrowd": 0,
                    "score": round(score, 5),
                }
            )
        return records

    def to_supervision(self) -> supervision.Detections:
        """`supervision.Detections` with the names in `data["class_name"]`, as its annotators and trackers read them.

        Needs the package supervision, which this one does not bring. Raises :class:`ConfigError` without it.
        """
        try:
            import supervision
        except ImportError:
            raise ConfigError("to_supervision needs the package supervision: `pip install supervision`") from None
        boxes, scores, labels = (column.copy() for column in self.to_numpy())
        names = np.array(self.names, dtype=np.str_)
        return supervision.Detections(xyxy=boxes, confidence=scores, class_id=labels, data={"class_name": names})

    def _repr_html_(self) -> str:
        """A notebook's table: class, score, and corners in pixels of the best detections."""
        from markupsafe import Markup, escape  # only notebooks need it

        heading = Markup("").join(Markup("<th>{}</th>").format(name) for name in ("class", "score", *_CORNERS))
        rows = []
        for name, score, box in zip(self.names[:_SHOWN], self.scores.tolist(), self.boxes.tolist(), strict=False):
            cells = (name, f"{score:.3f}", *(f"{side:.1f}" for side in box))
            rows.append(Markup("").join(Markup("<td>{}</td>").format(printable(cell)) for cell in cells))
        lines = Markup("").join(Markup("<tr>{}</tr>").format(row) for row in (heading, *rows))
        count = f"{len(self)} detection{'' if len(self) == 1 else 's'}"
        if len(self) > _SHOWN:
            count += f", the best {_SHOWN} shown"
        return str(Markup("<table>{}</table><p>{}</p>").format(lines, escape(count)))


_CORNERS = ("x1", "y1", "x2", "y2")
