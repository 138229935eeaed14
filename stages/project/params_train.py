"""Checks of the training parameters of a variant that need its network, and the parameters of its quantisation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from yolov7.config import Quantization, Train, merge, quantization_settings
from yolov7.errors import ConfigError, ModelError, nearest

PER_VARIANT = "per_variant"


def quantization_for(values: Mapping[str, Any], variant: str) -> Quantization:
    """The group `quantization` for one variant. Raises :class:`ConfigError`."""
    own = values.get(PER_VARIANT) or {}
    if not isinstance(own, Mapping) or not isinstance(own.get(variant, {}) or {}, Mapping):
        raise ConfigError(f"params.yaml: quantization.{PER_VARIANT}: a mapping by variant is expected, got {own!r:.60}")
    common = {key: value for key, value in values.items() if key != PER_VARIANT}
    quantization_settings(common)  # alone first: a mistake in it is not one of the variant
    changed = f" (with {PER_VARIANT}.{variant})" if own.get(variant) else ""
    where = f"params.yaml: quantization{changed}"
    return quantization_settings(merge(common, own.get(variant) or {}), where=where)


def check_quantization(
    values: Mapping[str, Any], variants: Collection[str], known: Collection[str], *, where: str
) -> None:
    """Raise :class:`ConfigError` for an unknown variant or key."""
    own = values.get(PER_VARIANT) or {}
    for name in own if isinstance(own, Mapping) else ():
        if name not in known:
            raise ConfigError(f"{where}.{PER_VARIANT}: unknown variant {name!r}{nearest(str(name), list(known))}")
    for name in {*variants, *(own if isinstance(own, Mapping) else ())}:
        quantization_for(values, name)


def check_pgi(variant: str, train: Train, where: str) -> None:
    """Raise :class:`ConfigError` for a variant that cannot be trained with `train.pgi`."""
    from yolov7.model.variants import find_variant, list_variants

    try:
        if variant in list_variants():
            find_variant(variant, pgi=train.auxiliary_part)
    except ModelError as error:
        raise ConfigError(f"{where}.pgi: {error}; set it under per_variant, for gelan-* and yolov9-* only") from None


def check_rep_optimizer(variant: str, train: Train, where: str) -> None:
    """Raise :class:`ConfigError` for a variant without RepVGG blocks."""
    from yolov7.model.rep_optimizer import hyper_search
    from yolov7.model.variants import find_variant, list_variants

    try:
        if variant in list_variants():
            hyper_search(find_variant(variant, pgi=train.auxiliary_part))
    except ModelError as error:
        raise ConfigError(
            f"{where}.rep_optimizer: {error}; set it under per_variant, for sizes of YOLOv6 other than L"
        ) from None


def check_head(variant: str, train: Train, where: str) -> None:
    """Raise :class:`ConfigError` for a variant whose head does not have the options of `train.head`."""
    from yolov7.model.trained import training_network
    from yolov7.model.variants import list_variants

    try:
        if variant in list_variants():
            training_network(variant, train)
    except ModelError as error:
        raise ConfigError(f"{where}.head: {error}; set it under per_variant, for variants that it fits") from None
