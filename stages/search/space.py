"""The space of a search: which training parameters vary, within which values, and what a trial trains with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.project.params import Params
from stages.project.params_search import Dimension
from stages.trials.shorten import nested, short_run, value_at
from yolov7.config import Train, identity_of, merge
from yolov7.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_WHERE = "params.yaml: search.space"
_OF_THE_SEARCH = {"epochs": "set search.epochs", "evaluate_every": "every epoch of a trial is validated"}
_OF_THE_SEARCH |= {
    "patience": "search.pruner ends trials early",
    "seed": "trials must differ in their parameters alone",
}
_LEAST_EPOCHS = {"median": 3, "hyperband": 9, "none": 1}
"""With fewer, the pruner would have nothing to save."""
_DIGITS = 4
"""Significant digits of a drawn value: readable in params.yaml, and trained with as written there."""


@dataclass(frozen=True)
class Space:
    """Dimensions by dotted parameter, and the training that they change."""

    params: Params
    variant: str
    dimensions: Mapping[str, Dimension]
    base: Train
    """The present setting, as a trial trains it."""

    @classmethod
    def of(cls, params: Params) -> Space:
        """The space of `params.yaml: search`. Raises :class:`ConfigError` naming the key."""
        search = params.search
        if not search.space:
            raise ConfigError(
                f"{_WHERE}: empty; name parameters to vary, for example `augment.mosaic: {{low: 0, high: 1}}`"
            )
        least = _LEAST_EPOCHS[search.pruner]
        if search.epochs < least:
            raise ConfigError(
                f"params.yaml: search.epochs: {search.epochs} are too few for the pruner {search.pruner}, which needs "
                f"{least}; raise them, or set `pruner: none`"
            )
        variant = search.variant or params.variants[0]
        base = params.training(variant)
        base = params.training(variant, short_run(base, search.epochs, evaluate_every=1))
        space = cls(params, variant, search.space, base)
        for key, dimension in search.space.items():
            space._check(key, dimension)
        return space

    def _check(self, key: str, dimension: Dimension) -> None:
        if key in _OF_THE_SEARCH:
            raise ConfigError(f"{_WHERE}.{key}: not a parameter to vary: {_OF_THE_SEARCH[key]}")
        for value in dimension.ends:
            self._train({key: value})
        present = value_at(self.base, key)
        if not dimension.choices and (isinstance(present, bool | str | tuple) or _is_group(present)):
            raise ConfigError(f"{_WHERE}.{key}: an interval of numbers does not fit {present!r}; give `choices`")

    def _train(self, values: Mapping[str, Any]) -> Train:
        short = short_run(self.params.training(self.variant), self.params.search.epochs, evaluate_every=1)
        return self.params.training(self.variant, merge(short, nested(values)), where=_WHERE)

    def train(self, values: Mapping[str, Any], *, seed: int | None = None) -> Train:
        """The training parameters of a trial. Raises :class:`ConfigError` for values that do not go together."""
        train = self._train(self.written(values))
        return train if seed is None else train.model_copy(update={"seed": seed})

    def written(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values as a trial trains with them and `best.yaml` holds them: a few significant digits."""
        return {key: self._rounded(key, value) for key, value in values.items()}

    def _rounded(self, key: str, value: Any) -> Any:
        dimension = self.dimensions[key]
        if not isinstance(value, float) or dimension.choices:
            return value
        assert dimension.low is not None and dimension.high is not None
        return min(max(float(f"{value:.{_DIGITS}g}"), float(dimension.low)), float(dimension.high))

    @property
    def default(self) -> dict[str, Any]:
        """The present values of the varied parameters."""
        return {key: value_at(self.base, key) for key in self.dimensions}

    @property
    def outside(self) -> list[str]:
        """Parameters whose present value the space does not contain."""
        return [key for key, value in self.default.items() if not _contains(self.dimensions[key], value)]

    def distributions(self) -> dict[str, BaseDistribution]:
        """The dimensions as Optuna has them."""
        return {key: self._distribution(key, dimension) for key, dimension in self.dimensions.items()}

    def _distribution(self, key: str, dimension: Dimension) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if dimension.choices:
            return CategoricalDistribution(dimension.choices)
        assert dimension.low is not None and dimension.high is not None
        if isinstance(value_at(self.base, key), int):
            return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        return FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.log)

    def identity(self, data_sha256: str) -> dict[str, Any]:
        """What makes two trials comparable: variant, data, all parameters that do not vary, and the space."""
        fixed = self._train({key: value_at(self.base, key) for key in self.dimensions})
        dimensions = {key: dimension.model_dump(mode="json") for key, dimension in self.dimensions.items()}
        return {"variant": self.variant, "data": data_sha256, "train": identity_of(fixed), "space": dimensions}


def _contains(dimension: Dimension, value: Any) -> bool:
    if dimension.choices:
        return value in dimension.choices
    assert dimension.low is not None and dimension.high is not None
    return isinstance(value, int | float) and dimension.low <= value <= dimension.high


def _is_group(value: object) -> bool:
    return hasattr(value, "model_fields") or isinstance(value, Mapping)
