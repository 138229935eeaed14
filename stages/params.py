"""`params.yaml`, typed and strict: every knob of the pipeline in one file.

:func:`load` reads the whole file and refuses an unknown key by name, whichever stage runs; a stage then uses its part.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

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
    """One split of a COCO-format data set."""

    images: str
    """Folder that the `file_name` entries are relative to; itself relative to data.folder."""
    annotations: str
    """Annotation json (instances format), relative to data.folder."""


class Coco(Group):
    """A COCO-format data set of yours: an image folder and an annotation json per split."""

    train: CocoSplit
    """Trained on."""
    val: CocoSplit
    """Chooses the checkpoint."""
    test: CocoSplit | None = None
    """Gives the reported figures; without one the val split does, and the report says so."""


class Data(Group):
    """Where the data comes from."""

    source: Literal["digits", "coco"] = "digits"
    """`digits`: the embedded set; `coco`: the folders named below."""
    folder: str = "datasets"
    """Folder of your data. The ingest stage depends on all of it, so that a changed file is seen."""
    digits: Digits = Digits()
    """The embedded set."""
    coco: Coco | None = None
    """Needed with `source: coco`."""


class Validation(Group):
    """What the data must satisfy before anything is trained on it."""

    check_images: bool = True
    """Decode every image and compare its size with the annotation."""
    max_findings: int = Field(default=1000, ge=1)
    """At most this many findings of one rule are listed one by one; the count is always exact."""
    sample_pictures: int = Field(default=12, ge=0)
    """Labelled samples drawn into the report."""


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
    pictures: int = Field(default=12, ge=0)
    """Test images drawn with their detections."""


class Registry(Group):
    """MLflow."""

    experiment: str = "yolov7"
    """Experiment the runs are filed under."""
    model_prefix: str = ""
    """Put before the variant's name to make the registered model's name."""


class Promotion(Group):
    """When a challenger becomes the champion."""

    margin: float = Field(default=0.0, ge=0.0, le=1.0)
    """The challenger's test AP must exceed the champion's by more than this."""


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
    push: bool = True
    """Push the results to the DVC remote when all is done."""


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
    if params.data.source == "coco" and params.data.coco is None:
        raise ConfigError(f"{file}: data.coco: needed with `source: coco`; give images and annotations per split")
    low, high = params.data.digits.digits_per_image
    if not 1 <= low <= high:
        raise ConfigError(f"{file}: data.digits.digits_per_image: give fewest and most, for example [1, 6]")
    small, large = params.data.digits.digit_size
    if not 0.0 < small <= large <= 1.0:
        raise ConfigError(f"{file}: data.digits.digit_size: give smallest and largest share, for example [0.1, 0.35]")
