"""The `data` group of `params.yaml`: source, format and division into splits."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field

from yolov7.config import Group
from yolov7.data.sources.parameters import Coco, Voc, Yolo
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
