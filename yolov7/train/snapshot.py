"""Progress of a training to a state and back: weights, averages, gradients, optimiser, loss scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yolov7.train.ema import AveragedModel
from yolov7.train.state import TrainingState


def snapshot(
    model: nn.Module, average: AveragedModel[Any], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain values of a :class:`TrainingState`; the tensors are those in use, not copies."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in average.model.state_dict().items()}
    # In the middle of an accumulation window the summed gradients are part of the state.
    tensors |= {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    plain: dict[str, dict[str, Any]] = {}
    for number, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{slot}"] = value
            else:
                plain.setdefault(str(number), {})[slot] = value
    return tensors, {"ema_updates": average.updates, "optimizer": plain, "scaler": scaler.state_dict()}


def restore(
    state: TrainingState,
    model: nn.Module,
    average: AveragedModel[Any],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Restore everything saved by :func:`snapshot`.

    Device and precision may have changed since: gradients are saved as they were summed, times the loss scale.
    """
    model.load_state_dict(state.part("model"))
    average.model.load_state_dict(state.part("ema"))
    average.updates = state.values["ema_updates"]
    saved = state.values["scaler"]  # empty where there was no scaling
    if saved:
        scaler.load_state_dict(saved)
    change = scaler.get_scale() / (saved["scale"] if saved else 1.0)
    gradients = state.part("grad")
    for name, parameter in model.named_parameters():
        if name in gradients:
            gradient = _laid_out_like(parameter, gradients[name])
            parameter.grad = gradient if change == 1.0 else gradient * change
    slots: dict[int, dict[str, Any]] = {int(n): dict(s) for n, s in state.values["optimizer"].items()}
    # The optimiser numbers its parameters in the order of its groups.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in state.part("optimizer").items():
        number, slot = name.split(".", 1)
        slots.setdefault(int(number), {})[slot] = _laid_out_like(parameters[int(number)], tensor)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def _laid_out_like(parameter: Tensor, saved: Tensor) -> Tensor:
    """`saved` on the parameter's device and in its memory order, where it has one value for each of the parameter's.

    Where the memory orders of their arguments differ, kernels take another path, which rounds differently: a resumed
    run would no longer end with the bits of an undisturbed one.
    """
    if saved.shape != parameter.shape:
        return saved
    return torch.empty_like(parameter).copy_(saved)
