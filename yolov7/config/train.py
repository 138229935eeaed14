"""Parameters of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from yolov7.config.group import AddedLater, Group
from yolov7.config.loss import AnchorLoss, LossParameters
from yolov7.errors import nearest

PGI: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"none": {}, "pfh": {}, "fpn": {}, "pan": {}, "icn": {}, "lhg-icn": {"auxiliary": "lead-guided"}}
)
"""Parts of PGI by name (YOLOv9 paper, table 4), and the loss parameters that belong to each."""


def _known_part(name: Any) -> Any:
    """Refuse an unknown part, naming the nearest known one."""
    if isinstance(name, str) and name and name not in PGI:
        raise ValueError(f"unknown part of PGI{nearest(name, list(PGI))}")
    return name


class Augment(Group):
    """Augmentation of a training sample (training sheet, section 4). Probabilities are per sample."""

    mosaic: float = Field(default=1.0, ge=0.0, le=1.0)
    """Probability of building a sample from several images."""
    mosaic9: float = Field(default=0.2, ge=0.0, le=1.0)
    """Share of the mosaics that use nine images instead of four."""
    shuffle_mosaic: Annotated[bool, AddedLater()] = False
    """The four images of a mosaic lie in random order, as published for YOLOv9; false: the image itself top left."""
    outlines_without_mosaic: Annotated[bool, AddedLater()] = True
    """Without mosaic, too, outlines decide what is visible of an object; false: boxes alone, as published for
    YOLOv9."""
    outlines: Annotated[bool, AddedLater()] = True
    """Outlines of objects are used where the data have them; false: boxes alone, as published for YOLOv6. Pasting needs
    outlines."""
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
    hsv_on_device: Annotated[bool, AddedLater()] = False
    """Jitter hue, saturation and brightness on the device, a batch at a time, instead of in the loader: a third less
    work for it where images are cached. From the same random numbers; values differ by one level at most, and what was
    pasted in is jittered with the rest."""
    reduced_decode: Annotated[bool, AddedLater()] = False
    """Decode a JPEG at half, a quarter or an eighth of its sides where a sample shows it no larger than that. For large
    photographs, which decode faster, without a cache; pixels differ slightly, labels do not."""
    flip_up_down: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability of a vertical flip."""
    flip_left_right: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability of a horizontal flip. Set 0 where left and right differ in meaning (digits, signs, text)."""
    copy_paste: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the polygon objects that are mirrored and pasted into the same mosaic."""
    copy_paste_of: Annotated[Literal["all", "eligible"], AddedLater()] = "all"
    """Objects that the share is of: `all`, of which those that would cover a label are left out; or those alone that
    would not cover an original label, as published for YOLOv9."""
    paste_in: float = Field(default=0.15, ge=0.0, le=1.0)
    """Probability of pasting cut-out objects of other images (needs polygons; does nothing without)."""


class Optimizer(Group):
    """Optimiser, warm-up and schedule (training sheet, section 2)."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """`sgd` with Nesterov momentum as published; `adam` and `adamw` use `momentum` as beta1."""
    learning_rate: float = Field(default=0.01, gt=0.0)
    """Learning rate after warm-up."""
    rate_batch: Annotated[int, AddedLater()] = Field(default=0, ge=0)
    """Images per GPU that `learning_rate` is meant for: it is multiplied by batch_size / published_gpus / rate_batch,
    as published for YOLOv6. 0: it is used as it is."""
    published_gpus: Annotated[int, AddedLater()] = Field(default=1, ge=1)
    """GPUs of the published run that is imitated. YOLOv6 normalised the loss on each GPU by itself and added up the
    gradients of all, so the loss is multiplied by their number. It need not be the number of GPUs of this run."""
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
    count_from_last_step: Annotated[bool, AddedLater()] = False
    """Batches to accumulate are counted from the last step, as published for YOLOv9; false: from the start of the run.
    It matters in the warm-up, while their number grows."""
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


class Distillation(Group):
    """Learning from a teacher's predictions (reference sheet: yolov6-training, 7.5)."""

    classification: float = Field(default=1.0, ge=0.0)
    """Weight of the class term, inside the gain `loss.classification`; published: 1, for YOLOv6-L 2."""
    dfl: float | None = Field(default=None, ge=0.0)
    """Weight of the term of the distances' distributions, inside the gain `loss.dfl`; empty: 1, as published, where the
    network predicts distributions, else 0."""
    features: float = Field(default=0.0, ge=0.0)
    """Weight of the channel-wise term of the neck's maps; published: 0, in quantisation-aware training 10."""
    temperature: float = Field(default=20.0, ge=1.0)
    """Divisor of class scores and of the logits of distances."""
    last_factor: float = Field(default=0.01, ge=0.0, le=1.0)
    """All weights fall to this share along a half cosine over the run; 1: they stay."""
    statistics: Literal["batch", "running"] = "batch"
    """Statistics of the teacher's batch norms: those of the batch, as published, or its running ones."""
    least_score_sum: Annotated[float | None, AddedLater()] = Field(default=None, ge=0.0)
    """Least divisor of the student's loss where `loss.least_score_sum` is empty. Published for 3.0: 0, while its
    teacher has 1. Empty: as without a teacher."""


class HeadOptions(Group):
    """Properties of YOLOv6's head in training (reference sheet: yolov6-training, 7.6 and 7.7)."""

    bins: Literal[0, 17] | None = None
    """Bins of the distances: 17, as in M and L, or 0: the distance is one number. None: those of the variant."""
    anchor_aided: bool = False
    """Train anchor-based predictions beside the others, as published for 3.0. They are dropped for deployment."""
    distributions: bool = False
    """Train distributions of 17 bins beside distances that are numbers, for distillation (3.0, N and S). They are
    dropped for deployment."""
    objectness: Annotated[bool, AddedLater()] = False
    """Predict objectness beside the classes (YOLOv6 paper, table 11: it lost AP), with neither of the two above."""


class Train(Group):
    """One training run. `preset` names the published set that fills whatever is not given."""

    preset: str = ""
    """A set of yolov7.presets, for example `small`; empty: the recipe that the variant was published with."""
    network: str = ""
    """A network of your own, as MODULE:FUNCTION (docs/variants.md); empty: the variant's name says which."""
    pgi: Annotated[str, BeforeValidator(_known_part), AddedLater()] = ""
    """Auxiliary branch of a GELAN or YOLOv9 in training: `none`, `pfh`, `fpn`, `pan`, `icn`, or `lhg-icn`, which is
    `icn` matched by the main head (`loss.auxiliary: lead-guided`); empty: that of the variant (docs/training.md)."""
    head: Annotated[HeadOptions, AddedLater()] = HeadOptions()
    """YOLOv6's head in training."""
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
    """The network's own anchors are multiplied by this first, those of an anchor-aided branch too. They were made for
    images of 640 (P6: 1280) pixels: below 1 suits small training images, so that objects fall to the level whose cells
    suit them."""
    multi_scale: bool = False
    """Resize every batch to a random size between half and one and a half times image_size."""
    weights: str = ""
    """A .safetensors checkpoint or a published .pt to start from, or the name of a variant, whose published .pt is
    fetched (docs/training.md); empty: random weights."""
    weights_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """sha256 of that file. The train stage requires it, because DVC watches params.yaml and not the file."""
    rep_optimizer: Annotated[Literal["", "hyper-search", "target", "chain"], AddedLater()] = ""
    """RepOptimizer (docs/training.md): `hyper-search` trains the scales of the branches, `target` a plain network with
    them (`scales`), and `chain` one after the other."""
    scales: Annotated[str, AddedLater()] = ""
    """The checkpoint of a hyper-search, for `rep_optimizer: target`."""
    scales_sha256: Annotated[str, AddedLater()] = Field(default="", pattern="^([0-9a-f]{64})?$")
    """sha256 of that file, which the train stage requires."""
    first_epochs: Annotated[int, AddedLater()] = Field(default=0, ge=0)
    """Epochs of the first of two chained trainings (0: as many as `epochs`)."""
    distill_from: Annotated[str, AddedLater()] = ""
    """Teacher to learn from besides the labels: `self`, the same network, which is trained first; a .safetensors file
    of a training; `models:/NAME@ALIAS` or `models:/NAME/VERSION`, whose training's best weights are taken; empty: none
    (docs/training.md)."""
    distill_sha256: Annotated[str, AddedLater()] = Field(default="", pattern="^([0-9a-f]{64})?$")
    """sha256 of that file. The train stage requires it, except for `self`."""
    distillation: Annotated[Distillation, AddedLater()] = Distillation()
    """Weights of what is learned from the teacher."""
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

    @property
    def auxiliary_part(self) -> str:
        """Name of the stages that `pgi` adds (`yolov7.model.pgi.PARTS`); empty: those of the variant."""
        return self.pgi.removeprefix("lhg-")

    @model_validator(mode="after")
    def _check_rep_optimizer(self) -> Train:
        """Refuse what RepOptimizer cannot be combined with (reference sheet: yolov6-training, section 10)."""
        mode = self.rep_optimizer
        if mode == "target" and not self.scales:
            raise ValueError(
                "rep_optimizer: target needs `scales`, the checkpoint of a hyper-search; `chain` trains both"
            )
        if mode != "target" and self.scales:
            raise ValueError("scales: only `rep_optimizer: target` reads them")
        if self.scales_sha256 and not self.scales:
            raise ValueError("scales_sha256: it is the digest of `scales`, which names no file; set both or neither")
        if mode == "chain" and self.distill_from == "self":
            raise ValueError(
                "rep_optimizer: chain and `distill_from: self` each train twice; train one after the other"
            )
        if mode == "chain" and self.weights:
            raise ValueError("rep_optimizer: chain draws the kernels from its scales; `weights` go with `target` only")
        if mode and self.optimizer.name != "sgd":
            name = self.optimizer.name
            raise ValueError(f"rep_optimizer: {name} undoes its masks on the gradients; set `optimizer: {{name: sgd}}`")
        if mode and self.head.anchor_aided:
            raise ValueError(
                "rep_optimizer: not available with the anchor-aided branch, which presets of 3.0 have; set "
                "`head: {anchor_aided: false}`"
            )
        if mode == "target" and self.optimizer.rate_batch:
            raise ValueError("rep_optimizer: target does not scale the learning rate; set `optimizer: {rate_batch: 0}`")
        return self

    @model_validator(mode="after")
    def _check_cache(self) -> Train:
        """A cached image would not give the pixels that a fresh one gives, and a cache may come and go in a run."""
        if self.cache != "none" and self.augment.reduced_decode:
            raise ValueError(
                f"augment.reduced_decode: `cache: {self.cache}` decodes each image once and for all; set one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_two_trainings(self) -> Train:
        """Refuse parameters of a teacher, or of a first training, that there is none of."""
        if self.distill_sha256 and self.distill_from in ("", "self"):
            which = "is trained by this run" if self.distill_from else "names no file"
            raise ValueError(f"distill_sha256: it is the digest of the teacher, and `distill_from` {which}; remove it")
        if self.first_epochs and self.distill_from != "self" and self.rep_optimizer != "chain":
            raise ValueError(
                "first_epochs: there is one training and no first of two; it goes with `distill_from: self` or "
                "`rep_optimizer: chain`"
            )
        return self

    @model_validator(mode="after")
    def _check_head(self) -> Train:
        """Refuse what one network cannot learn together; `self` gives one to the teacher and one to the student."""
        if self.head.anchor_aided and self.head.distributions and self.distill_from != "self":
            raise ValueError(
                "head: anchor_aided, which presets of 3.0 set, and distributions exclude each other; set one of them "
                "to false, or `distill_from: self`"
            )
        return self

    @field_validator("loss", mode="before")
    @classmethod
    def _read_loss(cls, loss: Any, info: ValidationInfo) -> Any:
        """A mapping is read as the group that :func:`parse` was given, :class:`AnchorLoss` outside it."""
        group: type[Group] = (info.context or {}).get(LossParameters, AnchorLoss)
        return group.model_validate(loss) if isinstance(loss, Mapping) else loss
