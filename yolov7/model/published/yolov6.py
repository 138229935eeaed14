"""YOLOv6's published files: releases and forms (reference sheet: yolov6-training, section 12)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from yolov7.errors import ModelError
from yolov7.model import blocks
from yolov7.model.blocks.layers import BN_EPS
from yolov7.model.heads.efficient import EfficientHead
from yolov7.model.modes import modes_of, with_mode
from yolov7.model.published.layout import LoadableDetector, PublishedKeys, PublishedLayout, Transfer
from yolov7.model.published.yolov6_names import (
    FORMS,
    HEAD,
    Kind,
    Naming,
    Part,
    Release,
    folded_name,
    parts_of,
    tensors_of,
)
from yolov7.model.spec import Network

MODES: Final[Mapping[Kind, blocks.Mode]] = MappingProxyType(
    {"RepOptimizer search": "linear-add", "RepOptimizer target": "conv"}
)
"""3x3 blocks of a kind of file whose names alone tell them."""

STEM: Final = "backbone.stem."
CLASSES = re.compile(r"detect\.cls_preds(_ab)?\.\d+\.bias")
STATE: Final = (".weight", ".bias", ".alpha", ".running_mean", ".running_var")


class Yolov6Layout(PublishedLayout):
    """`backbone.*`, `neck.*` and `detect.*`, named by what they are for."""

    packages: tuple[str, ...] = ("yolov6",)

    def form(self, names: Collection[str]) -> str | None:
        """Release and kind, from the stem of the head and that of the backbone."""
        wrapped, bare = (f"{HEAD}stems.0.{inner}conv.weight" in names for inner in ("block.", ""))
        if not (wrapped or bare) or not any(CLASSES.fullmatch(name) for name in names):
            return None
        kind: Kind = "training"
        if not any(".bn." in name for name in names):
            kind = "deploy"
        elif f"{STEM}scale_conv.weight" in names:
            kind = "RepOptimizer search"
        elif f"{STEM}conv.weight" in names:
            kind = "RepOptimizer target"
        by_level = any(name.startswith("neck.Rep_n6.") for name in names)
        found = Naming("3.0" if wrapped else "2.0", kind, by_level).form
        return found if found in FORMS else None

    def num_classes(self, tensors: Mapping[str, Tensor]) -> int:
        """From the class outputs of all levels, which must agree."""
        first = 0
        for name, tensor in tensors.items():
            match = CLASSES.fullmatch(name)
            if match is None or match[1]:
                continue
            if tensor.ndim != 1 or not tensor.numel():
                raise ModelError(f"{name}: a bias for each class is expected; the file is damaged")
            first = first or tensor.numel()
            if tensor.numel() != first:
                raise ModelError(f"{name}: its levels have {first} and {tensor.numel()} classes; it is damaged")
        if not first:
            raise ModelError("it has no class outputs, so it is not a YOLOv6 checkpoint")
        return first

    def adapted(self, network: Network, tensors: Mapping[str, Tensor], *, same_classes: bool) -> Network:
        """The network with distances as the file has them, of whatever class count: numbers, or distributions over as
        many bins.

        Raises :class:`ModelError` for bins of a network that learns distributions beside such numbers.
        """
        head, weight = network.head, tensors.get(f"{HEAD}reg_preds.0.weight")
        if not isinstance(head, EfficientHead) or weight is None or weight.ndim != 4 or len(weight) % 4:
            return network
        bins = len(weight) // 4 if len(weight) > 4 else 0
        if bins and head.distributions:
            raise ModelError(
                f"its distances are distributions of {bins} bins, and {network.name} is trained with `distributions` "
                "beside distances that are numbers: take a file of those, or set train.head.distributions to false"
            )
        return network if bins == head.bins else replace(network, head=replace(head, bins=bins))

    def whole(self, network: Network, form: str, names: Collection[str]) -> Network:
        """A network with the outputs for training and the 3x3 blocks of the file.

        Raises :class:`ModelError` for a file of the other release.
        """
        head = network.head
        if not isinstance(head, EfficientHead):
            return network
        theirs = "3.0" if any(name.startswith("neck.Bifusion") for name in names) else "2.0"
        if theirs != _release(network):
            raise ModelError(
                f"its neck is that of YOLOv6 release {theirs}, and {network.name} is of release {_release(network)}"
            )
        head = replace(
            head,
            anchor_aided=f"{HEAD}cls_preds_ab.0.weight" in names,
            distributions=f"{HEAD}reg_preds_dist.0.weight" in names,
            objectness=False,
        )
        mode = MODES.get(FORMS[form].kind)
        return replace(network if mode is None else with_mode(network, mode), head=head)

    def keys(self, network: Network, form: str) -> PublishedKeys:
        """Names of the tensors of `network`, which is as :meth:`whole` answers it."""
        if not isinstance(network.head, EfficientHead):
            raise ModelError(f"{network.name}: its head has no place in the published layout of YOLOv6")
        naming = FORMS[form]
        copied: dict[str, str] = {}
        derived: list[str] = []
        for part in parts_of(network, naming):
            for theirs, ours in tensors_of(part, naming):
                if ours:
                    copied[theirs] = ours
                else:
                    derived.append(theirs)
        outputs = {name for name in copied if ".cls_preds" in name}
        return PublishedKeys(form=form, copied=copied, derived=derived, outputs=outputs)

    def foreign(self, names: Iterable[str], keys: PublishedKeys) -> list[str]:
        """Weights of other parts than the network's."""
        own = ("backbone.", "neck.", HEAD)
        return [name for name in names if name.startswith(own) and name.endswith(STATE) and name not in keys]

    def finish(
        self, transfer: Transfer, tensors: Mapping[str, Tensor], model: LoadableDetector, keys: PublishedKeys
    ) -> None:
        """Check blocks and numbers of the bins; give norms of a deploy-form file, where they are folded in, values that
        leave what they get as it is.
        """
        naming, network = FORMS[keys.form], model.spec
        mode = MODES.get(naming.kind)
        if mode is not None and modes_of(network) != {mode}:
            raise ModelError(
                f"its 3x3 blocks are those of a {naming.kind} ({mode}), not {network.name}'s "
                f"({', '.join(sorted(modes_of(network)))})"
            )
        for name, ours in keys.copied.items():
            if ours in ("head.numbers", "head.lead_bins.values") and name in tensors:
                values = tensors[name].flatten()
                if not torch.equal(values, torch.arange(float(values.numel()))):
                    raise ModelError(f"{name}: 0, 1, ..., {values.numel() - 1} are expected; the file is damaged")
        if naming.kind == "deploy":
            state = model.state_of(network)
            for part in parts_of(self.whole(network, keys.form, tensors), naming):
                _unfold(part, naming, tensors, state, transfer)


LAYOUT: Final[PublishedLayout] = Yolov6Layout()


def _release(network: Network) -> Release:
    return "3.0" if any(isinstance(stage.block, blocks.BiFusion) for stage in network.neck) else "2.0"


def _unfold(
    part: Part, naming: Naming, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], transfer: Transfer
) -> None:
    """Values of the tensors that a deploy-form file has folded into the one convolution of `part`."""
    if part.what in ("number", "plain"):
        return
    published = f"{folded_name(part, naming)}.bias"
    if published not in tensors:
        raise ModelError(f"{published}: is missing")
    norms = [f"{part.ours}.dense.bn"] if part.what == "rep" else [f"{part.ours}.bn"]
    width = state[f"{norms[0]}.bias"].shape
    if tensors[published].shape != width:
        raise ModelError(f"{published}: {tuple(tensors[published].shape)} does not fit {tuple(width)}")
    zero, values = torch.zeros(width), transfer.values
    values[f"{norms[0]}.weight"] = torch.full(width, (1 + BN_EPS) ** 0.5)
    values[f"{norms[0]}.bias"] = zero if part.bias else tensors[published]
    if part.what == "rep":
        # The other branches add nothing.
        values[f"{part.ours}.pointwise.conv.weight"] = torch.zeros(state[f"{part.ours}.pointwise.conv.weight"].shape)
        norms += [f"{part.ours}.pointwise.bn", *[f"{part.ours}.identity"] * part.identity]
    for norm in norms:
        values.setdefault(f"{norm}.weight", zero)
        values.setdefault(f"{norm}.bias", zero)
        values[f"{norm}.running_mean"], values[f"{norm}.running_var"] = zero, torch.ones(width)
    if not part.bias:
        transfer.taken.append(published)
