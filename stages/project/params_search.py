"""Groups of `params.yaml` for two questions about your own data: which network, and which training parameters.

No stage of dvc.yaml reads them: a change makes nothing stale.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from yolov7.config import Group

Scalar = bool | int | float | str


class Dimension(Group):
    """The values of one training parameter in a search: an interval or a list."""

    low: int | float | None = None
    """Least value."""
    high: int | float | None = None
    """Greatest value."""
    log: bool = False
    """Draw the logarithm: every factor of ten is equally likely."""
    choices: tuple[Scalar, ...] = ()
    """Values to choose from, instead of an interval."""

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("give either `choices`, or `low` and `high`")
            if len(set(map(repr, self.choices))) != len(self.choices) or len(self.choices) < 2:
                raise ValueError("`choices` needs two or more different values")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give `low` and `high`, or `choices`")
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be less than high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm: `log` needs a low above 0")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that the training must accept: both ends of the interval, or every choice."""
        return self.choices or (self.low, self.high)


class Search(Group):
    """Search of training parameters: `python -m flows.search_parameters`."""

    variant: str = ""
    """Network to tune; empty: the first of `variants`."""
    epochs: int = Field(default=20, ge=1)
    """Epochs of every trial."""
    trials: int = Field(default=30, ge=1)
    """Number of trials, those that were pruned included. Raised later, the search continues."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampler. Trainings keep `train.seed`, so that trials differ in their parameters alone."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Stops trials early by their validation AP: `median` below the median of the others at the same epoch,
    `hyperband` by successive halving."""
    confirm_seeds: int = Field(default=1, ge=0)
    """Further seeds that the default and the best setting are trained with at the end: the best of many trials looks
    better on the validation data than it is."""
    storage: str = ""
    """Database of the trials as an SQLAlchemy address, such as postgresql+psycopg2://HOST/DATABASE, which workers on
    several machines share; empty: a SQLite file in .state/search."""
    space: dict[str, Dimension] = Field(default_factory=dict)
    """Training parameters to vary, `augment.mosaic: {low: 0, high: 1}`; the others are those of `train`."""


class Budget(Group):
    """Limits that rule a network out (0: none)."""

    latency_ms: float = Field(default=0.0, ge=0.0)
    """Median milliseconds of one test image, preparation and suppression included."""
    latencies: str = ""
    """YAML file with milliseconds by variant, measured on the machine that the model is for; empty: this machine."""
    size_mb: float = Field(default=0.0, ge=0.0)
    """Megabytes of the ONNX file."""
    training_minutes: float = Field(default=0.0, ge=0.0)
    """Minutes of the longest training of one network on this machine; predicted from the shorter ones."""


class Choice(Group):
    """Choice of the network: `python -m flows.choose_model`."""

    name: str = "detector"
    """Registered model of the chosen network, after `registry.model_prefix`, whatever its variant."""
    candidates: tuple[str, ...] = ("yolov7-tiny", "yolov9-t", "yolov9-s", "yolov6-n", "yolov6-s", "yolov6v3-n")
    """Variants to choose from."""
    rungs: tuple[int, ...] = ()
    """Epochs of the successive trainings, rising; empty: 1/9, 1/3 and all of `train.epochs`."""
    keep: float = Field(default=0.34, gt=0.0, le=1.0)
    """Share of the candidates that goes on to the next rung, rounded up."""
    prefer: Literal["speed", "accuracy"] = "speed"
    """Among the networks within the limits: `speed` takes the fastest whose AP is not surely below the best (95 %),
    `accuracy` the one of highest AP."""
    budget: Budget = Budget()
    """Limits."""

    @model_validator(mode="after")
    def _check(self) -> Choice:
        if any(first >= second for first, second in pairwise(self.rungs)) or any(epochs < 1 for epochs in self.rungs):
            raise ValueError(f"rungs: epochs must rise from 1 on, got {list(self.rungs)}")
        if not self.candidates or len(set(self.candidates)) != len(self.candidates):
            raise ValueError("candidates: name different variants, one or more")
        return self
