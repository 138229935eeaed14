"""The `yolov7` command. A mistake of the user's is one line on stderr and exit code 2."""

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

from yolov7.errors import DataError, YoloError

if TYPE_CHECKING:  # what a command needs is imported when it runs: `yolov7 --help` answers at once
    from yolov7.predict import Predictor
    from yolov7.predict.benchmark import Benchmark

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_TERMINATED = 143  # 128 + SIGTERM


class _Terminated(BaseException):
    """SIGTERM, as an interrupt: what is done is written on the way out."""


class _Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"error: {message} (see `{self.prog} --help`)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 a mistake that the message explains, 130 or 143 stopped."""
    # OpenCV's video backend writes to stderr by itself; what matters of it comes in our own words.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    args = _parser().parse_args(arguments)
    try:
        with _termination():
            args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `yolov7 info | head`: nobody reads on, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (YoloError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except _Terminated:
        print("stopped", file=sys.stderr)
        return EXIT_TERMINATED
    return 0


@contextlib.contextmanager
def _termination() -> Iterator[None]:
    """Make SIGTERM an orderly end: service managers and containers stop a command so."""

    def stop(number: int, _: object) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a second one would cut off the writing of the results
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # no other thread may see to signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="yolov7", description="A library of object detectors.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="parameters, GFLOPs, strides and published AP of the networks")
    info.add_argument("--variant", help="only this one")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_info)

    weights = commands.add_parser("import-weights", help="turn a published .pt into a .safetensors of this project")
    weights.add_argument("file", metavar="FILE", type=Path, help="published checkpoint; nothing in it is executed")
    weights.add_argument("--variant", required=True, help="the network it belongs to")
    weights.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help=".safetensors file to write")
    weights.add_argument("--form", choices=("training", "deploy"), default="training", help="form to write")
    weights.set_defaults(run=_import_weights)

    engine = commands.add_parser(
        "tensorrt", help="will TensorRT read an ONNX file; with -o, build the engine for this GPU"
    )
    engine.add_argument("file", metavar="FILE", type=Path, help=".onnx file of this project")
    engine.add_argument("-o", "--output", type=Path, metavar="OUT", help="engine to write")
    engine.add_argument("--float32", action="store_true", help="no float16 in the engine")
    engine.set_defaults(run=_tensorrt)

    predict = commands.add_parser("predict", help="detect in images, folders, videos and streams")
    predict.add_argument("source", metavar="SOURCE", help="image, folder, glob, video, stream address, camera number")
    _add_model(predict)
    predict.add_argument(
        "-o", "--output", type=Path, default=Path("detections"), metavar="DIR", help="folder to write (detections)"
    )
    predict.add_argument("--json", action="store_true", help="print the COCO-style json as well")
    predict.add_argument(
        "--also", nargs="+", choices=("csv", "yolo"), default=[], help="write a table, or YOLO text files, besides"
    )
    predict.add_argument(
        "--tiles",
        type=float,
        metavar="P",
        help="see large images in tiles of the input's size that overlap by this share (0.2, say), and as a whole",
    )
    predict.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="most detections of an image (default: the model's; with --tiles, the model's in each tile)",
    )
    predict.add_argument("--rectangular", action="store_true", help="smallest rectangle in place of the square input")
    predict.add_argument("--batch-size", type=int, default=8, metavar="N", help="images per forward pass (8)")
    predict.add_argument(
        "--augment",
        nargs="?",
        const="all",
        choices=("all", "scales", "flip"),
        help="see each image several times, smaller and mirrored, and merge what is found (slower)",
    )
    predict.set_defaults(run=_predict)

    bench = commands.add_parser("benchmark", help="latency of preprocessing, network and suppression")
    _add_model(bench)
    bench.add_argument("--source", help="images to time with (default: one of noise, on which little is detected)")
    bench.add_argument("--rounds", type=int, default=30, metavar="N", help="timed batches (30)")
    bench.add_argument("--warmup", type=int, default=5, metavar="N", help="batches before them (5)")
    bench.add_argument("--batch-size", type=int, default=1, metavar="N", help="images per forward pass (1)")
    bench.add_argument(
        "--compare",
        action="store_true",
        help="every file of the export folder in one run, and the eager float32 training form as the reference",
    )
    bench.add_argument("--json", action="store_true", help="as JSON")
    bench.set_defaults(run=_benchmark)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="M", help=".safetensors, .onnx, .xml, export folder, or models:/NAME@ALIAS"
    )
    parser.add_argument(
        "--runtime", choices=("onnx", "torch", "openvino"), help="which file of an export folder to run (onnx)"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="and of which precision, where the folder has it (float32)",
    )
    parser.add_argument("--confidence", type=float, metavar="P", help="score threshold (default: the model's)")
    parser.add_argument(
        "--iou", type=float, metavar="P", help="IoU threshold of the suppression (default: the model's)"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="side of the network's input (default: the model's)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (cpu)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads of the runtime (0: it chooses)")


def _load(args: argparse.Namespace, **more: Any) -> Predictor:
    from yolov7.errors import ConfigError
    from yolov7.predict import load_detector

    if args.threads < 0:
        raise ConfigError(f"--threads: 0 (the runtime chooses) or more, got {args.threads}")
    more = {"runtime": args.runtime, "precision": args.precision, **more}
    return load_detector(
        args.model,
        confidence=args.confidence,
        iou=args.iou,
        image_size=args.image_size,
        device=args.device,
        threads=args.threads,
        **more,
    )


def _info(args: argparse.Namespace) -> None:
    from yolov7.model.info import sections, variant_infos

    rows = variant_infos([args.variant] if args.variant else None)
    if args.json:
        print(json.dumps([row.as_json() for row in rows], indent=2))
        return
    for number, section in enumerate(sections(rows)):
        heading, *lines = section.rows
        print(f"\n{section.title}" if number else section.title)
        _print_table(heading, lines, left=1)
        if section.note:
            print(section.note)


def _import_weights(args: argparse.Namespace) -> None:
    from yolov7.model.published.convert import import_official

    report = import_official(args.file, args.variant, args.output, form=args.form)
    print(f"{args.output}: {report}")


def _tensorrt(args: argparse.Namespace) -> None:
    from yolov7.errors import ModelError
    from yolov7.export.tensorrt import build_engine, check_tensorrt

    if not args.file.is_file():
        raise ModelError(f"{args.file}: no such file; give the .onnx of an export folder")
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
    from yolov7.predict.job import RESULTS, predict_source
    from yolov7.predict.sources import open_source
    from yolov7.predict.tiles import TiledPredictor

    source = open_source(args.source, exclude=[args.output])  # a mistyped path is told before a model is loaded
    predictor = _load(
        args,
        max_detections=args.max_detections,
        rectangular=args.rectangular,
        batch_size=args.batch_size,
        augment=args.augment or False,
    )
    detector = (
        predictor if args.tiles is None else TiledPredictor(predictor, args.tiles, max_detections=args.max_detections)
    )
    with _progress(len(source)) as advance:
        job = predict_source(detector, source, args.output, formats=args.also, advance=advance)
    if job.errors and not job.images:
        raise job.errors[0]
    if args.json:
        with (args.output / RESULTS).open(encoding="utf-8") as lines:
            sys.stdout.writelines(lines)
    else:
        print(f"{job.images} images, {job.detections} detections: {args.output / RESULTS}")
    if job.errors:
        more = f" (and {len(job.errors) - 1} more)" if len(job.errors) > 1 else ""
        raise DataError(f"{job.errors[0]}{more}; the others are done")


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
    """The reference, and what each file of an export folder makes."""
    from yolov7.errors import ConfigError
    from yolov7.predict.benchmark import files_in, reference

    if args.runtime or args.precision != "float32" or not Path(args.model).is_dir():
        raise ConfigError("--compare takes an export folder and runs every file in it: no --runtime, no --precision")
    made = {f"{name} {kind}": _load(args, runtime=name, precision=kind) for name, kind in files_in(args.model)}
    return {"training form": reference(next(iter(made.values()))), **made}


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
        spread = (f"{network.median:.1f}", f"{network.low:.1f}", f"{network.high:.1f}", f"{ratios[name]:.2f}")
        lines.append((name, *spread, f"{before.median:.2f}", f"{after.median:.2f}", f"{result.images_per_second:.1f}"))
    _print_table(heading, lines, left=1)
    one = next(iter(results.values()))
    print(f"{one.variant}, {' x '.join(map(str, one.image_size))}, batch {one.batch_size}, {one.rounds} rounds in turn")


def _print_benchmark(result: Benchmark) -> None:
    height, width = result.image_size
    lines = [(t.part, f"{t.median:.2f}", f"{t.low:.2f}", f"{t.high:.2f}") for t in result.timings]
    _print_table(("ms per batch", "median", "10 %", "90 %"), lines, left=1)
    print(
        f"{result.variant}, {result.runtime}, {result.precision}, {height} x {width}, batch {result.batch_size}, "
        f"{result.rounds} rounds: {result.images_per_second:.1f} images/s, {result.detections:.1f} detections per image"
    )


def _print_table(heading: Sequence[str], lines: Sequence[Sequence[str]], *, left: int) -> None:
    """A table on stdout; the first `left` columns hold words, the others figures."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(heading):
        table.add_column(name, justify="left" if i < left else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width to fit into
        console = Console(width=200)
    console.print(table)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Progress on stderr where that is a terminal; yields what to call after every image. `total` 0 is unknown."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("detecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=total or None)
        yield lambda: bar.advance(task)


if __name__ == "__main__":
    sys.exit(main())
