"""The network a training starts from: random or given weights, and anchors that fit the data."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from yolov7.anchors import check_anchors, fit_anchors
from yolov7.config import AnchorLoss, Train
from yolov7.data.index import Index
from yolov7.errors import ConfigError, ModelError
from yolov7.model import Detector, create_model, load_checkpoint
from yolov7.model.detector import Anchors
from yolov7.model.heads.anchor import AnchorHead
from yolov7.model.rep_optimizer import check_scales, draw_kernels, read_scales
from yolov7.model.spec import Network
from yolov7.model.trained import training_network
from yolov7.weights.fetch import start_file

log = logging.getLogger(__name__)

LEAST_SHARE = 0.2
"""Of the smaller network's kernels that must fit. Up to 0.17 fit by chance in another size or family (YOLOv7 in X);
YOLOv7-W6 in E6, whose stems are the same, has 0.42.
"""


def initial_model(variant: str, params: Train, index: Index) -> Detector:
    """A network in training form for the classes of `index`.

    The anchors of a head that has any follow `params.anchors` (training sheet, section 5). `params.pgi` is the
    auxiliary branch. `params.rep_optimizer` replaces the RepVGG blocks; a target without start weights has the kernels
    that its scales make. `params.weights` is a checkpoint of this project, a published `.pt`, or the name of a variant
    whose published file is fetched; everything that fits is taken. Raises :class:`ConfigError` if `params.loss` is for
    another kind of head, :class:`ModelError` for a network without the stages that `params.pgi` copies or without
    RepVGG blocks, and for other scales than its.
    """
    classes = len(index.class_names)
    network = training_network(variant, params)
    if not isinstance(params.loss, network.head.parameters):
        group, given = network.head.parameters.__name__, type(params.loss).__name__
        raise ConfigError(f"train.loss: {variant} is trained with {group}, got {given}; set train.preset to one of its")
    model = create_model(network, classes, seed=params.seed)
    if isinstance(network.head, AnchorHead) and isinstance(params.loss, AnchorLoss):
        model = _with_anchors(model, network, params, params.loss.anchor_threshold, index)
    else:
        _name_idle_anchors(variant, params, aided=getattr(network.head, "anchor_aided", False))
    if params.pgi:
        branch = f"with the auxiliary branch {params.pgi}" if model.has_auxiliary else "without an auxiliary branch"
        log.info("%s is trained %s: %s parameters", variant, branch, f"{sum(p.numel() for p in model.parameters()):,}")
    if params.rep_optimizer == "target":
        _take_scales(model, variant, params)
    if params.weights:
        load_weights(model, start_file(params.weights), network=params.network)
    return model


def _take_scales(model: Detector, variant: str, params: Train) -> None:
    """Check the scales of a target of RepOptimizer; without start weights they make its kernels."""
    searching = training_network(variant, params.model_copy(update={"rep_optimizer": "hyper-search"}))
    scales = read_scales(params.scales, sha256=params.scales_sha256, network=params.network)
    check_scales(scales, searching, of=params.scales)
    if not params.weights:
        draw_kernels(model, searching, scales, seed=params.seed)


def _name_idle_anchors(variant: str, params: Train, *, aided: bool) -> None:
    """Say which parameters of anchors are left unused: `variants` may be all that has changed.

    An anchor-aided branch has anchors, which are scaled but, as published, not fitted.
    """
    given = {"anchors": params.anchors} | ({} if aided else {"anchor_scale": params.anchor_scale})
    idle = [f"{name}: {value}" for name, value in given.items() if value != Train.model_fields[name].default]
    if idle and aided:
        log.info("the anchors of %s's anchor-aided branch are not fitted, so this has no effect: %s", variant, idle[0])
    elif idle:
        log.info("%s has no anchors, so these have no effect: %s", variant, ", ".join(idle))


def _with_anchors(model: Detector, network: Network, params: Train, threshold: float, index: Index) -> Detector:
    """The model with its anchors scaled and fitted as in `params`."""
    classes = model.num_classes
    if params.anchor_scale != 1.0:
        scaled = _nested(model.anchors.numpy() * params.anchor_scale)
        model = create_model(network, classes, anchors=scaled, seed=params.seed)
    if params.anchors != "keep":
        fitted = _fitted_anchors(model, params, threshold, index)
        if fitted is not None:
            model = create_model(network, classes, anchors=fitted, seed=params.seed)
    return model


def _fitted_anchors(model: Detector, params: Train, threshold: float, index: Index) -> Anchors | None:
    """Anchors (levels, anchors, 2) in pixels of the training image, or None where the network's own are kept."""
    boxes, images = index.all_sizes()
    if not len(boxes):
        return None
    # Boxes as the network sees them: the long side of the image scaled to the training size, jittered a little.
    generator = np.random.default_rng([params.seed, 1])
    scale = params.image_size / images.max(axis=1).astype(np.float64) * generator.uniform(0.9, 1.1, len(images))
    sizes = boxes * scale[:, None]
    present = model.anchors.cpu().numpy()
    if params.anchors == "fit" and len(sizes) >= present[..., 0].size:
        fitted = np.asarray(fit_anchors(sizes, present[..., 0].size, generator, threshold)).reshape(present.shape)
    else:
        fitted = np.asarray(check_anchors(sizes, present, threshold, generator))
    if np.array_equal(fitted, present):
        return None
    log.info("anchors fitted to the training boxes: %s", np.round(fitted, 1).tolist())
    return _nested(fitted)


def _nested(anchors: np.ndarray) -> Anchors:
    return [[(float(w), float(h)) for w, h in level] for level in anchors]


def load_weights(model: Detector, path: Path, *, network: str = "") -> None:
    """Copy everything that fits from a checkpoint into `model`; what does not fit is named in the log. `network`
    (MODULE:FUNCTION) supplies the user's own kinds of block, if the checkpoint has any.

    Raises :class:`ModelError` if hardly a kernel fits (:data:`LEAST_SHARE`) or the file is not a checkpoint.
    """
    if path.suffix != ".safetensors":
        report = model.load_official(path)
        log.info("%s: %s", path, report)
        return
    source, metadata = load_checkpoint(path, network=network)
    ours, theirs = model.state_dict(), source.state_dict()
    # Buffers of the head itself (the anchors) describe its layout: those of this training stay.
    layout = {f"head.{name}" for name, _ in model.head.named_buffers(recurse=False)}
    fitting = {n: t for n, t in theirs.items() if n in ours and ours[n].shape == t.shape and n not in layout}
    # Counters of batch norms and vectors of the head fit many networks, so kernels decide.
    fit, held, wanted = (sum(name.endswith("conv.weight") for name in some) for some in (fitting, theirs, ours))
    if not fit or fit < LEAST_SHARE * min(held, wanted):
        found = f"only {fit} of its {held} kernels fit a {model.variant}" if fit else "none of its kernels fits here"
        raise ModelError(f"{path}: holds a {metadata.variant} in {metadata.form} form; {found}")
    model.load_state_dict(fitting, strict=False)
    left = sorted(ours.keys() - fitting.keys() - layout)
    log.info(
        "%s: %d of %d tensors taken; left as they were: %s", path, len(fitting), len(ours), ", ".join(left) or "none"
    )
