"""Pictures of training batches: images after augmentation with their labels, and the cells that learn each object."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolov7.loss import LevelPicture
from yolov7.predict.draw import class_color, draw_boxes, write_picture

log = logging.getLogger(__name__)

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]

_LONGEST = 480
"""Panels are enlarged by a whole factor to at least this side, and shrunk to at most twice as much."""
_DIM = 0.45
"""Brightness of the image under the cells."""
_LINE, _TEXT = 30, 17
"""Height of a line of text and of its letters."""
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class AssignedBatch:
    """A batch as the network saw it, and the predictions that learned its objects (legend: T targets, L levels)."""

    epoch: int
    batch_index: int
    image_ids: list[int]
    images: Tensor
    """(b, 3, H, W) uint8 RGB on the CPU, the first 16 of them at most."""
    targets: Tensor
    """(T, 6) float32: image of the batch, class, x1, y1, x2, y2 in pixels."""
    positives: list[Tensor]
    """For each level (6, n) int64: level, image, slot, row, column, row of `targets`."""
    levels: tuple[LevelPicture, ...]
    """Stride, slots of a cell and caption of each level."""

    @property
    def name(self) -> str:
        """Of its files: epoch and batch counted from 1, as a person does."""
        return f"epoch-{self.epoch + 1}-batch-{self.batch_index + 1}"


def draw_batch(batch: AssignedBatch, class_names: Sequence[str], folder: Path) -> list[Path]:
    """Draw the labels of a batch, and which predictions learn them, into `folder`; returns the files written."""
    written = []
    for what, draw in (("labels", draw_labels), ("assignment", draw_assignment)):
        path = folder / f"{batch.name}-{what}.jpg"
        try:
            draw(batch, class_names, path)
        except OSError as error:  # usually a full disk: the next state that is saved says what to do
            log.warning("no picture %s: %s", path.name, error)
        else:
            written.append(path)
    return written


def draw_labels(batch: AssignedBatch, class_names: Sequence[str], path: Path, *, most: int = 16) -> None:
    """Write the first images of a batch, in a grid, with their target boxes and class names."""
    tiles = []
    targets = batch.targets.numpy()
    for number, image in enumerate(batch.images[:most].numpy()):
        own = targets[targets[:, 0] == number]
        labels = own[:, 1].astype(np.int64)
        names = [class_names[label] for label in labels]
        tiles.append(draw_boxes(image.transpose(1, 2, 0), own[:, 2:6], labels, names, smallest_side=320))
    columns = int(np.ceil(np.sqrt(len(tiles))))
    blank = np.full_like(tiles[0], 114)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    _write(np.concatenate(rows, axis=0), path)


def draw_assignment(batch: AssignedBatch, class_names: Sequence[str], path: Path, *, most: int = 4) -> None:
    """Write, for the first images of a batch, the labels and, level by level, the cells that learn them.

    A row is an image. In its first panel every object has a colour of its own; in the others the cells of a level have
    the colour of the object they learn, in an upright stripe for each anchor where the level has several. Objects that
    no cell took are crossed out.
    """
    width, height = batch.images.shape[3], batch.images.shape[2]
    scale = max(1, -(-_LONGEST // max(width, height))) if max(width, height) < 2 * _LONGEST else 2 * _LONGEST / width
    rows = [_heading(batch, round(width * scale))]
    for number in range(min(most, len(batch.images))):
        rows.append(_image_row(batch, number, class_names, scale))
    rows.append(_footer(rows[0].shape[1], stripes=any(level.slots > 1 for level in batch.levels)))
    _write(np.concatenate(rows, axis=0), path)


def _image_row(batch: AssignedBatch, number: int, class_names: Sequence[str], scale: float) -> Picture:
    image = np.ascontiguousarray(batch.images[number].numpy().transpose(1, 2, 0))
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=interpolation), np.uint8)
    own = torch.nonzero(batch.targets[:, 0] == number).flatten().tolist()
    colors = {target: class_color(place) for place, target in enumerate(own)}
    cells = [positives[:, positives[1] == number] for positives in batch.positives]
    counts = {target: [int((level[5] == target).sum()) for level in cells] for target in own}
    boxes = batch.targets[:, 2:6].numpy() * scale

    texts = [f"{class_names[int(batch.targets[t, 1])]} ({'+'.join(map(str, counts[t]))})" for t in own]
    panels = [draw_boxes(image, boxes[own], np.arange(len(own)), texts, smallest_side=1)]
    for target in own:
        if not sum(counts[target]):
            _cross(panels[0], boxes[target], colors[target])
    for positives, level in zip(cells, batch.levels, strict=True):
        panels.append(_level_panel(image, positives, level.stride * scale, level.slots, boxes, colors))
    lines = [f"image {batch.image_ids[number]}: {len(own)} objects"]
    for place, positives in enumerate(cells):
        taken = sum(counts[target][place] > 0 for target in own)
        lines.append(f"predictions: {positives.shape[1]}, of objects: {taken} of {len(own)}")
    panels = [
        np.concatenate([_text_line(line, panel.shape[1]), panel]) for line, panel in zip(lines, panels, strict=True)
    ]
    return _side_by_side(panels)


def _level_panel(
    image: Picture, cells: Tensor, side: float, slots: int, boxes: NDArray[np.floating], colors: dict[int, Color]
) -> Picture:
    """The dimmed image with the grid of a level, its positives (6, n) filled, and the boxes of the objects they learn.

    `side` of a cell in pixels of the panel.
    """
    panel = np.asarray(image.astype(np.float32) * _DIM, np.uint8)
    for axis, length in ((1, panel.shape[1]), (0, panel.shape[0])):
        for place in np.rint(np.arange(side, length, side)).astype(int).tolist() if side >= 8 else ():
            stripe = (slice(None), place) if axis else (place,)
            panel[stripe] = panel[stripe] // 2 + 40
    # The whole cell faintly, so that it is seen where stripes are narrow; then its stripes.
    for strength, stripes in ((0.4, 1), (0.85, slots)):
        filled = panel.copy()
        for _, _, slot, row, column, target in cells.T.tolist():
            start, end = (slot / stripes, (slot + 1) / stripes) if stripes > 1 else (0, 1)
            low = round((column + start) * side), round(row * side)
            high = max(round((column + end) * side) - 1, low[0]), max(round((row + 1) * side) - 1, low[1])
            cv2.rectangle(filled, low, high, colors[target], cv2.FILLED)
        panel = np.asarray(cv2.addWeighted(filled, strength, panel, 1 - strength, 0), np.uint8)
    for target in dict.fromkeys(cells[5].tolist()):
        left, top, right, bottom = np.rint(boxes[target]).astype(int).tolist()
        cv2.rectangle(panel, (left, top), (right, bottom), colors[target], 1)
    return panel


def _cross(panel: Picture, box: NDArray[np.floating], color: Color) -> None:
    left, top, right, bottom = np.rint(box).astype(int).tolist()
    for start, end in (((left, top), (right, bottom)), ((left, bottom), (right, top))):
        cv2.line(panel, start, end, _PAPER, 3, cv2.LINE_AA)
        cv2.line(panel, start, end, color, 1, cv2.LINE_AA)


def _heading(batch: AssignedBatch, width: int) -> Picture:
    parts = [_text_line(f"epoch {batch.epoch + 1}, batch {batch.batch_index + 1}: labels", width)]
    for number, level in enumerate(batch.levels):
        caption = f": {level.caption}" if level.caption else ""
        parts.append(_text_line(f"level {number + 1}, stride {level.stride}{caption}", width))
    return _side_by_side(parts)


def _footer(width: int, *, stripes: bool) -> Picture:
    each = ", one upright stripe for each anchor" if stripes else ""
    text = f"A cell has the colour of the object it learns{each}. "
    return _text_line(text + "At a label: predictions of each level that learn it; crossed out: none does.", width)


def _text_line(text: str, width: int) -> Picture:
    line = np.full((_LINE, width, 3), _PAPER, np.uint8)
    cv2.putText(line, text, (8, _LINE - 9), _INK, cv2.FontFace("sans"), _TEXT, 500)
    return line


def _side_by_side(panels: list[Picture]) -> Picture:
    gap = np.full((panels[0].shape[0], 6, 3), _PAPER, np.uint8)
    parts = [part for panel in panels for part in (gap, panel)]
    return np.concatenate(parts[1:], axis=1)


def _write(picture: Picture, path: Path) -> None:
    write_picture(path, picture, quality=92)
