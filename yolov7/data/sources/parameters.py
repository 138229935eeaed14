"""Parameters of the readers: the parts of a data set in a folder, and what its files leave open."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from yolov7.config.group import Group
from yolov7.errors import ConfigError


class CocoSplit(Group):
    """One set of images of a COCO-format data set."""

    images: str
    """Folder of the `file_name` entries, relative to data.folder."""
    annotations: str
    """Annotation json (instances format), relative to data.folder."""


class VocSplit(Group):
    """One set of images of a Pascal VOC data set."""

    images: str
    """Folder of the images, relative to data.folder."""
    annotations: str
    """Folder of the XML files, relative to data.folder."""
    listed_in: str | None = None
    """Text file (an image set of VOC: one name per line) or CSV (column `filename`) with the files of this set;
    default: every XML file."""


class YoloSplit(Group):
    """One set of images with YOLO text labels."""

    images: str
    """Folder of the images, relative to data.folder."""
    labels: str
    """Folder of the label files, relative to data.folder: `a/b.txt` for the image `a/b.jpg`."""
    listed_in: str | None = None
    """Text file or CSV with the images of this set; default: every image of the folder."""


S = TypeVar("S", CocoSplit, VocSplit, YoloSplit)


class Sets(Group, Generic[S]):
    """The images: either train, val and optionally test, or all of them in one set that data.split divides."""

    train: S | None = None
    """Training images."""
    val: S | None = None
    """Images that choose the checkpoint."""
    test: S | None = None
    """Images for the reported figures; default: the val split, and the report says so."""
    all: S | None = None
    """One set, divided by data.split."""

    def given(self, where: str) -> dict[str, S]:
        """The sets by name: `all` alone, or train, val and optionally test. Raises :class:`ConfigError` otherwise."""
        sets = {"train": self.train, "val": self.val, "test": self.test, "all": self.all}
        given = {name: one for name, one in sets.items() if one is not None}
        if "all" in given and len(given) > 1:
            raise ConfigError(f"{where}: give either `all`, or `train` and `val` (and `test`), not both")
        if "all" not in given and not {"train", "val"} <= given.keys():
            raise ConfigError(
                f"{where}: give `train` and `val` (and `test`), or `all` to have it divided by data.split"
            )
        return given

    def check(self, where: str) -> None:
        """Raise :class:`ConfigError` where sets are missing or exclude each other."""
        self.given(where)


class Coco(Sets[CocoSplit]):
    """Your COCO-format data set: an image folder and an annotation json per set.

    The keys beside the sets settle what exports of labelling tools leave open (docs/data.md).
    """

    placeholder_categories: Literal["auto", "keep", "drop"] = "auto"
    """Categories that name a group (Roboflow: `supercategory: none`) or the background (labelme: `_background_`).
    `auto`: left out if no annotation has them, refused otherwise; `keep`: classes like any other; `drop`: left out with
    their annotations, and so are unused parents of other categories."""
    merge_equal_names: bool = False
    """Make one class of categories that have the same name and different ids; otherwise validation refuses them."""
    crowd_is_object: bool = False
    """Learn and count crowds (`iscrowd: 1`) as ordinary objects: CVAT and V7 Darwin write masks as crowds."""
    ignore_is_crowd: bool = False
    """Neither learn nor count annotations marked `ignore: 1`."""
    boxes: Literal["pixels", "relative", "corners", "inclusive"] | None = None
    """The four numbers of `bbox`: `pixels`: left, top, width, height; `relative`: the same as shares of the image's
    sides (Azure); `corners`: left, top, right, bottom in pixels; `inclusive`: as `pixels`, but each side one pixel
    short (Supervisely). Default: `pixels`, and a file of nothing but numbers up to 1 is refused."""
    enclose_rotated: bool = False
    """Replace the box of a rotated rectangle (CVAT: `attributes.rotation`) by the box around the rotated one."""


class Voc(Sets[VocSplit]):
    """Your Pascal VOC data set: a folder of images and one of XML files per set."""

    classes: tuple[str, ...] | str | None = None
    """Class names in the order of their numbers, or a file with one per line (also CVAT's labelmap.txt); any other name
    is an error. Default: the names that occur, sorted."""
    image_by: Literal["stem", "filename"] = "stem"
    """Which image an XML file belongs to if its own name and its `<filename>` name two different ones."""
    size_from: Literal["xml", "image"] = "xml"
    """The size of an image: as the XML file gives it (validation compares the two), or as the image has it."""
    one_based: bool = False
    """True: pixels count from 1 and the last one is included, as in the original VOC data (left = xmin - 1);
    false: xmin to ymax are the edges of the box, as annotation tools write them."""
    difficult_is_crowd: bool = False
    """Ignore objects marked difficult in training and evaluation."""
    rotated: Literal["as_written", "hull", "crowd"] = "as_written"
    """Objects with a rotation among their attributes (CVAT): keep the box, which is the one before the rotation; take
    the upright box around the turned one; or ignore them in training and evaluation."""


class Yolo(Sets[YoloSplit]):
    """Your images with YOLO text labels."""

    names: tuple[str, ...] | str
    """Class names in the order of their numbers, or a file with them: one per line, YAML with `names`, Darknet's
    obj.data, or the notes.json of Label Studio. With YAML or obj.data the sets may be left out: the file's are read."""
    rows: Literal["auto", "box", "polygon", "obb", "pose"] = "auto"
    """Content of a row. `auto`: boxes and polygons, by the number of columns; boxes with keypoints if data.yaml has
    `kpt_shape`. Any other value is required of every row (`pose` allows boxes without keypoints)."""
    keypoints: tuple[int, Literal[2, 3]] | None = None
    """With `rows: pose`: number of keypoints, and values of each; default: `kpt_shape` of data.yaml."""
    extra_column: Literal["confidence", "track_id", "confidence_second"] | None = None
    """Meaning of one column more: a confidence or a track number at the end, or a confidence after the class. It is
    left out. Default: such rows are refused."""

    def given(self, where: str) -> dict[str, YoloSplit]:
        """As for any source; none if all sets are left to the file that `names` gives."""
        if self.declares and not (self.train or self.val or self.test or self.all):
            return {}
        return super().given(where)

    def check(self, where: str) -> None:
        """Raise :class:`ConfigError` also for keypoints that the rows cannot have."""
        super().check(where)
        if self.keypoints is not None and (self.rows != "pose" or self.keypoints[0] < 1):
            raise ConfigError(f"{where}.keypoints: give [number of keypoints, 2 or 3], with `rows: pose`")

    @property
    def declares(self) -> bool:
        """True if `names` is a file that may declare sets, too."""
        return isinstance(self.names, str) and self.names.lower().endswith((".yaml", ".yml", ".data"))
