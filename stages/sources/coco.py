"""The source `coco`: an image folder and an annotation json per set, every field of every record kept."""

from __future__ import annotations

from pathlib import Path

from stages.dataset.image_set import ImageSet
from stages.project.params_data import Coco
from yolov7.data.formats.coco import read_coco


def read_coco_sets(parameters: Coco, base: Path) -> dict[str, ImageSet]:
    """The sets of `parameters`, by split or `all`; paths are relative to `base`.

    Raises :class:`DataError` for a bad annotation file and for a missing image folder.
    """
    return {
        name: ImageSet(read_coco(base / one.annotations), base / one.images, f"data.coco.{name}")
        for name, one in parameters.given("data.coco").items()
    }
