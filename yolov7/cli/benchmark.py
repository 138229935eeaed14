"""`yolov7 benchmark`: times of preprocessing, network and suppression."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from yolov7.cli.options import add_batch_size, add_model, load
from yolov7.tables import print_table

if TYPE_CHECKING:
    from yolov7.predict import Predictor
    from yolov7.predict.benchmark import Benchmark


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """Options of `yolov7 benchmark`."""
    add_model(parser)
    parser.add_argument("--source", help="images to time (default: one noise image, which gives few detections)")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="timed batches (30)")
    parser.add_argument("--warmup", type=int, default=5, metavar="N", help="untimed batches before them (5)")
    add_batch_size(parser, default=1)
    parser.add_argument(
        "--compare",
        action="store_true",
        help="time every file of the export folder, and the float32 training form in eager mode as reference",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_benchmark)


def _benchmark(args: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from yolov7.errors import ConfigError
    from yolov7.predict.benchmark import benchmark, compare
    from yolov7.predict.sources import open_source

    if min(args.rounds, args.batch_size) < 1 or min(args.warmup, args.threads) < 0:
        raise ConfigError("--rounds and --batch-size must be at least 1, --warmup and --threads at least 0")
    if args.source:
        images = [frame.image for frame, _ in zip(open_source(args.source).frames(), range(100), strict=False)]
    else:
        images = [np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)]
    if args.threads:
        torch.set_num_threads(args.threads)
    how = {"rounds": args.rounds, "warmup": args.warmup, "batch_size": args.batch_size, "threads": args.threads}
    if args.compare:
        _print_comparison(compare(_every_file(args), images, **how), _sizes(args.model), as_json=args.json)
        return
    result = benchmark(load(args), images, **how)
    if args.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _print_benchmark(result)


def _every_file(args: argparse.Namespace) -> dict[str, Predictor]:
    """Predictors: the reference, and one for each file of an export folder."""
    from yolov7.errors import ConfigError
    from yolov7.predict.benchmark import files_in, reference

    if args.runtime or args.precision != "float32" or not Path(args.model).is_dir():
        raise ConfigError(
            "--compare takes an export folder and runs every file in it, without --runtime or --precision"
        )
    predictors = {f"{name} {kind}": load(args, runtime=name, precision=kind) for name, kind in files_in(args.model)}
    return {"training form": reference(next(iter(predictors.values())), network=args.network), **predictors}


def _sizes(folder: str) -> dict[str, float]:
    """Megabytes of each file of an export folder, by runtime and precision."""
    from yolov7.artefact import FILES
    from yolov7.int8_files import size_mb
    from yolov7.predict.benchmark import files_in

    return {f"{name} {kind}": size_mb(Path(folder) / FILES[name, kind]) for name, kind in files_in(folder)}


def _print_comparison(results: dict[str, Benchmark], sizes: dict[str, float], *, as_json: bool) -> None:
    first = next(iter(results.values())).timings[1].median
    ratios = {name: first / result.timings[1].median for name, result in results.items()}
    if as_json:
        more = {name: {"network_ratio": ratios[name], "size_mb": sizes.get(name)} for name in results}
        print(json.dumps({name: {**r.to_dict(), **more[name]} for name, r in results.items()}, indent=2))
        return
    heading = ("ms per batch", "network", "10 %", "90 %", "times faster", "before", "after", "images/s", "MB")
    lines = []
    for name, result in results.items():
        before, network, after = (part for part in result.timings if part.part != "total")
        network_ms = (f"{network.median:.1f}", f"{network.low:.1f}", f"{network.high:.1f}", f"{ratios[name]:.2f}")
        around = (f"{before.median:.2f}", f"{after.median:.2f}")
        size_shown = f"{sizes[name]:.1f}" if name in sizes else ""
        lines.append((name, *network_ms, *around, f"{result.images_per_second:.1f}", size_shown))
    print_table(heading, lines, left=1)
    first_result = next(iter(results.values()))
    size = " x ".join(map(str, first_result.image_size))
    print(f"{first_result.variant}, {size}, batch {first_result.batch_size}, {first_result.rounds} rounds in turn")


def _print_benchmark(result: Benchmark) -> None:
    height, width = result.image_size
    lines = [(t.part, f"{t.median:.2f}", f"{t.low:.2f}", f"{t.high:.2f}") for t in result.timings]
    print_table(("ms per batch", "median", "10 %", "90 %"), lines, left=1)
    print(
        f"{result.variant}, {result.runtime}, {result.precision}, {height} x {width}, batch {result.batch_size}, "
        f"{result.rounds} rounds: {result.images_per_second:.1f} images/s, {result.detections:.1f} detections per image"
    )
