"""The `yolov7` command. A user's mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from yolov7.errors import YoloError
from yolov7.tables import print_table
from yolov7.text import for_terminal, printable

if TYPE_CHECKING:  # commands import what they need when they run, so that `yolov7 --help` is fast
    from yolov7.predict import Predictor
    from yolov7.predict.benchmark import Benchmark

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_TERMINATED = 143  # 128 + SIGTERM


class _Terminated(BaseException):
    """SIGTERM as an exception, so that finished work is written on the way out."""


class _Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"error: {message} (see `{self.prog} --help`)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 a mistake that the message explains, 130 or 143 stopped."""
    # OpenCV's video backend writes to stderr by itself; our own messages say what matters.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    args = _parser().parse_args(arguments)
    _find_own_modules(getattr(args, "network", None) or getattr(args, "variant", None))
    try:
        with _termination():
            args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `yolov7 info | head`: the reader has left, which is not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (YoloError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except _Terminated:
        print("stopped", file=sys.stderr)
        return EXIT_TERMINATED
    return 0


def _find_own_modules(network: str | None) -> None:
    """Look for the module of MODULE:FUNCTION in the current folder too, as `python -m stages.train` does.

    The folder comes last, so that no file in it hides an installed module.
    """
    here = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    if network is not None and ":" in network and here not in sys.path:
        sys.path.append(here)


@contextlib.contextmanager
def _termination() -> Iterator[None]:
    """Make SIGTERM an orderly end: service managers and containers stop a command with it."""

    def stop(number: int, _: object) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a second one would interrupt writing the results
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="yolov7", description="Object detectors: information, weights, prediction, latency.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_info(commands.add_parser("info", help="show parameters, GFLOPs, strides and published AP of the networks"))
    _add_import_weights(commands.add_parser("import-weights", help="convert a published .pt to .safetensors"))
    _add_tensorrt(commands.add_parser("tensorrt", help="check an ONNX file for TensorRT; with -o, build an engine"))
    _add_predict(commands.add_parser("predict", help="detect objects in images, folders, videos and streams"))
    _add_benchmark(commands.add_parser("benchmark", help="time preprocessing, network and suppression"))
    return parser


def _add_info(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--variant", help="show only this network")
    which.add_argument("--model", metavar="FILE", help="show the network in a .safetensors file")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="your own network, for its kinds of block in FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_info)


def _add_import_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="published checkpoint; nothing in it is executed")
    parser.add_argument("--variant", required=True, help="network the weights belong to")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help=".safetensors file to write")
    parser.add_argument("--form", choices=("training", "deploy"), default="training", help="form to write (training)")
    parser.set_defaults(run=_import_weights)


def _add_tensorrt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help=".onnx file of this project")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="engine to build for this GPU")
    parser.add_argument("--float32", action="store_true", help="build without float16")
    parser.set_defaults(run=_tensorrt)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="image, folder, glob, video, stream address or camera number")
    _add_model(parser)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("detections"), metavar="DIR", help="output folder (detections)"
    )
    parser.add_argument("--json", action="store_true", help="also print the COCO-style JSON")
    parser.add_argument(
        "--also", nargs="+", choices=("csv", "yolo"), default=[], help="also write a CSV table or YOLO label files"
    )
    parser.add_argument(
        "--tiles",
        type=float,
        metavar="P",
        help="also run on overlapping tiles of large images; P is the overlap, e.g. 0.2",
    )
    parser.add_argument(
        "--rectangular", action="store_true", help="use the smallest rectangle instead of the square input"
    )
    parser.add_argument(
        "--border", type=int, default=0, metavar="N", help="grey pixels along the image's long side (0)"
    )
    parser.add_argument(
        "--pixel-range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="values that become black and white in images of more than 8 bits: pixel_range of the training data",
    )
    _add_batch_size(parser, default=8)
    parser.add_argument(
        "--augment",
        nargs="?",
        const="all",
        choices=("all", "scales", "flip"),
        help="run on several scaled and mirrored views of each image and merge the detections (slower)",
    )
    parser.set_defaults(run=_predict)


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--source", help="images to time (default: one noise image, which gives few detections)")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="timed batches (30)")
    parser.add_argument("--warmup", type=int, default=5, metavar="N", help="untimed batches before them (5)")
    _add_batch_size(parser, default=1)
    parser.add_argument(
        "--compare",
        action="store_true",
        help="time every file of the export folder, and the float32 training form in eager mode as reference",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_benchmark)


def _add_model(parser: argparse.ArgumentParser) -> None:
    """The model and how it runs."""
    parser.add_argument(
        "--model", required=True, metavar="M", help=".safetensors, .onnx, .xml, export folder, or models:/NAME@ALIAS"
    )
    parser.add_argument(
        "--runtime", choices=("onnx", "torch", "openvino"), help="file of an export folder to run (onnx)"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="precision of that file, if the folder has one (float32)",
    )
    parser.add_argument(
        "--network",
        metavar="MODULE:FUNCTION",
        help="your own network, where a .safetensors file has kinds of block of its own, or --compare builds it",
    )
    parser.add_argument("--confidence", type=float, metavar="P", help="score threshold (default: the model's)")
    parser.add_argument(
        "--iou", type=float, metavar="P", help="IoU threshold of the suppression (default: the model's)"
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="most detections per image (default: the model's, which --tiles applies to each tile)",
    )
    parser.add_argument("--image-size", type=int, metavar="N", help="side of the input (default: the model's)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (cpu)")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads of the runtime (0: its own choice)"
    )


def _add_batch_size(parser: argparse.ArgumentParser, *, default: int) -> None:
    parser.add_argument(
        "--batch-size", type=int, default=default, metavar="N", help=f"images per forward pass ({default})"
    )


def _load(args: argparse.Namespace, **more: Any) -> Predictor:
    from yolov7.errors import ConfigError
    from yolov7.predict import load_detector

    if args.threads < 0:
        raise ConfigError(f"--threads must be at least 0 (0: the runtime's own choice), got {args.threads}")
    more = {"runtime": args.runtime, "precision": args.precision, **more}
    return load_detector(
        args.model,
        confidence=args.confidence,
        iou=args.iou,
        max_detections=args.max_detections,
        image_size=args.image_size,
        device=args.device,
        threads=args.threads,
        network=args.network,
        **more,
    )


def _info(args: argparse.Namespace) -> None:
    from yolov7.errors import ConfigError
    from yolov7.model.info import file_info, sections, variant_infos

    if args.network and not args.model:
        raise ConfigError("--network belongs to --model; --variant MODULE:FUNCTION shows your own network")
    if args.model:
        rows = [file_info(args.model, network=args.network or "")]
    else:
        rows = variant_infos([args.variant] if args.variant else None)
    if args.json:
        print(json.dumps([row.as_json() for row in rows], indent=2))
        return
    for number, section in enumerate(sections(rows)):
        heading, *lines = section.rows
        print(f"\n{section.title}" if number else section.title)
        print_table(heading, lines, left=1)
        if section.note:
            print(section.note)


def _import_weights(args: argparse.Namespace) -> None:
    from yolov7.model.published.convert import import_official

    report = import_official(args.file, args.variant, args.output, form=args.form)
    print(for_terminal(f"{args.output}: {report}"))


def _tensorrt(args: argparse.Namespace) -> None:
    from yolov7.errors import ModelError
    from yolov7.export.tensorrt import build_engine, check_tensorrt

    if not args.file.is_file():
        raise ModelError(f"{args.file}: no such file; pass the .onnx of an export folder")
    report = check_tensorrt(args.file)
    for line in [*report.problems, *(f"note: {note}" for note in report.notes)]:
        print(line)
    if report.problems:
        raise ModelError(f"{args.file}: TensorRT would refuse it ({len(report.problems)} reasons)")
    print(f"{args.file}: nothing in it that TensorRT's ONNX parser refuses")
    if args.output is not None:
        build_engine(args.file, args.output, half=not args.float32)
        print(args.output)


def _predict(args: argparse.Namespace) -> None:
    from yolov7.data.depth import PixelRange
    from yolov7.predict.job import RESULTS, predict_source
    from yolov7.predict.sources import open_source
    from yolov7.predict.tiles import TiledPredictor

    pixel_range = None if args.pixel_range is None else PixelRange(*args.pixel_range)
    # Before a model is loaded: a mistyped path is reported at once.
    source = open_source(args.source, exclude=[args.output], pixel_range=pixel_range)
    predictor = _load(
        args,
        rectangular=args.rectangular,
        border=args.border,
        batch_size=args.batch_size,
        augment=args.augment or False,
    )
    detector = (
        predictor if args.tiles is None else TiledPredictor(predictor, args.tiles, max_detections=args.max_detections)
    )
    with _progress(len(source)) as advance:
        job = predict_source(detector, source, args.output, formats=args.also, advance=advance)
    job.tell(args.output / RESULTS, as_json=args.json)


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
        _print_comparison(compare(_every_file(args), images, **how), as_json=args.json)
        return
    result = benchmark(_load(args), images, **how)
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
    predictors = {f"{name} {kind}": _load(args, runtime=name, precision=kind) for name, kind in files_in(args.model)}
    return {"training form": reference(next(iter(predictors.values())), network=args.network), **predictors}


def _print_comparison(results: dict[str, Benchmark], *, as_json: bool) -> None:
    first = next(iter(results.values())).timings[1].median
    ratios = {name: first / result.timings[1].median for name, result in results.items()}
    if as_json:
        print(json.dumps({n: {**r.to_dict(), "network_ratio": ratios[n]} for n, r in results.items()}, indent=2))
        return
    heading = ("ms per batch", "network", "10 %", "90 %", "times faster", "before", "after", "images/s")
    lines = []
    for name, result in results.items():
        before, network, after = (part for part in result.timings if part.part != "total")
        network_ms = (f"{network.median:.1f}", f"{network.low:.1f}", f"{network.high:.1f}", f"{ratios[name]:.2f}")
        lines.append(
            (name, *network_ms, f"{before.median:.2f}", f"{after.median:.2f}", f"{result.images_per_second:.1f}")
        )
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


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Progress bar on stderr if that is a terminal; yields the function to call after every image. 0: unknown total."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("detecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=total or None)
        yield lambda: bar.advance(task)


if __name__ == "__main__":
    sys.exit(main())
