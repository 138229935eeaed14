"""How much an object of each class counts in the class loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from yolov7.config import nearest
from yolov7.data.index import Index
from yolov7.errors import ConfigError


def class_weights(setting: str | Mapping[str, float], index: Index) -> tuple[float, ...] | None:
    """(C,) weights by class number as `train.class_weights` says, or None where all classes count alike.

    `inverse`: all objects over classes times the class's objects, so that every class has the same share of the loss
    and the mean over the objects stays 1 (the published code draws images by such weights: training sheet, section 3).
    A mapping gives weights by class name, the others count 1; :class:`ConfigError` for a name the data does not have.
    """
    names = index.class_names
    if isinstance(setting, str):
        if setting == "equal":
            return None
        counts = index.class_counts().astype(np.float64)
        present = counts > 0
        weights = np.ones(len(names))
        weights[present] = counts.sum() / (present.sum() * counts[present])
        return tuple(weights.tolist())
    for name in setting:
        if name not in names:
            raise ConfigError(f"train.class_weights: no class {name!r} in the data{nearest(name, list(names))}")
    return tuple(float(setting.get(name, 1.0)) for name in names)
