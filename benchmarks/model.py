"""Speed and memory of the networks: deploy form beside the training form of the same network, in one run.

    python benchmarks/model.py                       CPU, eager, batch 1, 640: table for the family
    python benchmarks/model.py --build               seconds to build each variant, peak memory of yolov7-e6e at 1280
    python benchmarks/model.py --device DEVICE       half precision on an accelerator, batch 1 and 32, eager, compiled

Times are medians of interleaved rounds, so that a busy machine slows both forms alike: read the ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch

from yolov7.memory import peak_memory_gib
from yolov7.model import create_model, list_variants
from yolov7.model.variants import find_record


def clock(call, device):
    if device.type != "cpu":
        torch.accelerator.synchronize()
    start = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def medians(calls, rounds, device):
    """Median seconds of each call; one round runs every call once."""
    for call in calls.values():
        for _ in range(2):
            call()
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(clock(call, device))
    return {name: statistics.median(values) for name, values in times.items()}


@torch.inference_mode()
def forward_table(variants, side, rounds):
    device = torch.device("cpu")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch 1, {side} px, float32, eager; ms")
    print(f"{'variant':<18}{'training':>10}{'deploy':>10}{'ratio':>8}{'train CL':>10}{'deploy CL':>10}{'ratio':>8}")
    images = torch.rand(1, 3, side, side)
    last = images.to(memory_format=torch.channels_last)
    for variant in variants:
        trained = create_model(variant).eval()
        deploy = trained.reparameterize()
        trained_last = create_model(variant).eval().to(memory_format=torch.channels_last)
        deploy_last = trained_last.reparameterize()
        calls = {
            "a": lambda m=trained: m(images),
            "b": lambda m=deploy: m(images),
            "c": lambda m=trained_last: m(last),
            "d": lambda m=deploy_last: m(last),
        }
        ms = {name: 1e3 * value for name, value in medians(calls, rounds, device).items()}
        print(
            f"{variant:<18}{ms['a']:>10.1f}{ms['b']:>10.1f}{ms['a'] / ms['b']:>8.2f}"
            f"{ms['c']:>10.1f}{ms['d']:>10.1f}{ms['c'] / ms['d']:>8.2f}",
            flush=True,
        )


@torch.inference_mode()
def accelerator_table(variants, device, rounds, compiled):
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}, float16, channels last; ms a batch")
    heading = f"{'variant':<18}{'px':>6}" + "".join(
        f"{f'{how} b{b}':>14}" for b in (1, 32) for how in ("eager", "compiled")
    )
    print(heading + f"{'paper FPS':>11}")
    for variant in variants:
        model = create_model(variant).reparameterize().to(device).half().to(memory_format=torch.channels_last)
        side, cells = model.spec.image_size, []
        for batch in (1, 32):
            images = torch.rand(batch, 3, side, side, device=device).half().to(memory_format=torch.channels_last)
            calls = {"eager": lambda m=model, x=images: m(x)}
            if compiled:
                faster = torch.compile(model, mode="max-autotune-no-cudagraphs" if batch > 1 else "reduce-overhead")
                calls["compiled"] = lambda m=faster, x=images: m(x)
            found = medians(calls, rounds, device)
            cells += [
                f"{1e3 * found[name]:>14.2f}" if name in found else f"{'-':>14}" for name in ("eager", "compiled")
            ]
        known = find_record(variant).published
        print(f"{variant:<18}{side:>6}{''.join(cells)}{(known.fps if known else None) or '-':>11}", flush=True)
        torch._dynamo.reset()


def build_table(variants):
    print("seconds to build, on one run each")
    for variant in variants:
        start = time.perf_counter()
        create_model(variant)
        print(f"{variant:<18}{time.perf_counter() - start:>8.2f}", flush=True)
    for form in ("deploy", "training"):
        subprocess.run([sys.executable, __file__, "--peak", form], check=True)


@torch.inference_mode()
def peak(form):
    """In a process of its own, because the operating system reports only the peak since the start."""
    model = create_model("yolov7-e6e").eval()
    if form == "deploy":
        model = model.reparameterize()
    start = time.perf_counter()
    model(torch.rand(1, 3, 1280, 1280))
    print(
        f"yolov7-e6e, {form} form, 1280 px: peak {peak_memory_gib():.2f} GiB, {time.perf_counter() - start:.1f} s",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list_variants())
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--peak", choices=("deploy", "training"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.peak:
        peak(arguments.peak)
    elif arguments.build:
        build_table(arguments.variants)
    elif device.type == "cpu":
        forward_table(arguments.variants, arguments.side, arguments.rounds)
    else:
        accelerator_table(arguments.variants, device, arguments.rounds, not arguments.no_compile)


if __name__ == "__main__":
    main()
