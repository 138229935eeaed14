"""Scenarios for each of two processes that train together: `distributed_worker.py FOLDER`.

The same functions, called with a single process, give the expected results.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch._dynamo  # the first optimiser imports it, which takes seconds: once, before the processes part
from safetensors.torch import save_file
from small_detector import metadata_of, small_detector
from small_gelan import small_gelan_detector
from torch import nn

from yolov7.config import Train, train_parameters
from yolov7.data.index import Index
from yolov7.errors import TrainingError
from yolov7.evaluate import find_results
from yolov7.predict import TorchRuntime
from yolov7.train.distributed import Processes, join_processes
from yolov7.train.loop import Trainer
from yolov7.train.state import StateFolder
from yolov7.train.sync_batchnorm import SynchronizedBatchNorm
from yolov7.train.teacher import frozen


def parameters(recipe: str = "p5", **over) -> Train:
    """Ten steps, some of two batches, with everything that augmentation draws."""
    values = {
        "image_size": 96,
        "batch_size": 4,
        "epochs": 5,
        "evaluate_every": 5,
        "checkpoint_minutes": 0.0,
        "sync_batchnorm": True,
        "ema": {"decay": 0.9, "ramp": 5.0},
        "optimizer": {"nominal_batch": 8, "learning_rate": 0.002, "warmup_iterations": 2, "warmup_epochs": 0},
    }
    return train_parameters(values | over, recipe=recipe)


SHORT = {"epochs": 3}
"""Six steps instead of ten, where no other scenario is compared with these."""
TAUGHT = {"aligned": True, "taught": True, "params": {"distillation": {"features": 1.0}, "epochs": 2}}


class Curve:
    """A listener that keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def started(self, report) -> None: ...

    def assigned(self, batch) -> None: ...

    def stepped(self, report) -> None:
        self.losses.append(report.losses)

    def epoch_ended(self, row, *, best) -> None: ...

    def note(self, message) -> None: ...


def trainer(folder: Path, states: Path, processes: Processes, **over) -> tuple[Trainer, Curve]:
    index = Index.open(folder / "index", image_root=folder)
    make = small_gelan_detector if over.pop("aligned", False) else small_detector
    model, curve = make(seed=processes.rank), Curve()  # only the weights of the first process count
    recipe = "yolov9" if make is small_gelan_detector else "p5"
    teacher = frozen(small_gelan_detector(seed=7), "batch") if over.pop("taught", False) else None
    run = Trainer(
        model,
        train_index=index,
        val_index=index,
        params=parameters(recipe, **over.pop("params", {})),
        states=StateFolder(states, {}),
        metadata=metadata_of(model),
        listeners=[curve],
        processes=processes,
        teacher=teacher,
        **over,
    )
    return run, curve


def train(folder: Path, states: Path, processes: Processes, **over) -> dict:
    """Train to the end or to a stop; the curve, the figures, and the weights in `weights-RANK.safetensors`."""
    run, curve = trainer(folder, states, processes, **over)
    outcome = run.fit()
    states.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in run.learner.average.model.state_dict().items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, states / f"weights-{processes.rank}.safetensors")
    return {
        "curve": curve.losses,
        "finished": outcome.finished,
        "iteration": run.position.iteration,
        "skipped": run.position.skipped_steps,
        "history": [{k: v for k, v in row.items() if "second" not in k} for row in outcome.history],
    }


def find(folder: Path, processes: Processes) -> list:
    """COCO results of all images, on the first process."""
    index = Index.open(folder / "index", image_root=folder)
    runtime = TorchRuntime(small_detector().reparameterize(), metadata_of(small_detector()))
    own = find_results(runtime, index, batch_size=2, rank=processes.rank, world_size=processes.world_size)
    return processes.gather(own)


def normalize(processes: Processes) -> dict:
    """Output, gradients and statistics of a norm; the first process has one image more than the second."""
    generator = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(5, 6, 4, 3, generator=generator) * 3 + 2 for _ in range(2))
    plain = nn.BatchNorm2d(6, eps=1e-3, momentum=0.03)
    with torch.no_grad():
        plain.weight.copy_(torch.linspace(0.5, 2.0, 6))
        plain.bias.copy_(torch.linspace(-1.0, 1.0, 6))
    several = processes.world_size > 1
    norm = SynchronizedBatchNorm(plain) if several else plain
    share = slice(3) if processes.main else slice(3, 5)
    own = (x[share] if several else x).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = norm(own)
    y.backward(upstream[share] if several else upstream)
    found = {
        "y": processes.gather(y.flatten(1).tolist()),
        "x": processes.gather(own.grad.flatten(1).tolist()),
        "weight": processes.sum(norm.weight.grad).tolist(),
        "bias": processes.sum(norm.bias.grad).tolist(),
        "mean": norm.running_mean.tolist(),
        "variance": norm.running_var.tolist(),
        "batches": norm.num_batches_tracked.item(),
    }
    same = norm.eval()(own.detach()) - plain.eval()(own.detach())
    return found | {"evaluation": same.abs().max().item()}


def stopped_and_resumed(folder: Path, states: Path, processes: Processes) -> dict:
    """The second process is asked to stop after the third batch; then the same again to the end."""
    calls = iter(range(100))
    first = train(folder, states, processes, stop=lambda: processes.rank == 1 and next(calls) == 2)
    return {"first": first, "second": train(folder, states, processes)}


def broken_on_one(folder: Path, states: Path, processes: Processes) -> dict:
    """In its fourth batch the loss of the second process is not a number."""
    run, _ = trainer(folder, states, processes, params=SHORT)
    plain, calls = run.learner.criterion, iter(range(100))

    def criterion(*inputs):
        result = plain(*inputs)
        broken = next(calls) == 3 and processes.rank == 1
        return replace(result, total=result.total * float("nan")) if broken else result

    criterion.assign, criterion.levels = plain.assign, plain.levels  # type: ignore[attr-defined]
    run.learner.criterion.at = lambda epoch, epochs: criterion  # type: ignore[method-assign, assignment]
    run.fit()
    weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    return {
        "skipped": run.position.skipped_steps,
        "sum": weights.double().sum().item(),
        "updates": run.learner.average.updates,
    }


def error_on_main(processes: Processes) -> str:
    def work():
        raise TrainingError("the disk is full")

    try:
        processes.on_main(work)
    except TrainingError as error:
        return str(error)
    return ""


def learnable_scalar(processes: Processes) -> float:
    """Gradient of a parameter without dimensions: that of the mean over the processes, (1 + 2) / 2."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return x * self.scale

    model = Scaled()
    network = processes.wrap(model)  # whose end would end the averaging
    network(torch.tensor([1.0 + processes.rank])).sum().backward()
    return model.scale.grad.item()


def everything(folder: Path, processes: Processes) -> dict:
    """All that needs no further start of processes. The second process has a folder for states of its own."""
    own = folder / f"rank-{processes.rank}"
    return {
        "synchronized": train(folder, own / "synchronized", processes),
        "aligned": train(folder, own / "aligned", processes, aligned=True, params=SHORT),
        "taught": train(folder, own / "taught", processes, **TAUGHT),
        "plain": train(folder, own / "plain", processes, params={"sync_batchnorm": False, **SHORT}),
        "resumed": stopped_and_resumed(folder, own / "resumed", processes),
        "broken": broken_on_one(folder, own / "broken", processes),
        "results": find(folder, processes),
        "norm": normalize(processes),
        "error": error_on_main(processes),
        "totals": processes.totals(torch.tensor([0.25, 3.0])).tolist(),
        "scalar": learnable_scalar(processes),
    }


def dies(folder: Path, processes: Processes) -> dict:
    """The second process is killed in the fourth batch, unless the training has resumed from a state."""
    states = folder / "restarted"
    run, _ = trainer(folder, states, processes)
    plain = run.learner.network.forward
    resumed = states.exists()

    def forward(images):
        if run.position.iteration == 3 and processes.rank == 1 and not resumed:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(images)

    run.learner.network.forward = forward  # type: ignore[method-assign]
    outcome = run.fit()
    return {"finished": outcome.finished, "batches": run.position.iteration}


def together(scenario: Callable[[Path, Processes], dict], folder: Path) -> list[int]:
    """Two processes that run `scenario` and leave SCENARIO-RANK.json; their exit statuses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in (0, 1):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        try:
            there = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in there.items()})
            with join_processes(torch.device("cpu")) as group:
                result = scenario(folder, group)
            (folder / f"{scenario.__name__}-{rank}.json").write_text(json.dumps(result))
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked process must not continue as its parent
            traceback.print_exc()
            os._exit(1)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    torch.set_num_threads(1)
    base = Path(sys.argv[1])
    statuses = [together(scenario, base) for scenario in (everything, dies, dies)]
    (base / "statuses.json").write_text(json.dumps(statuses))
