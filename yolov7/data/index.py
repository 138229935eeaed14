"""The memory-mapped index of a data set: 100,000 images known to every worker, and held in no worker's memory.

An index is a folder of plain `.npy` arrays and one JSON file. It is mapped, not read: it opens in milliseconds, its
pages are shared by all processes, and no Python object exists per image or box, so resident memory does not grow over
epochs as it does with lists of records, whose reference counts are written on every access.

Ragged data (boxes of an image, polygons of a box, points of a polygon) is one long array plus an array of starts:
item i occupies `starts[i]:starts[i + 1]`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolov7.data.columns import CocoColumns
from yolov7.data.formats.coco import CocoAnnotations, classes_of
from yolov7.data.index_arrays import ARRAYS, Pieces, arrays_of, boxes_and_extents, left_out
from yolov7.documents import load_json
from yolov7.errors import DataError
from yolov7.files import write_json
from yolov7.polygons import Polygons
from yolov7.text import printable

FORMAT = 1
"""Version of the folder's layout; another one is refused with the advice to build the index again."""
DESCRIPTION = "index.json"


class Index:
    """A data set opened for reading. Build one with :func:`build_index`.

    `i` is an image's position, 0 to `len(index) - 1`, in the order of the annotation file.
    """

    def __init__(
        self, folder: Path, image_root: Path, description: dict[str, Any], arrays: dict[str, NDArray[Any]]
    ) -> None:
        self.folder = folder
        self.image_root = image_root
        self.class_names: tuple[str, ...] = tuple(map(printable, description["class_names"]))
        """Names of the classes by class number."""
        self.category_ids: tuple[int, ...] = tuple(description["category_ids"])
        """COCO category ids by class number."""
        self._arrays = arrays
        # Looked up for every sample: attributes, not dictionary entries.
        self._sizes, self._image_ids = arrays["sizes"], arrays["image_ids"]
        self._box_starts, self._boxes, self._labels = arrays["box_starts"], arrays["boxes"], arrays["labels"]
        self._polygon_starts, self._point_starts = arrays["polygon_starts"], arrays["point_starts"]

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, image_root: str | os.PathLike[str] | None = None) -> Index:
        """Map an index. `image_root` is where the file names start; by default where they did when it was built,
        relative to `folder`, so that a project may move.

        Raises :class:`DataError` for a folder that is not an index, of another version, or damaged.
        """
        folder = Path(folder)
        description = _read_description(folder)
        arrays = {name: _map_array(folder, name) for name in ARRAYS}
        _check_consistency(folder, arrays)
        root = folder / description["image_root"] if image_root is None else Path(image_root)
        return cls(folder, root, description, arrays)

    def __reduce__(self) -> tuple[Callable[..., Index], tuple[Path, Path]]:
        """A worker that is handed an index maps the same files; the arrays themselves are never copied."""
        return _reopen, (self.folder, self.image_root)

    def __len__(self) -> int:
        return len(self._sizes)

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r}: {len(self)} images, {len(self._boxes)} boxes, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def num_boxes(self) -> int:
        """Number of annotated boxes over all images, crowds included."""
        return len(self._boxes)

    @property
    def has_polygons(self) -> bool:
        """True if any object has an outline."""
        return len(self._arrays["points"]) > 0

    def file_name(self, i: int) -> str:
        """Name of the image file as annotated, relative to the image root."""
        starts = self._arrays["name_starts"]
        return bytes(self._arrays["names"][starts[i] : starts[i + 1]]).decode("utf-8")

    def image_path(self, i: int) -> Path:
        """Path of the image file."""
        return self.image_root / self.file_name(i)

    def image_id(self, i: int) -> int:
        """COCO id of the image."""
        return int(self._image_ids[i])

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) in pixels as annotated."""
        height, width = self._sizes[i]
        return int(height), int(width)

    def boxes(self, i: int) -> NDArray[np.float32]:
        """All boxes of an image, crowds included: (n, 4) float32 xyxy pixels, as annotated (not clipped)."""
        boxes = self.coco_boxes(i).copy()
        boxes[:, 2:] += boxes[:, :2]
        return boxes.astype(np.float32)

    def coco_boxes(self, i: int) -> NDArray[np.float64]:
        """All boxes of an image as annotated: (n, 4) float64 left, top, width, height in pixels. Read-only."""
        return self._boxes[self._span(i)]

    def labels(self, i: int) -> NDArray[np.int64]:
        """Class numbers (n,) of the boxes. Read-only."""
        return self._labels[self._span(i)]

    def annotation_ids(self, i: int) -> NDArray[np.int64]:
        """COCO ids (n,) of the boxes. Read-only."""
        return self._arrays["annotation_ids"][self._span(i)]

    def areas(self, i: int) -> NDArray[np.float64]:
        """Areas (n,) in square pixels as annotated, by which COCO sorts objects into small, medium, large."""
        return self._arrays["areas"][self._span(i)]

    def crowd(self, i: int) -> NDArray[np.bool_]:
        """(n,) True for crowds: ignored in training, honoured in evaluation. Read-only."""
        return self._arrays["crowd"][self._span(i)]

    def trainable(self, i: int) -> NDArray[np.bool_]:
        """(n,) True for boxes that training uses: no crowds or exact repetitions, at least partly inside the image.
        Read-only."""
        return self._arrays["trainable"][self._span(i)]

    def polygons(self, i: int) -> list[list[NDArray[np.float32]]]:
        """Outlines per box: a list of (k, 2) xy pixel arrays each; empty where there is none or a run-length mask."""
        span = self._span(i)
        result: list[list[NDArray[np.float32]]] = [[] for _ in range(span.stop - span.start)]
        ragged = self.ragged_polygons(i)
        ends = np.cumsum(ragged.counts)
        for owner, count, end in zip(ragged.owners, ragged.counts, ends, strict=True):
            result[owner].append(ragged.points[end - count : end])
        return result

    def ragged_polygons(self, i: int) -> Polygons:
        """The same outlines as flat arrays, for code that handles all points of an image at once. Read-only."""
        span = self._span(i)
        polygon_starts = self._polygon_starts[span.start : span.stop + 1]
        point_starts = self._point_starts[polygon_starts[0] : polygon_starts[-1] + 1]
        return Polygons(
            points=self._arrays["points"][point_starts[0] : point_starts[-1]],
            counts=np.diff(point_starts),
            owners=np.repeat(np.arange(span.stop - span.start), np.diff(polygon_starts)),
        )

    def all_sizes(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """For auto-anchor: (M, 2) width, height of every trainable box, and (M, 2) width, height of its image."""
        trainable = self._arrays["trainable"]
        images = np.repeat(self._sizes[:, ::-1], np.diff(self._box_starts), axis=0)
        return self._boxes[trainable, 2:].astype(np.float32), images[trainable].astype(np.float32)

    def class_counts(self) -> NDArray[np.int64]:
        """(C,) number of trainable boxes of every class."""
        return np.bincount(self._labels[self._arrays["trainable"]], minlength=self.num_classes)

    def counts(self, chosen: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """(C,) number of boxes of every class, crowds included, or of those `chosen` (N,) among all."""
        labels = self._labels if chosen is None else self._labels[chosen]
        return np.bincount(labels, minlength=self.num_classes)

    def left_out(self) -> dict[str, NDArray[np.bool_]]:
        """Flags (N,) of the boxes that training leaves out, by reason: `crowd`, `outside`, `repeated`."""
        return left_out(self._arrays)

    def all_extents(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Boxes (N, 4) xyxy of all objects, and extents (N, 4) of their outlines (of the box without one), both in
        pixels and cut to the image."""
        return boxes_and_extents(self._arrays)

    def all_labels(self) -> NDArray[np.int64]:
        """(N,) class numbers of all boxes. Read-only."""
        return self._labels

    def image_numbers(self) -> NDArray[np.int64]:
        """(N,) the image of every box."""
        return np.repeat(np.arange(len(self)), np.diff(self._box_starts))

    def all_image_sizes(self) -> NDArray[np.int32]:
        """(I, 2) height, width of every image. Read-only."""
        return self._sizes

    def _span(self, i: int) -> slice:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return slice(int(self._box_starts[i]), int(self._box_starts[i + 1]))


def build_index(
    coco: CocoAnnotations | CocoColumns, image_root: str | os.PathLike[str], out: str | os.PathLike[str]
) -> Index:
    """Write the index of `coco`, whose file names are relative to `image_root`, as the folder `out`, and open it.

    Class numbers follow the order of the category ids. The folder is written under a temporary name and renamed: what
    stood at `out` is replaced as a whole or not at all. Only what an index can represent is accepted;
    :class:`DataError`, naming file and record, for: no images, no categories, ids given twice, an annotation of an
    unknown image or category, a size that is not a positive whole number, a box that is not finite, a file name that
    leads out of the image root.
    """
    arrays = arrays_of(coco)
    class_names, category_ids = classes_of(coco)
    out, image_root = Path(out), Path(image_root)
    description = {
        "format": FORMAT,
        "image_root": os.path.relpath(image_root.resolve(), out.resolve()),
        "class_names": class_names,
        "category_ids": category_ids,
        "images": arrays["image_ids"].rows,
        "boxes": arrays["boxes"].rows,
    }
    _write_folder(out, description, arrays)
    return Index.open(out)


def _reopen(folder: Path, image_root: Path) -> Index:
    return Index.open(folder, image_root=image_root)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        description = load_json(path)
    except FileNotFoundError:
        raise DataError("no index here; build it (the validate stage writes it)", path=folder) from None
    except (OSError, ValueError) as error:
        raise DataError(f"the index cannot be read: {error}; build it again", path=path) from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise DataError(f"an index of another version than {FORMAT}; build it again", path=path)
    if not {"image_root", "class_names", "category_ids"} <= description.keys():
        raise DataError("the index's description is incomplete; build it again", path=path)
    names, ids = description["class_names"], description["category_ids"]
    fits = isinstance(names, list) and isinstance(ids, list) and len(names) == len(ids)
    if not fits or not all(type(n) is str for n in names) or not all(type(i) is int for i in ids):
        raise DataError("the index's classes are damaged; build it again", path=path)
    return description


def _map_array(folder: Path, name: str) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    dtype, tail = ARRAYS[name]
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"part of an index, missing or damaged ({error}); build it again", path=path) from None
    if array.dtype != dtype or array.shape[1:] != tail or array.ndim != 1 + len(tail):
        raise DataError(f"part of an index, but {array.dtype} {array.shape}; build it again", path=path)
    # A plain view of the mapping: np.memmap's own slicing costs several microseconds a piece.
    return array.view(np.ndarray)


def _check_consistency(folder: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """The lengths must fit each other: a half-copied folder is refused here, not met in the middle of an epoch."""
    images, boxes = len(arrays["image_ids"]), len(arrays["boxes"])
    per_box = ("labels", "annotation_ids", "areas", "crowd", "trainable")
    fits = len(arrays["sizes"]) == images and all(len(arrays[name]) == boxes for name in per_box)
    ragged = [
        ("name_starts", images, len(arrays["names"])),
        ("box_starts", images, boxes),
        ("polygon_starts", boxes, len(arrays["point_starts"]) - 1),
        ("point_starts", len(arrays["point_starts"]) - 1, len(arrays["points"])),
    ]
    for name, count, total in ragged:
        starts = arrays[name]
        fits = fits and len(starts) == count + 1 and starts[0] == 0 and starts[-1] == total
    if not fits:
        raise DataError("the arrays of this index do not fit together; build it again", path=folder)


def _write_folder(out: Path, description: dict[str, Any], arrays: dict[str, Pieces]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists() and not (out.is_dir() and ((out / DESCRIPTION).exists() or not any(out.iterdir()))):
        raise DataError("is not an index: move it away, or write the index elsewhere", path=out)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".tmp", dir=out.parent))
    try:
        fresh, old = work / "new", work / "old"
        fresh.mkdir()
        for name, (dtype, tail) in ARRAYS.items():
            pieces = arrays.pop(name)
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (pieces.rows, *tail)}
            with (fresh / f"{name}.npy").open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for piece in pieces.values:
                    file.write(np.ascontiguousarray(piece, dtype).tobytes())
                file.flush()
                os.fsync(file.fileno())
        write_json(fresh / DESCRIPTION, description)
        if out.exists():
            out.rename(old)
        try:
            fresh.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
