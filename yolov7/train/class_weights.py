"""Weights of the classes: in the class loss, and in how often an image is drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from yolov7.data.index import Index
from yolov7.errors import ConfigError, nearest


def class_weights(setting: str | Mapping[str, float], index: Index) -> tuple[float, ...] | None:
    """(C,) weights by class number as `train.class_weights` says, or None where all classes count alike.

    `inverse`: all objects over classes times the class's objects, so that every class has the same share of the loss
    and the mean over the objects stays 1. A mapping gives weights by class name, the others count 1;
    :class:`ConfigError` for a name the data does not have.
    """
    names = index.class_names
    if isinstance(setting, str):
        return None if setting == "equal" else tuple(_inverse(index).tolist())
    for name in setting:
        if name not in names:
            raise ConfigError(f"train.class_weights: no class {name!r} in the data{nearest(name, list(names))}")
    return tuple(float(setting.get(name, 1.0)) for name in names)


def image_weights(sampling: str, index: Index) -> NDArray[np.float64] | None:
    """(I,) how often each image is drawn as `train.image_sampling` says, or None where each comes once an epoch.

    `class_balanced`: the sum over an image's objects of the inverse frequency of their class (the option of training
    sheet, section 3). Images without objects keep their share.
    """
    if sampling == "uniform":
        return None
    inverse = _inverse(index)
    weights = np.array([inverse[index.labels(i)[index.trainable(i)]].sum() for i in range(len(index))])
    full = weights > 0
    if full.any():
        weights[full] /= weights[full].mean()
    weights[~full] = 1.0
    return weights


def _inverse(index: Index) -> NDArray[np.float64]:
    """(C,) all objects over classes that occur times the class's objects."""
    counts = index.class_counts().astype(np.float64)
    present = counts > 0
    weights = np.ones(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights
