"""The `yolov7` command. A user's mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NoReturn

from yolov7.cli.benchmark import add_benchmark
from yolov7.cli.evaluate import add_evaluate
from yolov7.cli.export import add_export
from yolov7.cli.info import add_info
from yolov7.cli.predict import add_predict
from yolov7.cli.training import add_train
from yolov7.cli.weights import add_fetch_weights, add_import_weights, add_tensorrt
from yolov7.errors import YoloError
from yolov7.text import printable

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
    parser = _Parser(prog="yolov7", description="Object detectors: training, evaluation, export, prediction, latency.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_info(commands.add_parser("info", help="show parameters, GFLOPs, strides and published AP of the networks"))
    add_train(commands.add_parser("train", help="train a detector on a data set; the same command resumes"))
    add_evaluate(commands.add_parser("evaluate", help="measure a detector on a data set with the COCO tool"))
    add_export(commands.add_parser("export", help="write a trained detector as ONNX, OpenVINO and int8 files"))
    add_import_weights(commands.add_parser("import-weights", help="convert a published .pt to .safetensors"))
    add_fetch_weights(commands.add_parser("fetch-weights", help="fetch published weights, for use without a network"))
    add_tensorrt(commands.add_parser("tensorrt", help="check an ONNX file for TensorRT; with -o, build an engine"))
    add_predict(commands.add_parser("predict", help="detect objects in images, folders, videos and streams"))
    add_benchmark(commands.add_parser("benchmark", help="time preprocessing, network and suppression"))
    return parser
