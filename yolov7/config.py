"""Typed parameters of the library, and the presets published with the method.

Every group is a frozen pydantic model that refuses unknown keys; :func:`parse` turns a mapping (a subtree of
`params.yaml`) into a group and reports a mistake as one line that names the key and the nearest known one.
Defaults are those of the published p5 hyper-parameter set (reference: training sheet, section 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from yolov7.errors import ConfigError


class Group(BaseModel):
    """A group of parameters: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Augment(Group):
    """What happens to a training sample (training sheet, section 4). Probabilities are per sample."""

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
    """Scale is uniform in [1 - scale, 1.1 + scale]."""
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
    """Assignment and loss of one kind of head; a head names its group."""


class AnchorLoss(LossParameters):
    """Assignment and loss of the anchor head (training sheet, sections 3 and 6 to 8)."""

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
    """An anchor takes part for a target if no side ratio exceeds this."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Class targets become 1 - s/2 and s/2."""
    focal_gamma: float = Field(default=0.0, ge=0.0)
    """Focal exponent for objectness and class (0: off)."""
    objectness_positive_weight: float = Field(default=1.0, gt=0.0)
    """Weight of positives in the objectness cross-entropy."""
    classification_positive_weight: float = Field(default=1.0, gt=0.0)
    """Weight of positives in the class cross-entropy."""
    auxiliary: Literal["coarse-to-fine", "lead-guided", "independent"] = "coarse-to-fine"
    """How the auxiliary head of a P6 network gets its targets (paper section 4.2)."""
    auxiliary_weight: float = Field(default=0.25, ge=0.0)
    """Weight of the auxiliary head's loss."""
    auxiliary_constraint: bool = True
    """Decode the auxiliary head's boxes with the bounded decoder, as published (architecture sheet, section 7)."""


Loss = AnchorLoss


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

    preset: str = "p5"
    """p5, p6, tiny, finetune or small."""
    network: str = ""
    """A network of your own, as MODULE:FUNCTION (docs/variants.md); empty: the variant's name says which."""
    epochs: int = Field(default=300, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=16, ge=1)
    """Images per step over all processes."""
    image_size: int = Field(default=640, ge=32)
    """Side of the square training image in pixels, a multiple of the network's largest stride."""
    seed: int = Field(default=0, ge=0)
    """Start of every random number of the run."""
    anchors: Literal["keep", "auto", "fit"] = "auto"
    """`keep` the network's own; `auto`: fitted to the training boxes if they reach less than 98 % of them, as
    published; `fit`: always fitted, for data whose boxes are much smaller, larger or more alike than COCO's."""
    anchor_scale: float = Field(default=1.0, gt=0.0)
    """The network's own anchors are multiplied by this first. They were made for images of 640 (P6: 1280) pixels:
    below 1 suits small training images, so that objects fall to the level whose cells suit them."""
    multi_scale: bool = False
    """Resize every batch to a random size between half and one and a half times image_size."""
    weights: str = ""
    """A .safetensors checkpoint or a published .pt to start from; empty: random weights."""
    weights_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """What that file must hash to. The train stage asks for it, because DVC watches params.yaml and not the file."""
    freeze: tuple[str, ...] = ()
    """Name groups whose parameters and BN statistics stay as they are, for example `backbone`."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast type; `auto` is float16 on CUDA and float32 elsewhere."""
    class_weights: Literal["equal", "inverse"] | dict[str, NonNegativeFloat] = "equal"
    """How much objects count in the class loss: all alike; `inverse` to how often their class occurs; or weights by
    class name, where those left out count 1."""
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
    patience: int = Field(default=0, ge=0)
    """Stop after this many epochs without a better validation AP (0: never)."""
    checkpoint_minutes: float = Field(default=10.0, ge=0.0)
    """Save the resumable state at least this often inside an epoch (it is always saved after one)."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keep decoded, resized images: `ram` in memory, `disk` in a file that later runs use again."""
    cache_folder: str = ".state/cache"
    """Where `cache: disk` keeps its file; a fast disk of this machine is best."""
    max_bad_batches: int = Field(default=20, ge=0)
    """Stop after this many steps in a row that were skipped because loss or gradients were not finite."""
    max_bad_images: int = Field(default=100, ge=0)
    """Stop after this many unreadable training images in one epoch."""
    augment: Augment = Augment()
    """What happens to a sample."""
    loss: Loss = Loss()
    """Assignment and loss."""
    optimizer: Optimizer = Optimizer()
    """Optimiser, warm-up and schedule."""
    ema: Ema = Ema()
    """Averaged weights."""


# The published files (training sheet, section 1). `small` is ours, for data sets of hundreds of images: the published
# gains shrink the class loss with the class count and the objectness loss with the image area, and its SGD schedule
# is made for 300 epochs of COCO; on little data both starve the network.
PRESETS: dict[str, dict[str, Any]] = {
    "p5": {},
    "p6": {"image_size": 1280, "optimizer": {"final_factor": 0.2}},
    "tiny": {
        "optimizer": {"final_factor": 0.01},
        "loss": {"classification": 0.5, "objectness": 1.0},
        "augment": {"translate": 0.1, "scale": 0.5, "mixup": 0.05, "paste_in": 0.05},
    },
    "finetune": {"augment": {"scale": 0.5, "mixup": 0.0, "paste_in": 0.0}},
    "small": {
        "optimizer": {
            "name": "adamw",
            "learning_rate": 0.002,
            "final_factor": 0.02,
            "momentum": 0.9,
            "nominal_batch": 16,
            "warmup_iterations": 100,
            "warmup_momentum": 0.9,
            "warmup_bias_learning_rate": 0.0,
        },
        "loss": {"objectness": 1.0, "classification": 0.3, "scale_gains": False},
        "augment": {"translate": 0.1, "scale": 0.5, "mixup": 0.0, "paste_in": 0.0},
        "ema": {"decay": 0.998, "ramp": 200.0},
        "cache": "ram",
    },
}

G = TypeVar("G", bound=Group)


def parse(group: type[G], values: Mapping[str, Any] | None, *, where: str) -> G:
    """Build `group` from a mapping; a mistake becomes a :class:`ConfigError` of one line.

    `where` is how the user knows the mapping, for example `params.yaml: train`.
    """
    try:
        return group.model_validate(dict(values or {}))
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(group, item, where) for item in error.errors())) from None


def train_parameters(values: Mapping[str, Any] | None, *, where: str = "params.yaml: train") -> Train:
    """Parameters of a run: the named preset, with whatever `values` gives laid over it, key by key."""
    given = dict(values or {})
    name = given.get("preset", "p5")
    if name not in PRESETS:
        raise ConfigError(f"{where}.preset: {name!r} is not a preset{nearest(str(name), list(PRESETS))}")
    parse(Train, given, where=where)  # so that a mistake is reported as the user wrote it
    return parse(Train, merge(PRESETS[name], given), where=where)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` laid on top, mappings merged key by key."""
    result = dict(base)
    for key, value in over.items():
        present = result.get(key)
        both = isinstance(present, Mapping) and isinstance(value, Mapping)
        result[key] = merge(present, value) if both else value  # type: ignore[arg-type]
    return result


def nearest(word: str, known: list[str]) -> str:
    """` (did you mean 'x'?)`, or a list of what is known where nothing is near; made to end an error message."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"


def _explain(group: type[Group], item: Any, where: str) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join([where, *path])
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(path[-1], _known_keys(group, path[:-1]))}"
    given = "" if isinstance(item.get("input"), dict | list) else f", got {item.get('input')!r}"
    return f"{key}: {item['msg']}{given}"


def _known_keys(group: type[Group], path: list[str]) -> list[str]:
    """Field names of the group that the path leads to; list indices and dictionary keys are stepped over."""
    for part in path:
        field = group.model_fields.get(part)
        if field is not None:
            group = next(iter(_groups_in(field.annotation)), group)
    return list(group.model_fields)


def _groups_in(annotation: Any) -> list[type[Group]]:
    if isinstance(annotation, type) and issubclass(annotation, Group):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _groups_in(part)]
