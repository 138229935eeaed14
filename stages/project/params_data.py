"""The `data` group of `params.yaml`: source, format and division into splits."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Generic, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field

from yolov7.config import Group
from yolov7.errors import ConfigError


class Digits(Group):
    """The embedded data set: real handwritten digits composited onto crops of real photographs."""

    seed: int = Field(default=0, ge=0)
    """Same seed, same bytes."""
    image_size: int = Field(default=160, ge=64, le=1024)
    """Side of the square images in pixels."""
    train_images: int = Field(default=400, ge=1)
    """Number of training images."""
    val_images: int = Field(default=100, ge=1)
    """Number of validation images (checkpoint selection)."""
    test_images: int = Field(default=150, ge=1)
    """Number of test images (the reported figures)."""
    digits_per_image: tuple[int, int] = (1, 6)
    """Fewest and most digits on an image."""
    digit_size: tuple[float, float] = (0.1, 0.35)
    """Smallest and largest side of a digit, as a share of the image side."""

    def check(self, where: str) -> None:
        """Raise :class:`ConfigError` for a range that is not one."""
        low, high = self.digits_per_image
        if not 1 <= low <= high:
            raise ConfigError(f"{where}.digits_per_image: give fewest and most, for example [1, 6]")
        small, large = self.digit_size
        if not 0.0 < small <= large <= 1.0:
            raise ConfigError(f"{where}.digit_size: give smallest and largest share, for example [0.1, 0.35]")


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


class Split(Group):
    """Division of `all` into train, val and test. Same seed and same images: same splits."""

    train: float = Field(default=0.7, gt=0.0, lt=1.0)
    """Share of the images."""
    val: float = Field(default=0.15, gt=0.0, lt=1.0)
    """Share of the images."""
    test: float = Field(default=0.15, ge=0.0, lt=1.0)
    """Share of the images; 0: none, and the val split gives the reported figures."""
    seed: int = Field(default=0, ge=0)
    """Another seed, another division."""
    stratify: bool = True
    """Divide every class by these shares, not only the images."""
    near_duplicate_bits: int | None = Field(default=10, ge=0, le=32)
    """Images whose difference hashes (128 bits) differ in at most this many bits stay together; null: no search."""
    group_pattern: str | None = None
    """Regular expression for file names; images with equal matches (equal groups, if it has any) stay together."""
    group_field: str | None = None
    """Field of the image records (COCO); images with the same value stay together."""

    def check(self, where: str) -> None:
        """Raise :class:`ConfigError` for shares that do not add up and a pattern that does not compile."""
        if abs(self.train + self.val + self.test - 1.0) > 1e-6:
            raise ConfigError(f"{where}: train, val and test must add up to 1")
        try:
            re.compile(self.group_pattern or "")
        except re.error as error:
            raise ConfigError(f"{where}.group_pattern: not a regular expression: {error}") from None


class Remote(Group):
    """A data set that is fetched first. `coco`, `voc` or `yolo` then says where its parts are inside."""

    schemes: ClassVar[tuple[str, ...]] = ("http", "https")
    """Schemes that `url` may have."""

    url: str
    """Its address, without credentials: those come from the environment (docs/data.md)."""
    format: Literal["coco", "voc", "yolo"] = "coco"
    """Format of the fetched data; its files are looked for inside it, not in data.folder."""

    def check(self, where: str) -> None:
        """Raise :class:`ConfigError` for an address that is not one, or that holds a password."""
        check_address(self.url, where=f"{where}.url", schemes=self.schemes)


class Http(Remote):
    """An archive (zip, tar, tar.gz) on a web server."""

    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Expected sha256 of the archive; default: each run asks the server whether the archive has changed."""
    size: int | None = Field(default=None, ge=1)
    """Expected size of the archive in bytes."""


class S3(Remote):
    """All objects below a prefix of a bucket: `s3://bucket/prefix`."""

    schemes: ClassVar[tuple[str, ...]] = ("s3",)

    endpoint: str | None = None
    """Address of a server other than Amazon's; AWS_ENDPOINT_URL has the same effect."""
    anonymous: bool = False
    """Send no credentials, for public buckets."""
    parallel: int = Field(default=8, ge=1, le=64)
    """Number of objects fetched at a time."""

    def check(self, where: str) -> None:
        """Raise :class:`ConfigError` for an address that is not one, or that holds a password."""
        super().check(where)
        if self.endpoint is not None:
            check_address(self.endpoint, where=f"{where}.endpoint", schemes=("https", "http"))


class Coco2017(Group):
    """COCO 2017, train and val, from its official archives: 20 GB to fetch, twice that during unpacking."""

    url: str = "http://images.cocodataset.org"
    """A mirror with the same archives under the same paths; their checksums are known."""

    def check(self, where: str) -> None:
        """Raise :class:`ConfigError` for an address that is not one, or that holds a password."""
        check_address(self.url, where=f"{where}.url", schemes=Remote.schemes)


class Data(Group):
    """Source of the data."""

    source: Literal["digits", "coco", "voc", "yolo", "http", "s3", "coco2017"] = "digits"
    """`digits`: the embedded set; `coco`, `voc`, `yolo`: formats of the folders below; the others are fetched."""
    folder: str = "datasets"
    """Folder of your data. The ingest stage depends on all of it, so a changed file makes it stale."""
    http: Http | None = None
    """Needed with `source: http`."""
    s3: S3 | None = None
    """Needed with `source: s3`."""
    coco2017: Coco2017 = Coco2017()
    """Used with `source: coco2017`."""
    digits: Digits = Digits()
    """The embedded set."""
    coco: Coco | None = None
    """Needed with `source: coco`."""
    voc: Voc | None = None
    """Needed with `source: voc`."""
    yolo: Yolo | None = None
    """Needed with `source: yolo`."""
    split: Split = Split()
    """For a source with one set, `all`."""
    pixel_range: tuple[float, float] | None = None
    """Images of more than 8 bits a channel: the values that become black and white, for example [0, 4095]; default:
    decided over the whole set (docs/data.md)."""


def check_data(data: Data, *, where: str) -> None:
    """Cross-field checks of `data`. Raises :class:`ConfigError` naming the key."""
    source = required(data, data.source, where=where)
    source.check(f"{where}.{data.source}")
    if isinstance(source, Remote):
        required(data, source.format, where=where).check(f"{where}.{source.format}")
    data.digits.check(f"{where}.digits")
    data.split.check(f"{where}.split")
    if data.pixel_range is not None and not data.pixel_range[0] < data.pixel_range[1]:
        raise ConfigError(f"{where}.pixel_range: give the values of black and white, for example [0, 4095]")


def required(data: Data, name: str, *, where: str = "data") -> Any:
    """The group `name` of `data`. Raises :class:`ConfigError` where it is missing."""
    group = getattr(data, name)
    if group is None:
        raise ConfigError(f"{where}.{name}: needed with `source: {data.source}`; see docs/data.md")
    return group


def check_address(url: str, *, where: str, schemes: tuple[str, ...]) -> None:
    """Raise :class:`ConfigError` for an address without scheme or host, or with a password: params.yaml is in git."""
    try:
        parts = urlsplit(url)
        host, secret, _ = parts.hostname, "@" in parts.netloc, parts.port  # a port that is no number raises too
    except ValueError:  # its text would quote what it takes for the port: the beginning of a password
        raise ConfigError(f"{where}: not an address: a port is a number, [ and ] enclose IPv6") from None
    if parts.scheme not in schemes or not host:
        raise ConfigError(f"{where}: {url!r} is not an address of the form {schemes[0]}://...")
    if secret:
        raise ConfigError(f"{where}: remove user name and password from the address; docs/data.md says where they go")
