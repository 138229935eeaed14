"""`params.yaml`, typed and strict: every knob of the pipeline in one file.

:func:`load` reads the whole file and refuses an unknown key by name, whichever stage runs; a stage then uses its part.
The networks are known by the catalogue: torch takes a second and 0.2 GB, and a check of data does without.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from stages.project.names import check_folder, check_line, check_model_name, check_values, check_variant
from stages.project.params_data import Data, check_address, check_data
from stages.project.params_promotion import Promotion
from stages.project.params_search import Choice, Search
from stages.project.params_train import check_head, check_pgi, check_quantization, check_rep_optimizer, quantization_for
from stages.project.redaction import in_one_line
from yolov7.artefact import FORMATS, FormatName, Int8Settings
from yolov7.catalogue import listed_names, listed_recipes
from yolov7.config import Group, HeadOptions, Quantization, Train, merge, parse, train_parameters
from yolov7.documents import MAX_YAML, DocumentError, read_text
from yolov7.errors import ConfigError, nearest
from yolov7.yaml_text import read_yaml

if TYPE_CHECKING:
    from yolov7.model.spec import Network

PARAMS_FILE = Path("params.yaml")
OWN_RECIPE = "p5"
"""The preset of a network of the user's own."""


def _off(value: Any) -> Any:
    """Undo YAML, which reads the bare word `off` as false."""
    return "off" if value is False else value


RuleSeverity = Annotated[Literal["blocking", "warning", "off"], BeforeValidator(_off)]
"""Effect of a broken rule: stop the pipeline, be reported, or none (the rule is skipped)."""


class Validation(Group):
    """Checks of the data before anything is trained on it."""

    suite: str = "validation"
    """Folder of the rules (YAML), and of the statistics of the champion's data (reference.json) for drift rules."""
    severity: dict[str, RuleSeverity] = Field(default_factory=dict)
    """Severity of single rules, instead of the one in their file: `rule-name: warning`."""
    on_bad_record: Literal["stop", "drop"] = "stop"
    """Effect of a blocking finding about one image or annotation: `stop` the pipeline, or `drop` the record and list it
    in the report. Findings about splits and categories always stop the pipeline."""
    check_images: bool = True
    """Decode every image and compare its size with the annotation."""
    near_duplicate_bits: int | None = Field(default=10, ge=0, le=32)
    """Images of two splits whose difference hashes (128 bits) differ in at most this many bits are reported as nearly
    the same; null: skip the search."""
    max_findings: int = Field(default=1000, ge=1)
    """At most this many findings of one rule are listed one by one; the count is always exact."""
    sample_pictures: int = Field(default=12, ge=0)
    """Labelled samples drawn into the report."""
    worst_pictures: int = Field(default=24, ge=0)
    """Images with findings drawn into the report, the most serious first."""


def _known_format(name: Any) -> Any:
    """Refuse an unknown format, naming the nearest known one."""
    if name not in FORMATS:
        raise ValueError(f"unknown format{nearest(str(name), list(FORMATS))}")
    return name


KnownFormat = Annotated[FormatName, BeforeValidator(_known_format)]


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
    formats: tuple[KnownFormat, ...] = ("openvino",)
    """Formats in addition to .safetensors and ONNX: OpenVINO, int8, ONNX with raw maps (docs/export.md)."""
    int8: Int8Settings = Int8Settings()
    """The int8 files."""
    verify_images: int = Field(default=32, ge=1)
    """Number of validation images the artefacts are compared on."""
    max_raw_difference: float = Field(default=1e-3, gt=0.0)
    """Largest absolute difference of a score or probability between any two forms."""
    max_box_difference: float = Field(default=0.1, gt=0.0)
    """Largest difference of a box side between any two forms, in pixels of the network's input."""
    max_ap_difference: float = Field(default=0.002, ge=0.0)
    """Largest difference in AP between any two forms on the verification images."""


def _border_width(value: Any) -> Any:
    """Refuse what is neither a width nor the word, in one line instead of one for each type."""
    if value != "published" and not (type(value) is int and value >= 0):
        raise ValueError("a whole number of pixels, or `published`, is expected")
    return value


class GreyBorder(Group):
    """Grey around the images of an evaluation, and the way back (docs/evaluation.md; yolov7.letterbox.Border)."""

    pixels: Annotated[int | Literal["published"], BeforeValidator(_border_width)] = 0
    """Grey along the image's long side, half of it on each end: that side is the input's minus this. `published`: as
    the figures of the variant were measured (0 for networks without such a border, and for your own)."""
    integer_offset: bool = True
    """Boxes find back from the corner that the image was placed at. False: from half of the grey, which is half a pixel
    off where the grey is odd."""
    exact_scale: bool = True
    """Boxes find back by the scale of each axis. False: by that of the height."""
    spare: float = Field(default=0.5, ge=0.0, le=1.0)
    """With `rectangular`: strides added to each side of a batch before it is rounded up to whole ones."""

    @property
    def conditions(self) -> str:
        """What differs from the defaults, as in :attr:`Evaluate.conditions`."""
        default = GreyBorder()
        differs = [name for name in type(self).model_fields if getattr(self, name) != getattr(default, name)]
        return "".join(f" border.{name}={getattr(self, name)}" for name in differs)


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
    """Batches of similar shape with little border instead of squares, the setting of the published figures; needs
    export.dynamic."""
    border: GreyBorder = GreyBorder()
    """More grey around the images, as YOLOv6's published figures have it. Measures a detector that is used this way:
    `yolov7 predict` takes the same `--border`; served models have none."""
    augment: bool | Literal["all", "scales", "flip"] = False
    """Test-time augmentation: each image is seen several times, smaller and mirrored (true: `all`; `scales`: not
    mirrored). Measures the AP of a detector that is used this way, several times slower; all but `flip` need
    export.dynamic."""
    pictures: int = Field(default=12, ge=0)
    """Test images drawn with their detections, and as many in the report."""
    resamples: int = Field(default=200, ge=20)
    """Bootstrap resamples of the test images for the interval of AP."""

    @property
    def conditions(self) -> str:
        """The settings that AP depends on, in one line: AP is comparable only between equal ones."""
        text = f"confidence={self.confidence:g} iou={self.iou:g} max_detections={self.max_detections}"
        text += f" rectangular={self.rectangular}" if self.rectangular else ""
        text += self.border.conditions
        return text + (f" augment={self.augment}" if self.augment else "")


class Registry(Group):
    """MLflow."""

    experiment: str = "yolov7"
    """Experiment the runs are filed under."""
    model_prefix: str = ""
    """Prefix of the variant's name in the registered model's name."""


class Flow(Group):
    """Settings of the Prefect flows."""

    accelerator_slots: int = Field(default=1, ge=1)
    """Number of variants that train at the same time."""
    retries: int = Field(default=2, ge=0)
    """Retries of a failed stage (a training resumes)."""
    retry_seconds: int = Field(default=10, ge=0)
    """Pause before the first retry; it doubles each time."""
    stage_timeout_hours: float = Field(default=240.0, gt=0.0)
    """Time limit of a stage."""
    fetch_reference: bool = False
    """Fetch the statistics of the champion's data before validation (`python -m stages.data_reference`), so that a
    scheduled run measures drift from the current champion; false: use the existing file."""
    push: bool = True
    """Push the results to the DVC remote at the end."""
    pull: bool = False
    """Fetch existing results from the DVC remote: outputs named in dvc.lock, and results of the run cache. For runs in
    fresh checkouts, which have neither; with a persistent folder and cache it only costs requests."""
    remote_training: str = ""
    """A deployment, FLOW/NAME, whose workers train (`train-variant/by-revision`); empty: this machine trains."""
    state_remote: str = ""
    """Destination for copies of the newest training state, `s3://BUCKET/PREFIX` or a shared folder: another machine can
    resume from them if this one is lost; empty: no copies."""
    state_every_minutes: float = Field(default=10.0, ge=0.0)
    """Shortest time between two copies; a copy is made of a saved state (train.checkpoint_minutes)."""


class Params(Group):
    """All of `params.yaml`."""

    variants: tuple[str, ...] = ("yolov7-tiny",)
    """Networks to train; each gets its own train, export, evaluate and register stage."""
    data: Data = Data()
    """Source of the data."""
    validation: Validation = Validation()
    """Checks of the data."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Training parameters of every variant as written (yolov7.config.Train); `trainings` holds them parsed."""
    per_variant: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Training parameters that differ for one variant, as written, by variant name."""
    quantization: dict[str, Any] = Field(default_factory=dict)
    """Quantisation-aware training as written (yolov7.config.Quantization), and under `per_variant` what differs for one
    variant."""
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
    search: Search = Search()
    """Search of training parameters."""
    choice: Choice = Choice()
    """Choice of the network."""

    @cached_property
    def trainings(self) -> Mapping[str, Train]:
        """Training parameters by variant, parsed once: preset (default: its recipe), `train`, `per_variant`."""
        return {variant: self.training(variant) for variant in self.variants}

    def network_for(self, variant: str) -> Network | None:
        """The user's own network that `network` names for this variant; None for one of the library's."""
        from yolov7.model.variants import find_variant

        source = merge(self.train, self.per_variant.get(variant, {})).get("network")
        return find_variant(variant, source=source) if source else None

    def train_for(self, variant: str) -> Train:
        """Training parameters of one variant of `variants`."""
        return self.trainings[variant]

    def quantization_for(self, variant: str) -> Quantization:
        """Parameters of the quantisation-aware training of one variant."""
        return quantization_for(self.quantization, variant)

    def training(self, variant: str, changes: Mapping[str, Any] | None = None, *, where: str = "") -> Train:
        """Training parameters of any variant, with `changes` laid over them, which `where` names in errors."""
        values = merge(merge(self.train, self.per_variant.get(variant, {})), changes or {})
        where, recipe = where or f"params.yaml: train (with per_variant.{variant})", self._recipe(variant, values)
        try:
            train = train_parameters(values, where=where, recipe=recipe)
        except ConfigError as error:
            raise self._without_variant(error, where, recipe) from None
        if train.pgi and not train.network:  # a network of the user's own is asked for when it is trained
            check_pgi(variant, train, where)
        if train.rep_optimizer and not train.network:
            check_rep_optimizer(variant, train, where)
        if train.head != HeadOptions() and not train.network:
            check_head(variant, train, where)
        return train

    def _without_variant(self, error: ConfigError, where: str, recipe: str) -> ConfigError:
        """The error as one of `train` where that has it without `per_variant` too: it is not one of the variant.

        `train` alone need not be valid: a variant may complete it, as a teacher does `first_epochs`.
        """
        alone = "params.yaml: train"
        try:
            train_parameters(self.train, where=alone, recipe=recipe)
        except ConfigError as other:
            return other if str(other) == str(error).replace(where, alone) else error
        return error

    @staticmethod
    def _recipe(variant: str, values: Mapping[str, Any]) -> str:
        # A network of the user's own has no recipe, even under the name of a variant.
        return OWN_RECIPE if values.get("network") else listed_recipes().get(variant, OWN_RECIPE)


def load(path: str | Path = PARAMS_FILE) -> Params:
    """Read and check the whole file. Raises :class:`ConfigError` naming the key and the nearest known one."""
    file = Path(path)
    try:
        document = read_yaml(read_text(file, MAX_YAML))
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: no such file; run the command in the project's root, which holds params.yaml"
        ) from None
    except OSError as error:
        raise ConfigError(f"{file}: not readable: {error.strerror}") from None
    except DocumentError as error:
        raise ConfigError(f"{file}: not readable as YAML: {in_one_line(error, 300)}") from None
    if not isinstance(document.value, Mapping):
        raise ConfigError(f"{file}: expected a mapping of groups, for example `train:`")
    check_values(document.value, where=str(file))
    params = parse(Params, document.value, where=str(file), written=document.written)
    _check(params, file)
    return params


def _check_names(params: Params, file: Path) -> None:
    """Names fit all their later uses: a stage, the shell, a folder, the registry."""
    for name in params.variants:
        check_variant(name, where=f"{file}: variants")
    for name in params.per_variant:
        check_variant(name, where=f"{file}: per_variant")
    if params.registry.model_prefix:
        # The variant's name follows: what ends the prefix is inside the model's name.
        check_model_name(f"{params.registry.model_prefix}x", where=f"{file}: registry.model_prefix")
    check_model_name(params.choice.name, where=f"{file}: choice.name")
    check_line(params.registry.experiment, where=f"{file}: registry.experiment")
    check_folder(params.data.folder, where=f"{file}: data.folder")
    check_folder(params.validation.suite, where=f"{file}: validation.suite")


def _check(params: Params, file: Path) -> None:
    """Cross-field checks. Raises :class:`ConfigError` naming the key."""
    if not params.variants:
        raise ConfigError(f"{file}: variants: name at least one network")
    _check_names(params, file)
    # The entry of a user's own network says where it is defined.
    known = [*listed_names(), *(name for name, values in params.per_variant.items() if values.get("network"))]
    for name in params.variants:
        if name not in known:
            raise ConfigError(f"{file}: variants: unknown variant {name!r}{nearest(name, known)}")
        if name not in params.per_variant:
            raise ConfigError(f"{file}: per_variant: no entry for {name!r}; add `{name}: {{}}`, because DVC tracks it")
    for name in params.per_variant:
        if name not in known:
            raise ConfigError(f"{file}: per_variant: unknown variant {name!r}{nearest(name, known)}")
    named = [("choice.candidates", params.choice.candidates), ("search.variant", (params.search.variant,))]
    for key, names in named:
        for name in filter(None, names):
            if name not in known:
                raise ConfigError(f"{file}: {key}: unknown variant {name!r}{nearest(name, known)}")
    _ = params.trainings
    check_quantization(params.quantization, params.variants, known, where=f"{file}: quantization")
    check_data(params.data, where=f"{file}: data")
    if "://" in params.flow.state_remote or params.flow.state_remote.startswith("s3:"):  # no folder
        check_address(params.flow.state_remote, where=f"{file}: flow.state_remote", schemes=("s3",))
    if params.flow.remote_training.count("/") != bool(params.flow.remote_training):
        raise ConfigError(
            f"{file}: flow.remote_training: expected a deployment FLOW/NAME, as in `prefect deployment ls`"
        )
