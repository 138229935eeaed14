"""A training step on a CPU beside the plain way: `python benchmarks/cpu_step.py [--rounds 5] [--threads 1]`.

Processor time of network, loss, optimiser and average, without data, in processes that take turns:

* plain: contiguous tensors, eager, assignment image by image, freed memory given back to the system;
* channels last: our step, freed memory given back;
* ours: the step of the trainer, which keeps it.

Then the time of one step of each by kind of operation, and the bounds: our step's convolutions alone, and the same
arithmetic at the speed of the one convolution that suits the processor best. Processor time, because wall time says
nothing on a shared machine.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import re
import resource
import statistics
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from gpu_kit.settings import Settings
from gpu_kit.step import OURS, PLAIN, Step, synthetic_batch
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7.device import step_memory_kept

WAYS = {"plain": (PLAIN, False), "channels last": (OURS, False), "ours": (OURS, True)}
WARM_UP = 2
KINDS = {
    "convolution": r"convolution$",
    "convolution, backward": r"convolution_backward$",
    "batch norm": r"native_batch_norm",
    "activation": r"leaky_relu|silu|relu|threshold_backward",
    "concatenation": r"cat$",
    "pooling, up-sampling": r"(max|avg)_pool|upsample",
    "sums, products": r"(add|mul)_?$",
    "optimiser, average": r"_foreach|_fused",
}
"""Beginnings of the names of their operations."""
REST = "other (assignment, loss)"


class ByOperation(TorchDispatchMode):
    """Processor seconds of each operation below autograd, backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.process_time()
        result = function(*args, **(kwargs or {}))
        self.seconds[function.overloadpacket.__name__] += time.process_time() - started
        return result


def kind_of(operation: str) -> str:
    """The kind of an operation by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.match(pattern, operation)), REST)


def serve(connection: Connection, name: str, settings: Settings, variant: str, threads: int) -> None:
    """One way in a process of its own, whose parent says what to do next."""
    torch.set_num_threads(threads)
    way, keeps = WAYS[name]
    with step_memory_kept(torch.device("cpu")) if keeps else contextlib.nullcontext():
        step = Step(settings, variant, way, settings.side)
        batch = step.on_host(synthetic_batch(settings, settings.side))
        for _ in range(WARM_UP):
            step(batch)
        connection.send("ready")
        while (order := connection.recv()) != "end":
            if order == "shares":
                with ByOperation() as operations:
                    step(batch)
                connection.send(operations.seconds)
                continue
            before = resource.getrusage(resource.RUSAGE_SELF)
            step(batch)
            after = resource.getrusage(resource.RUSAGE_SELF)
            connection.send(
                {
                    "user": after.ru_utime - before.ru_utime,
                    "system": after.ru_stime - before.ru_stime,
                    "faults": after.ru_minflt - before.ru_minflt,
                    "peak": after.ru_maxrss / 2**20,
                }
            )


def fastest_flops() -> float:
    """Floating-point operations a processor second of a convolution that suits the processor; the best of five.

    Not of a matrix product: that comes from another library, which is slower than oneDNN on some processors.
    """
    images = torch.rand(4, 512, 40, 40).contiguous(memory_format=torch.channels_last)
    kernels = torch.rand(512, 512, 3, 3).contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(6):
        started = time.process_time()
        torch.nn.functional.conv2d(images, kernels, padding=1)
        times.append(time.process_time() - started)
    return 2 * images.numel() * kernels[:, 0].numel() / min(times[1:])


def step_flops(variant: str, side: int) -> float:
    """Floating-point operations of the convolutions of one image: forward, and twice that backward."""
    from torch.utils.flop_counter import FlopCounterMode

    from yolov7.model import create_model

    model = create_model(variant, 80).train()
    with FlopCounterMode(display=False) as counter:
        sum(raw.sum() for raw in model.raw(torch.rand(2, 3, side, side))).backward()
    return counter.get_total_flops() / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="yolov7-tiny")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(Path(folder), device="cpu", side=arguments.size, batch=arguments.batch_size)
        measure(settings, arguments.variant, arguments.threads, arguments.rounds)


def measure(settings: Settings, variant: str, threads: int, rounds: int) -> None:
    """Print the table of the ways, the table of the kinds and the bounds."""
    context = multiprocessing.get_context("spawn")
    ways = {}
    for name in WAYS:
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, name, settings, variant, threads), daemon=True).start()
        ways[name] = here
        here.recv()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name in WAYS:
            rows[name].append(ask(ways[name], "step"))
    ms = 1e3 / settings.batch
    print(f"{variant}, {settings.side} px, batch {settings.batch}, {threads} threads, processor ms an image:")
    totals = {name: [ms * (row["user"] + row["system"]) for row in rows[name]] for name in WAYS}
    above = "plain"
    for name in WAYS:
        system, faults = (statistics.median(row[key] for row in rows[name]) for key in ("system", "faults"))
        print(
            f"{name:14} {spread(totals[name], 1)}, system {ms * system:.1f}, page faults a step {faults:.0f}, "
            f"peak {rows[name][-1]['peak']:.2f} GiB, plain / this {spread(paired(totals['plain'], totals[name]), 2)}, "
            f"{above} / this {spread(paired(totals[above], totals[name]), 2)}",
            flush=True,
        )
        above = name
    shares = {name: by_kind(ask(ways[name], "shares")) for name in WAYS}
    for kind in (*KINDS, REST):
        print(f"{kind:26}" + "".join(f"{ms * shares[name][kind]:8.2f}" for name in WAYS))
    convolutions = ms * sum(shares["ours"][kind] for kind in KINDS if kind.startswith("convolution"))
    torch.set_num_threads(threads)
    arithmetic = 1e3 * step_flops(variant, settings.side) / fastest_flops()
    print(f"bounds: convolutions of our step alone {convolutions:.1f}, their arithmetic {arithmetic:.1f}")
    for way in ways.values():
        way.send("end")


def spread(values: list[float], digits: int) -> str:
    """Median, least and largest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def paired(first: list[float], second: list[float]) -> list[float]:
    """Ratios round by round."""
    return [one / other for one, other in zip(first, second, strict=True)]


def ask(way: Connection, order: str) -> Any:
    """The answer of one of the processes."""
    way.send(order)
    return way.recv()


def by_kind(seconds: Counter[str]) -> Counter[str]:
    """Seconds of the kinds of operation."""
    found: Counter[str] = Counter()
    for operation, spent in seconds.items():
        found[kind_of(operation)] += spent
    return found


if __name__ == "__main__":
    main()
