"""Typed parameters of the library.

Every group is a frozen pydantic model that refuses unknown keys. :func:`parse` turns a mapping (a subtree of
`params.yaml`) into a group and reports a mistake in one line, with the key and the nearest known one.
Defaults are those of YOLOv7's published p5 hyper-parameters (training sheet, section 1); the other published sets are
in :mod:`yolov7.presets`. :func:`train_parameters` overrides a preset with the user's values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from yolov7.errors import ConfigError, nearest
from yolov7.presets import PRESETS


class Group(BaseModel):
    """A group of parameters: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class AddedLater:
    """Marks a field, `Annotated[float, AddedLater()]`, that revisions before it did not have.

    At its default it stays out of a run's identity (:func:`identity_of`), so that a run begun before the upgrade is
    still the same run.
    """


class Augment(Group):
    """Augmentation of a training sample (training sheet, section 4). Probabilities are per sample."""

    mosaic: float = Field(default=1.0, ge=0.0, le=1.0)
    """Probability of building a sample from several images."""
    mosaic9: float = Field(default=0.2, ge=0.0, le=1.0)
    """Share of the mosaics that use nine images instead of four."""
    close_mosaic_epochs: int = Field(default=0, ge=0)
    """Number of last epochs without mosaic, mixup and pasting (0: never, as published for YOLOv7)."""
    mixup: float = Field(default=0.15, ge=0.0, le=1.0)
    """Probability of blending a mosaic with a second one."""
    mixup_beta: float = Field(default=8.0, gt=0.0)
    """Both parameters of the Beta distribution that draws the blend ratio."""
    degrees: float = Field(default=0.0, ge=0.0, le=180.0)
    """Rotation is uniform in plus or minus this many degrees."""
    translate: float = Field(default=0.2, ge=0.0, le=0.9)
    """Translation is uniform in plus or minus this share of the output side."""
    scale: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Scale is uniform in [1 - scale, 1 + scale_surplus + scale]."""
    scale_surplus: Annotated[float, AddedLater()] = Field(default=0.1, ge=0.0, le=1.0)
    """Room for the scale to rise further than it falls, as published for YOLOv7."""
    max_aspect: Annotated[float, AddedLater()] = Field(default=20.0, gt=1.0)
    """Objects whose longer side reaches this many times the shorter one are left out of a sample, as published."""
    shear: float = Field(default=0.0, ge=0.0, lt=90.0)
    """Shear per axis is uniform in plus or minus this many degrees."""
    perspective: float = Field(default=0.0, ge=0.0, le=0.001)
    """Perspective terms are uniform in plus or minus this."""
    hsv_h: float = Field(default=0.015, ge=0.0, le=1.0)
    """Relative jitter of the hue."""
    hsv_s: float = Field(default=0.7, ge=0.0, le=1.0)
    """Relative jitter of the saturation."""
    hsv_v: float = Field(default=0.4, ge=0.0, le=1.0)
    """Relative jitter of the brightness."""
    flip_up_down: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability of a vertical flip."""
    flip_left_right: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability of a horizontal flip. Set 0 where left and right differ in meaning (digits, signs, text)."""
    copy_paste: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the polygon objects that are mirrored and pasted into the same mosaic."""
    paste_in: float = Field(default=0.15, ge=0.0, le=1.0)
    """Probability of pasting cut-out objects of other images (needs polygons; does nothing without)."""


class LossParameters(Group):
    """Base of the parameters of assignment and loss. Each kind of head has a subclass and names it."""


class AnchorLoss(LossParameters):
    """Assignment and loss of an anchor head (training sheet, sections 3 and 6 to 8)."""

    assigner: Literal["ota", "plain"] = "ota"
    """`ota`: dynamic matching by cost; `plain`: every candidate cell is a positive."""
    box: float = Field(default=0.05, ge=0.0)
    """Gain of the box (CIoU) loss."""
    objectness: float = Field(default=0.7, ge=0.0)
    """Gain of the objectness loss."""
    classification: float = Field(default=0.3, ge=0.0)
    """Gain of the class loss."""
    scale_gains: bool = True
    """Scale the gains with levels, class count and image size as published (section 3); false: use them as they are."""
    anchor_threshold: float = Field(default=4.0, gt=1.0)
    """An anchor fits a target if no side ratio exceeds this."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Class targets become 1 - s/2 and s/2."""
    focal_gamma: float = Field(default=0.0, ge=0.0)
    """Focal exponent for objectness and class (0: off)."""
    objectness_positive_weight: float = Field(default=1.0, gt=0.0)
    """Weight of positives in the objectness cross-entropy."""
    classification_positive_weight: float = Field(default=1.0, gt=0.0)
    """Weight of positives in the class cross-entropy."""
    auxiliary: Literal["coarse-to-fine", "lead-guided", "independent"] = "coarse-to-fine"
    """Assignment of the auxiliary head of a P6 network (paper section 4.2)."""
    auxiliary_weight: float = Field(default=0.25, ge=0.0)
    """Weight of the auxiliary head's loss."""
    auxiliary_constraint: bool = True
    """Decode the auxiliary head's boxes with the bounded decoder, as published (architecture sheet, section 7)."""


Loss = AnchorLoss
"""The name of revisions with one kind of head."""


class AlignedLoss(LossParameters):
    """Assignment and loss of an anchor-free head (reference sheet: yolov9-training, sections 5 and 6)."""

    assigner: Literal["aligned"] = "aligned"
    """`aligned`: task-aligned, by score and overlap."""
    top_k: int = Field(default=10, ge=1)
    """Cells that a target may choose."""
    alpha: float = Field(default=0.5, ge=0.0)
    """Exponent of the score in the alignment."""
    beta: float = Field(default=6.0, ge=0.0)
    """Exponent of the overlap in the alignment."""
    box: float = Field(default=7.5, ge=0.0)
    """Gain of the box (CIoU) loss."""
    dfl: float = Field(default=1.5, ge=0.0)
    """Gain of the loss of the distances' distributions."""
    classification: float = Field(default=0.5, ge=0.0)
    """Gain of the class loss."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Class targets t of the positives become t * (1 - s) + s / 2."""
    focal_gamma: float = Field(default=0.0, ge=0.0)
    """Focal exponent of the class loss (0: off)."""
    classification_positive_weight: float = Field(default=1.0, gt=0.0)
    """Weight of positives in the class cross-entropy."""
    auxiliary: Literal["independent", "lead-guided"] = "independent"
    """Assignment of the auxiliary head: by its own predictions as released, or by those of the lead head."""
    auxiliary_weight: float = Field(default=0.25, ge=0.0)
    """Weight of the auxiliary head's loss."""
    least_score_sum: float | None = Field(default=None, gt=0.0)
    """Least divisor of a head's loss, which is divided by the sum of its target scores. None: as released, 1, and
    no bound if the assignment is lead-guided (a batch without positives is divided by 1 then)."""


class Optimizer(Group):
    """Optimiser, warm-up and schedule (training sheet, section 2)."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """`sgd` with Nesterov momentum as published; `adam` and `adamw` use `momentum` as beta1."""
    learning_rate: float = Field(default=0.01, gt=0.0)
    """Learning rate after warm-up."""
    final_factor: float = Field(default=0.1, gt=0.0, le=1.0)
    """The schedule ends at learning_rate times this."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Shape of the decay, stepped once per epoch."""
    linear_reaches_end: Annotated[bool, AddedLater()] = True
    """The linear decay reaches final_factor in the last epoch; false: one epoch later, as the cosine does."""
    momentum: float = Field(default=0.937, ge=0.0, lt=1.0)
    """SGD momentum, or Adam's beta1."""
    weight_decay: float = Field(default=0.0005, ge=0.0)
    """Decay of convolution kernels, at the nominal batch."""
    nominal_batch: int = Field(default=64, ge=1)
    """Gradients of smaller batches are accumulated to about this many images; 1 steps after every batch."""
    warmup_epochs: float = Field(default=3.0, ge=0.0)
    """Length of the warm-up in epochs."""
    warmup_iterations: int = Field(default=1000, ge=0)
    """The warm-up lasts at least this many iterations."""
    warmup_momentum: float = Field(default=0.8, ge=0.0, lt=1.0)
    """Momentum at the start of the warm-up."""
    warmup_bias_learning_rate: float = Field(default=0.1, ge=0.0)
    """Learning rate of the biases at the start of the warm-up (the others start at 0)."""
    gradient_clip: float = Field(default=0.0, ge=0.0)
    """Largest norm of the gradient (0: no clipping, as published)."""


class Ema(Group):
    """Exponential moving average of the weights: decay * (1 - exp(-updates / ramp))."""

    enabled: bool = True
    """Evaluate and keep the averaged weights. False is the ablation: the raw weights are used."""
    decay: float = Field(default=0.9999, ge=0.0, lt=1.0)
    """Decay after many updates."""
    ramp: float = Field(default=2000.0, gt=0.0)
    """Number of updates over which the decay comes up."""


class Train(Group):
    """One training run. `preset` names the published set that fills whatever is not given."""

    preset: str = ""
    """A set of yolov7.presets, for example `small`; empty: the recipe that the variant was published with."""
    network: str = ""
    """A network of your own, as MODULE:FUNCTION (docs/variants.md); empty: the variant's name says which."""
    epochs: int = Field(default=300, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=16, ge=1)
    """Images per step over all processes."""
    image_size: int = Field(default=640, ge=32, le=8192)
    """Side of the square training image in pixels, a multiple of the network's largest stride."""
    seed: int = Field(default=0, ge=0)
    """Seed of every random generator of the run."""
    anchors: Literal["keep", "auto", "fit"] = "auto"
    """`keep`: the network's own; `auto`: fitted to the training boxes if they reach less than 98 % of them, as
    published; `fit`: always fitted, for data whose boxes are much smaller, larger or more alike than COCO's."""
    anchor_scale: float = Field(default=1.0, gt=0.0)
    """The network's own anchors are multiplied by this first. They were made for images of 640 (P6: 1280) pixels:
    below 1 suits small training images, so that objects fall to the level whose cells suit them."""
    multi_scale: bool = False
    """Resize every batch to a random size between half and one and a half times image_size."""
    weights: str = ""
    """A .safetensors checkpoint or a published .pt to start from; empty: random weights."""
    weights_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """sha256 of that file. The train stage requires it, because DVC watches params.yaml and not the file."""
    freeze: tuple[str, ...] = ()
    """Name groups whose parameters and BN statistics stay as they are, for example `backbone`."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast type; `auto` is float16 on CUDA and float32 elsewhere."""
    class_weights: Literal["equal", "inverse"] | dict[str, NonNegativeFloat] = "equal"
    """Weight of objects in the class loss: `equal`; `inverse` to the frequency of their class; or a mapping by class
    name, where classes left out count 1."""
    tf32: bool = True
    """Convolutions that are left in float32 may be multiplied in TF32 on devices that have it, as PyTorch does."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, and again for every new image size."""
    sync_batchnorm: bool = False
    """Batch statistics over the images of all processes, for when the share of each is small."""
    image_sampling: Literal["uniform", "class_balanced"] = "uniform"
    """Every image once an epoch; or as many, drawn so that those with objects of rare classes come more often."""
    evaluate_every: int = Field(default=1, ge=1)
    """Validate after every this many epochs, and after the last."""
    evaluate_rectangular: bool = False
    """Validate on batches of similar shape with little border instead of squares (training sheet, section 9)."""
    evaluate_iou: Annotated[float, AddedLater()] = Field(default=0.65, gt=0.0, le=1.0)
    """IoU threshold of the non-maximum suppression in validation, as published (section 9)."""
    patience: int = Field(default=0, ge=0)
    """Stop after this many epochs without a better validation AP (0: never)."""
    checkpoint_minutes: float = Field(default=10.0, ge=0.0)
    """Save the resumable state at least this often inside an epoch (it is always saved after one)."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keep decoded, resized images: `ram` in memory, `disk` in a file that later runs use again."""
    cache_folder: str = ".state/cache"
    """Folder of the file of `cache: disk`; a fast local disk is best."""
    max_bad_batches: int = Field(default=20, ge=0)
    """Stop after this many steps in a row that were skipped because loss or gradients were not finite."""
    max_bad_images: int = Field(default=100, ge=0)
    """Stop after this many unreadable training images in one epoch."""
    augment: Augment = Augment()
    """Augmentation of a sample."""
    loss: SerializeAsAny[LossParameters] = AnchorLoss()
    """Assignment and loss: the group of the variant's head (:class:`AnchorLoss` for YOLOv7)."""
    optimizer: Optimizer = Optimizer()
    """Optimiser, warm-up and schedule."""
    ema: Ema = Ema()
    """Averaged weights."""

    @field_validator("loss", mode="before")
    @classmethod
    def _read_loss(cls, loss: Any, info: ValidationInfo) -> Any:
        """A mapping is read as the group that :func:`parse` was given, :class:`AnchorLoss` outside it."""
        group: type[Group] = (info.context or {}).get(LossParameters, AnchorLoss)
        return group.model_validate(loss) if isinstance(loss, Mapping) else loss


G = TypeVar("G", bound=Group)


def parse(
    group: type[G],
    values: Mapping[str, Any] | None,
    *,
    where: str,
    loss: type[LossParameters] = AnchorLoss,
    written: Any = None,
) -> G:
    """Build `group` from a mapping; a mistake becomes a :class:`ConfigError` of one line.

    `where` is how the user knows the mapping, for example `params.yaml: train`. `loss` is the group that `Train.loss`
    is read as. `written` is the same mapping with all scalars as texts (:class:`yolov7.yaml_text.YamlDocument`): where
    a text is expected and YAML made something else of it, it is read as written.
    """
    given = dict(values or {})
    try:
        try:
            return group.model_validate(given, context={LossParameters: loss})
        except ValidationError as error:
            texts = {_place(item["loc"], given) for item in error.errors() if item["type"] == "string_type"}
            if written is None or not texts:
                raise
            return group.model_validate(_as_written(given, written, texts), context={LossParameters: loss})
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(group, item, where, loss) for item in error.errors())) from None


def _place(loc: tuple[str | int, ...], values: Any) -> tuple[str | int, ...]:
    """The place of an error in `values`; pydantic also puts the members of unions into it."""
    place: list[str | int] = []
    for part in loc:
        inside = part in values if isinstance(values, Mapping) else isinstance(values, list) and isinstance(part, int)
        if inside:
            values = values[part]
            place.append(part)
    return tuple(place)


def _as_written(values: Any, written: Any, texts: set[tuple[str | int, ...]], at: tuple[str | int, ...] = ()) -> Any:
    """`values` with the text as written at the places `texts`; nothing at all is a text in lists only."""
    if isinstance(values, Mapping):
        return {key: _as_written(value, written[key], texts, (*at, key)) for key, value in values.items()}
    if isinstance(values, list):
        return [_as_written(value, written[i], texts, (*at, i)) for i, value in enumerate(values)]
    keep = at not in texts or isinstance(values, str) or (values is None and not isinstance(at[-1], int))
    return values if keep else written


LOSSES: Mapping[str, type[LossParameters]] = {"yolov7": AnchorLoss, "yolov9": AlignedLoss}
"""The loss group of each family in :data:`yolov7.presets.PRESETS`."""


def train_parameters(
    values: Mapping[str, Any] | None, *, where: str = "params.yaml: train", recipe: str = "p5"
) -> Train:
    """Parameters of a run: a preset, with whatever `values` gives laid over it key by key.

    `recipe` is the preset the variant was published with. It is used where `values` names none, and its family is the
    one whose presets and loss parameters are valid here; a network of the user's own may name a preset of any family.
    Raises :class:`ConfigError`.
    """
    given = dict(values or {})
    family = next((family for family, presets in PRESETS.items() if recipe in presets), "")
    if not family:
        raise ConfigError(f"{where}: {recipe!r} is not a recipe{nearest(recipe, _preset_names())}")
    name = given.get("preset", "")
    if name == "":
        name = given["preset"] = recipe
    if not isinstance(name, str):
        raise ConfigError(f"{where}.preset: {name!r} is not a preset{nearest(str(name), list(PRESETS[family]))}")
    if given.get("network") and name not in PRESETS[family]:
        # A network of the user's own has the head of any family: the preset says which.
        family = next((other for other, presets in PRESETS.items() if name in presets), family)
    presets, group = PRESETS[family], LOSSES[family]
    if name not in presets:
        raise ConfigError(f"{where}.preset: {_unknown_preset(name, family)}")
    own = given.get("loss")
    if isinstance(own, LossParameters) and not isinstance(own, group):
        raise ConfigError(f"{where}.loss: {group.__name__} is expected here, got {type(own).__name__}")
    # What was given is checked alone first, so that a mistake is reported as the user wrote it.
    parse(Train, given, where=where, loss=group)
    # An empty `loss` is read as the family's group too; without one it would be the default of `Train`.
    return parse(Train, merge({"loss": {}, **presets[name]}, given), where=where, loss=group)


def _unknown_preset(name: str, family: str) -> str:
    """Error text for a preset that the family does not have."""
    others = [other for other, presets in PRESETS.items() if name in presets]
    if others:
        known = ", ".join(PRESETS[family])
        return f"{name!r} is a preset of {others[0]} and does not fit a network of {family} (known: {known})"
    return f"{name!r} is not a preset{nearest(name, list(PRESETS[family]))}"


def _preset_names() -> list[str]:
    return [name for presets in PRESETS.values() for name in presets]


def recipe_loss(group: type[LossParameters], recipe: str) -> dict[str, Any]:
    """The loss parameters that `recipe` sets otherwise than the defaults of `group`; none if it is another group's."""
    for family, presets in PRESETS.items():
        if recipe in presets and LOSSES[family] is group:
            return dict(presets[recipe].get("loss", {}))
    return {}


def identity_of(group: Group) -> dict[str, Any]:
    """The parameters as plain values (JSON types), for a run's identity.

    A field marked :class:`AddedLater` is left out while it is at its default: the identity of a run then equals the
    one that revisions before the field gave it.
    """
    values = group.model_dump(mode="json")
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, Group):
            values[name] = identity_of(value)
        later = any(isinstance(mark, AddedLater) for mark in field.metadata)
        if later and value == field.get_default(call_default_factory=True):
            del values[name]
    return values


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` laid on top, mappings merged key by key."""
    result = dict(base)
    for key, value in over.items():
        present = result.get(key)
        both = isinstance(present, Mapping) and isinstance(value, Mapping)
        result[key] = merge(present, value) if both else value  # type: ignore[arg-type]
    return result


def _explain(group: type[Group], item: Any, where: str, loss: type[LossParameters]) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join([where, *path])
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(path[-1], _known_keys(group, path[:-1], loss))}"
    given = "" if isinstance(item.get("input"), dict | list) else f", got {item.get('input')!r}"[:100]
    return f"{key}: {item['msg']}{given}"


def _known_keys(group: type[Group], path: list[str], loss: type[LossParameters]) -> list[str]:
    """Field names of the group that the path leads to; list indices and dictionary keys are stepped over."""
    for part in path:
        field = group.model_fields.get(part)
        if field is not None:
            group = next(iter(_groups_in(field.annotation)), group)
            group = loss if group is LossParameters else group
    return list(group.model_fields)


def _groups_in(annotation: Any) -> list[type[Group]]:
    if isinstance(annotation, type) and issubclass(annotation, Group):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _groups_in(part)]
