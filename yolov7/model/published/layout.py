"""Description of a family's published files, by which `load.py` reads those of every family."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from yolov7.model.spec import Network

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""Tensors of a batch norm."""


class LoadableDetector(Protocol):
    """The detector as the importer sees it."""

    num_classes: int
    form: Any

    @property
    def spec(self) -> Network:
        """The network as data."""
        ...

    @property
    def variant(self) -> str:
        """Name of the network."""
        ...

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the levels that are decoded."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors by our names."""
        ...

    def state_of(self, network: Network) -> Mapping[str, Tensor]:
        """Tensors by our names that the detector will have after :meth:`adapt`, perhaps without values."""
        ...

    def adapt(self, network: Network) -> None:
        """Rebuild the head where `network` has another one."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Copy tensors in."""
        ...


@dataclass(frozen=True, kw_only=True)
class PublishedKeys:
    """The tensors of a published file, for one network in one form."""

    form: str
    """As `PublishedLayout.form` names it."""
    copied: Mapping[str, str]
    """Published name -> our name in the training form, in the published order; the shapes are equal."""
    derived: Collection[str] = ()
    """Published names of tensors that :meth:`PublishedLayout.finish` converts, anchors for example."""
    outputs: Collection[str] = ()
    """Those of both whose shapes depend on the class count. Only these may be missing, and only these may have
    another shape, in a file of another class count."""

    def __contains__(self, name: str) -> bool:
        return name in self.copied or name in self.derived


@dataclass
class Transfer:
    """Which tensors of a file go into a network. The loader fills it, `finish` completes it."""

    values: dict[str, Tensor] = field(default_factory=dict)
    """Our name -> value from the file."""
    taken: list[str] = field(default_factory=list)
    """Published names that were used."""
    left: list[tuple[str, str]] = field(default_factory=list)
    """Published names that were not, with the reason."""
    kept: set[str] = field(default_factory=set)
    """Our names whose values are right although the file does not give them."""


class PublishedLayout(Protocol):
    """The files of one family."""

    packages: tuple[str, ...]
    """Packages of the classes its files pickle; objects of them are read as empty records."""

    def form(self, names: Collection[str]) -> str | None:
        """The form of a file with these tensors, in words for a report; None for a file of another family."""
        ...

    def num_classes(self, tensors: Mapping[str, Tensor]) -> int:
        """Class count, from the shapes. Raises :class:`ModelError` if they give none."""
        ...

    def adapted(self, network: Network, tensors: Mapping[str, Tensor], *, same_classes: bool) -> Network:
        """`network` with the properties that a file decides, such as the width of a branch; some only if its class
        count is the network's, `same_classes`. Raises :class:`ModelError` where it cannot have them.
        """
        return network

    def whole(self, network: Network, form: str, names: Collection[str]) -> Network:
        """The network that a file with these tensors holds, where it has more or less than `network`: the auxiliary
        part of a training.
        """
        return network

    def keys(self, network: Network, form: str) -> PublishedKeys:
        """Names of a file of `network` in `form`. Raises :class:`ModelError` if there is no such file."""
        ...

    def foreign(self, names: Iterable[str], keys: PublishedKeys) -> list[str]:
        """Those of a file's names that only another network has; other unknown names are reported and left."""
        ...

    def finish(
        self, transfer: Transfer, tensors: Mapping[str, Tensor], model: LoadableDetector, keys: PublishedKeys
    ) -> None:
        """Complete `transfer`, which holds the copied ones of `tensors`: convert those derived, and give values to
        tensors of the model that this form of file leaves out.
        """
        ...


def layer_number(name: str) -> int:
    """The number N in a published name `model.N.*`; -1 in any other."""
    parts = name.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdecimal() else -1
