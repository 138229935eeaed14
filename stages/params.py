"""`params.yaml`, typed and strict: every knob of the pipeline in one file.

:func:`load` reads the whole file and refuses an unknown key by name, whichever stage runs; a stage then uses its part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import BeforeValidator, Field

from yolov7.config import Group, Train, merge, nearest, parse, train_parameters
from yolov7.errors import ConfigError

PARAMS_FILE = Path("params.yaml")


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


class CocoSplit(Group):
    """One set of images of a COCO-format data set."""

    images: str
    """Folder that the `file_name` entries are relative to; itself relative to data.folder."""
    annotations: str
    """Annotation json (instances format), relative to data.folder."""


class VocSplit(Group):
    """One set of images of a Pascal VOC data set."""

    images: str
    """Folder of the images, relative to data.folder."""
    annotations: str
    """Folder of the XML files, relative to data.folder."""
    listed_in: str | None = None
    """Text file (an image set of VOC: a name a line) or CSV (column `filename`) that names the files of this set;
    without one, every XML file belongs to it."""


class YoloSplit(Group):
    """One set of images with YOLO text labels."""

    images: str
    """Folder of the images, relative to data.folder."""
    labels: str
    """Folder of the label files, relative to data.folder: `a/b.txt` for the image `a/b.jpg`."""
    listed_in: str | None = None
    """Text file or CSV that names the images of this set; without one, every image of the folder belongs to it."""


S = TypeVar("S", CocoSplit, VocSplit, YoloSplit)


class Sets(Group, Generic[S]):
    """The images: either train, val and perhaps test, or all of them in one set that data.split divides."""

    train: S | None = None
    """Trained on."""
    val: S | None = None
    """Chooses the checkpoint."""
    test: S | None = None
    """Gives the reported figures; without one the val split does, and the report says so."""
    all: S | None = None
    """One set, to be divided as data.split says."""

    def given(self, where: str) -> dict[str, S]:
        """The sets by name: `all` alone, or train, val and perhaps test. Raises :class:`ConfigError` otherwise."""
        sets = {"train": self.train, "val": self.val, "test": self.test, "all": self.all}
        given = {name: one for name, one in sets.items() if one is not None}
        if "all" in given and len(given) > 1:
            raise ConfigError(f"{where}: give either `all`, or `train` and `val` (and `test`), not both")
        if "all" not in given and not {"train", "val"} <= given.keys():
            raise ConfigError(
                f"{where}: give `train` and `val` (and `test`), or `all` to have it divided by data.split"
            )
        return given


class Coco(Sets[CocoSplit]):
    """A COCO-format data set of yours: an image folder and an annotation json per set."""


class Voc(Sets[VocSplit]):
    """A Pascal VOC data set of yours: a folder of XML files beside the images."""

    classes: tuple[str, ...] | None = None
    """Class names in the order of their numbers; another name is then an error. Without: those that occur, sorted."""
    one_based: bool = False
    """Pixels are numbered from 1 and the last one is included, as in the original VOC data (left = xmin - 1);
    false: xmin to ymax are the edges of the box, as annotation tools write them."""
    difficult_is_crowd: bool = False
    """Objects marked difficult are ignored in training and evaluation."""


class Yolo(Sets[YoloSplit]):
    """Images of yours with YOLO text labels."""

    names: tuple[str, ...] | str
    """Class names in the order of their numbers, or a file that has them: one a line, or YAML with `names`."""


class Split(Group):
    """How `all` is divided into train, val and test. Same seed and same images: same splits."""

    train: float = Field(default=0.7, gt=0.0, lt=1.0)
    """Share of the images."""
    val: float = Field(default=0.15, gt=0.0, lt=1.0)
    """Share of the images."""
    test: float = Field(default=0.15, ge=0.0, lt=1.0)
    """Share of the images; 0: none, the val split then gives the reported figures."""
    seed: int = Field(default=0, ge=0)
    """Another seed, another division."""
    stratify: bool = True
    """Give every split its share of every class, not only of the images."""
    near_duplicate_bits: int | None = Field(default=10, ge=0, le=32)
    """Images whose difference hashes (128 bits) differ in at most this many bits stay together; null: do not look."""
    group_pattern: str | None = None
    """Regular expression on the file name; images with the same match (of its groups, if it has any) stay together."""
    group_field: str | None = None
    """Field of the image records (COCO); images with the same value stay together."""


class Remote(Group):
    """A data set that is brought here first. `coco`, `voc` or `yolo` then says where its parts are inside."""

    url: str
    """Its address, without credentials: those come from the environment (docs/data.md)."""
    format: Literal["coco", "voc", "yolo"] = "coco"
    """Format of what is brought; data.folder plays no part in where its files are looked for."""


class Http(Remote):
    """An archive (zip, tar, tar.gz) on a web server."""

    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """What the archive's bytes must hash to; without it, the server is asked each time whether the archive changed."""
    size: int | None = Field(default=None, ge=1)
    """What the archive's size must be, in bytes."""


class S3(Remote):
    """All objects below a prefix of a bucket: `s3://bucket/prefix`."""

    endpoint: str | None = None
    """Address of a server other than Amazon's; AWS_ENDPOINT_URL does the same."""
    anonymous: bool = False
    """Ask without credentials, as public buckets allow."""
    parallel: int = Field(default=8, ge=1, le=64)
    """Objects fetched at a time."""


class Coco2017(Group):
    """COCO 2017, train and val, from its official archives: 20 GB to fetch, twice that while they are unpacked."""

    url: str = "http://images.cocodataset.org"
    """A mirror with the same archives under the same paths; their checksums are known."""


class Data(Group):
    """Where the data comes from."""

    source: Literal["digits", "coco", "voc", "yolo", "http", "s3", "coco2017"] = "digits"
    """`digits`: the embedded set; `coco`, `voc`, `yolo`: formats of the folders named below; the others are fetched."""
    folder: str = "datasets"
    """Folder of your data. The ingest stage depends on all of it, so that a changed file is seen."""
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
    """Used where a source gives `all`."""


def _off(value: Any) -> Any:
    """YAML reads the bare word `off` as false."""
    return "off" if value is False else value


RuleSeverity = Annotated[Literal["blocking", "warning", "off"], BeforeValidator(_off)]
"""What a broken rule does: stop the pipeline, be reported, or nothing, because it is not judged."""


class Validation(Group):
    """What the data must satisfy before anything is trained on it."""

    suite: str = "validation"
    """Folder of the rules (YAML), and of the statistics of the champion's data they compare with (reference.json)."""
    severity: dict[str, RuleSeverity] = Field(default_factory=dict)
    """Severity of single rules where it is to differ from the one in their file: `rule-name: warning`."""
    on_bad_record: Literal["stop", "drop"] = "stop"
    """What a blocking finding about one image or annotation does: `stop` the pipeline, or leave the record out (`drop`)
    and list it in the report; findings about splits and categories stop it in any case."""
    check_images: bool = True
    """Decode every image and compare its size with the annotation."""
    near_duplicate_bits: int | None = Field(default=10, ge=0, le=32)
    """Images of two splits whose difference hashes (128 bits) differ in at most this many bits are reported as nearly
    the same; null: do not look."""
    max_findings: int = Field(default=1000, ge=1)
    """At most this many findings of one rule are listed one by one; the count is always exact."""
    sample_pictures: int = Field(default=12, ge=0)
    """Labelled samples drawn into the report."""
    worst_pictures: int = Field(default=24, ge=0)
    """Images with findings drawn into the report, the gravest first."""


class Int8(Group):
    """The int8 files among `export.formats`."""

    max_ap_drop: float = Field(default=0.005, ge=0.0, le=1.0)
    """AP on the validation images may fall by this much (0.005 is half a point of a hundred); beyond it, the layers
    that cost most go back to float, one group after another."""
    calibration_images: int = Field(default=64, ge=1)
    """Training images that ranges are measured on."""
    validation_images: int = Field(default=500, ge=1)
    """Validation images that AP is measured on."""


def _known_format(name: Any) -> Any:
    """The nearest known name for one that is not."""
    if name not in FORMATS:
        raise ValueError(f"unknown format{nearest(str(name), list(FORMATS))}")
    return name


FormatName = Annotated[
    Literal["openvino", "openvino-float16", "onnx-int8", "openvino-int8", "onnx-raw"], BeforeValidator(_known_format)
]
FORMATS = ("openvino", "openvino-float16", "onnx-int8", "openvino-int8", "onnx-raw")


class Export(Group):
    """Re-parameterise, export, and verify the artefact against the trained model."""

    opset: int = Field(default=18, ge=18)
    """ONNX operator set."""
    dynamic: bool = True
    """Batch size and image sides may vary at run time; false fixes them to one image of image_size."""
    confidence: float = Field(default=0.25, ge=0.0, le=1.0)
    """Score threshold inside the NMS graph, and the default of `yolov7 predict`."""
    iou: float = Field(default=0.45, gt=0.0, le=1.0)
    """IoU threshold inside the NMS graph, and the default of `yolov7 predict`."""
    max_detections: int = Field(default=100, ge=1)
    """Most detections per image the NMS graph returns."""
    formats: tuple[FormatName, ...] = ("openvino",)
    """What is written besides .safetensors and ONNX: OpenVINO, int8, ONNX with raw maps (docs/export.md)."""
    int8: Int8 = Int8()
    """The int8 files."""
    verify_images: int = Field(default=32, ge=1)
    """Number of validation images the artefacts are compared on."""
    max_raw_difference: float = Field(default=1e-3, gt=0.0)
    """Largest absolute difference of a score or probability between any two forms."""
    max_box_difference: float = Field(default=0.1, gt=0.0)
    """Largest difference of a box side between any two forms, in pixels of the network's input."""
    max_ap_difference: float = Field(default=0.002, ge=0.0)
    """Largest difference in AP between any two forms on the verification images."""


class Evaluate(Group):
    """COCO evaluation of the ONNX artefact (training sheet, section 9)."""

    confidence: float = Field(default=0.001, ge=0.0, le=1.0)
    """Candidates below this score are dropped."""
    iou: float = Field(default=0.65, gt=0.0, le=1.0)
    """IoU threshold of the non-maximum suppression."""
    max_detections: int = Field(default=300, ge=1)
    """Detections kept per image before COCO's own limit of 100."""
    batch_size: int = Field(default=16, ge=1)
    """Images per forward pass."""
    rectangular: bool = False
    """Batches of similar shape with little border instead of squares, as the published figures were measured; needs
    export.dynamic."""
    augment: bool | Literal["all", "scales", "flip"] = False
    """Test-time augmentation: each image is seen several times, smaller and mirrored (true: `all`; `scales` leaves the
    mirror out). AP of a detector that is used so, and several times slower; all but `flip` need export.dynamic."""
    pictures: int = Field(default=12, ge=0)
    """Test images drawn with their detections, and as many in the report."""
    resamples: int = Field(default=200, ge=20)
    """Times the test images are drawn again for the interval of AP."""


class Registry(Group):
    """MLflow."""

    experiment: str = "yolov7"
    """Experiment the runs are filed under."""
    model_prefix: str = ""
    """Put before the variant's name to make the registered model's name."""


class Promotion(Group):
    """When a challenger becomes the champion: measured side by side on the test split, it must pass every check."""

    margin: float = Field(default=0.0, ge=0.0, le=1.0)
    """The challenger's test AP must exceed the champion's by more than this."""
    certain: bool = False
    """The whole 95 % interval of the difference must lie above `margin`, not the measured difference alone."""
    max_class_loss: float = Field(default=0.2, gt=0.0, le=1.0)
    """No class's AP may fall by more than this."""
    min_class_objects: int = Field(default=30, ge=1)
    """Classes with fewer test objects are not held against the challenger: their AP is mostly luck."""
    max_latency_ms: float = Field(default=0.0, ge=0.0)
    """Median time of one test image, preparation and suppression included, on the machine of the gate (0: any)."""
    max_size_mb: float = Field(default=0.0, ge=0.0)
    """Size of the ONNX file (0: any)."""


class Flow(Group):
    """How the Prefect flow runs the stages."""

    accelerator_slots: int = Field(default=1, ge=1)
    """Variants that train at the same time."""
    retries: int = Field(default=2, ge=0)
    """Times a failed stage is started again (a training resumes where it stopped)."""
    retry_seconds: int = Field(default=10, ge=0)
    """Pause before the first retry; it doubles each time."""
    stage_timeout_hours: float = Field(default=240.0, gt=0.0)
    """A stage that runs longer is stopped."""
    fetch_reference: bool = False
    """Fetch the statistics of the champion's data before validation (`python -m stages.data_reference`), so that a
    scheduled run judges drift from the present champion; false: by the file that is there."""
    push: bool = True
    """Push the results to the DVC remote when all is done."""
    remote_training: str = ""
    """A deployment, FLOW/NAME, whose workers train instead of this machine (`train-variant/by-revision`); empty: here.
    """
    state_remote: str = ""
    """Where copies of the newest training state go while a training runs, `s3://BUCKET/PREFIX` or a shared folder, so
    that it goes on elsewhere when its machine is gone; empty: no copies."""
    state_every_minutes: float = Field(default=10.0, ge=0.0)
    """Time between two copies, at least; a copy is taken of a state that is saved (train.checkpoint_minutes)."""


class Params(Group):
    """The whole of `params.yaml`."""

    variants: tuple[str, ...] = ("yolov7-tiny",)
    """Networks to train; each gets its own train, export, evaluate and register stage."""
    data: Data = Data()
    """Where the data comes from."""
    validation: Validation = Validation()
    """What the data must satisfy."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Training parameters of every variant (yolov7.config.Train)."""
    per_variant: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What one variant does otherwise: training parameters by variant name."""
    export: Export = Export()
    """Export and verification."""
    evaluate: Evaluate = Evaluate()
    """COCO evaluation."""
    registry: Registry = Registry()
    """MLflow."""
    promotion: Promotion = Promotion()
    """Promotion gate."""
    flow: Flow = Flow()
    """Orchestration."""

    def train_for(self, variant: str) -> Train:
        """Training parameters of one variant: preset, then `train`, then `per_variant`."""
        values = merge(self.train, self.per_variant.get(variant, {}))
        return train_parameters(values, where=f"params.yaml: train (with per_variant.{variant})")


def load(path: str | Path = PARAMS_FILE) -> Params:
    """Read and check the whole file. Raises :class:`ConfigError` naming the key and the nearest known one."""
    file = Path(path)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; run from the project's root, where params.yaml lies") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{file}: a mapping of groups is expected, for example `train:`")
    params = parse(Params, values, where=str(file))
    _check(params, file)
    return params


def _check(params: Params, file: Path) -> None:
    """What one field alone cannot tell."""
    from yolov7.model import list_variants

    if not params.variants:
        raise ConfigError(f"{file}: variants: name at least one network")
    # A network of the user's own is known by the entry that says where it is defined.
    known = [*list_variants(), *(name for name, values in params.per_variant.items() if values.get("network"))]
    for name in params.variants:
        if name not in known:
            raise ConfigError(f"{file}: variants: unknown variant {name!r}{nearest(name, known)}")
        if name not in params.per_variant:
            raise ConfigError(f"{file}: per_variant: no entry for {name!r}; add `{name}: {{}}`, because DVC tracks it")
    for name in params.per_variant:
        if name not in known:
            raise ConfigError(f"{file}: per_variant: unknown variant {name!r}{nearest(name, known)}")
    train_parameters(params.train, where=f"{file}: train")
    for name in params.variants:
        params.train_for(name)
    check_data(params.data, where=f"{file}: data")
    if params.flow.state_remote.startswith("s3:"):
        _check_address(params.flow.state_remote, where=f"{file}: flow.state_remote", schemes=("s3",))
    if params.flow.remote_training.count("/") != bool(params.flow.remote_training):
        raise ConfigError(f"{file}: flow.remote_training: a deployment is FLOW/NAME, as `prefect deployment ls` says")
    low, high = params.data.digits.digits_per_image
    if not 1 <= low <= high:
        raise ConfigError(f"{file}: data.digits.digits_per_image: give fewest and most, for example [1, 6]")
    small, large = params.data.digits.digit_size
    if not 0.0 < small <= large <= 1.0:
        raise ConfigError(f"{file}: data.digits.digit_size: give smallest and largest share, for example [0.1, 0.35]")


def check_data(data: Data, *, where: str) -> None:
    """What the fields of `data` cannot tell one by one. Raises :class:`ConfigError`."""
    kind: str = data.source
    if kind in ("http", "s3"):
        remote: Remote | None = getattr(data, kind)
        if remote is None:
            raise ConfigError(f"{where}.{kind}: needed with `source: {kind}`; see docs/data.md")
        _check_address(remote.url, where=f"{where}.{kind}.url", schemes=("s3",) if kind == "s3" else ("http", "https"))
        kind = remote.format
    elif kind == "coco2017":
        _check_address(data.coco2017.url, where=f"{where}.coco2017.url", schemes=("http", "https"))
    if kind in ("coco", "voc", "yolo"):
        sets: Coco | Voc | Yolo | None = getattr(data, kind)
        if sets is None:
            raise ConfigError(f"{where}.{kind}: needed with `source: {data.source}`; see datasets/README.md")
        sets.given(f"{where}.{kind}")
    split = data.split
    if abs(split.train + split.val + split.test - 1.0) > 1e-6:
        raise ConfigError(f"{where}.split: train, val and test must add up to 1")
    try:
        re.compile(split.group_pattern or "")
    except re.error as error:
        raise ConfigError(f"{where}.split.group_pattern: no regular expression: {error}") from None


def _check_address(url: str, *, where: str, schemes: tuple[str, ...]) -> None:
    """An address has one of the schemes and a host or bucket, and holds no password: params.yaml goes into git."""
    try:
        parts = urlsplit(url)
        host, secret = parts.hostname, parts.username or parts.password
    except ValueError as error:
        raise ConfigError(f"{where}: no address: {error}") from None
    if parts.scheme not in schemes or not host:
        raise ConfigError(f"{where}: {url!r} is no address of the form {schemes[0]}://...")
    if secret:
        raise ConfigError(f"{where}: take user name and password out of the address; see docs/data.md for the places")
