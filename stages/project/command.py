"""Entry point of every stage: parameters checked as a whole, no telemetry, one-line errors, exit code 2.

A stage module ends with ``if __name__ == "__main__": run_stage(main)`` where ``main(params, args)`` does its work.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from stages.project import params as params_module
from stages.project.home import experiment_origin, project_root, share_state
from stages.project.params import Params
from stages.project.redaction import log_to_stderr, redacted
from stages.project.stage_code import STAGES, named, renew
from yolov7.errors import ConfigError, DataError, LostWorkerError, YoloError, nearest
from yolov7.text import printable

EXIT_ERROR = 2
EXIT_RESUMABLE = 75
"""Run the same command again to resume: a training saved its state on request, a server is unavailable, or a process
that loads data was killed (sysexits' EX_TEMPFAIL)."""
RESTORE_ONLY = "YOLOV7_RESTORE_ONLY"
"""Environment variable: the outputs must come from the DVC remote; the stage refuses to make them itself."""

NO_TELEMETRY = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
}
"""The Makefile repeats these for the commands that it starts itself."""


class UnavailableError(YoloError):
    """A server is unavailable; the same command may work later."""


def check_chosen(params: Params, variant: str) -> None:
    """Raise :class:`ConfigError` unless the variant is one of `params.yaml: variants`."""
    if variant not in params.variants:
        known = list(params.variants)
        raise ConfigError(f"--variant: {variant!r} is not in params.yaml: variants{nearest(variant, known)}")


Option = tuple[str, dict[str, object]]


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """A stage stopped on request and left a state from which the same command resumes."""


def environment(base: dict[str, str] | None = None) -> dict[str, str]:
    """The environment for a child process: `base` (default: ours) without telemetry."""
    return {**(os.environ if base is None else base), **NO_TELEMETRY}


def check_system() -> None:
    """Raise :class:`ConfigError` where a command of the pipeline cannot keep its promises: without POSIX file locks."""
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise ConfigError(
            "the pipeline needs Linux or macOS: this system has no file locks (Python's module `fcntl`); use WSL or a "
            "container, or the library alone, which works here (the command `yolov7`; docs/training.md, Systems)"
        ) from None


def run_stage(
    main: Callable[[Params, argparse.Namespace], None],
    *,
    variant: bool = False,
    options: Iterable[Option] = (),
    arguments: list[str] | None = None,
) -> None:
    """Parse the command line, check `params.yaml`, run `main`, and leave with an exit code.

    0: done. 2: a mistake that the message explains. 75: stopped on request, a server is unavailable, or a process that
    loads data was killed; the same command may resume.
    """
    sys.exit(_run(main, variant, options, arguments))


def _run(
    main: Callable[[Params, argparse.Namespace], None],
    variant: bool,
    options: Iterable[Option],
    arguments: list[str] | None,
) -> int:
    os.environ.update(NO_TELEMETRY)
    log_to_stderr(force=True)
    for noisy in ("alembic", "mlflow.store", "great_expectations", "onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=(sys.modules["__main__"].__doc__ or "").split("\n\n")[0])
    if variant:
        parser.add_argument("--variant", required=True, help="one of the variants in params.yaml")
    for name, details in options:
        parser.add_argument(name, **details)  # type: ignore[arg-type]
    args = parser.parse_args(arguments)
    # `dvc repro` and Prefect workers stop a stage with SIGTERM; as an exception it unwinds through `finally`.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _raise_exit)
    try:
        check_system()
        if (origin := experiment_origin(root := project_root())) is not None:
            share_state(origin, root)  # DVC deletes this folder
        params = params_module.load()
        if variant:
            check_chosen(params, args.variant)
        if os.environ.get(RESTORE_ONLY):
            raise DataError(
                "the run cache of the DVC remote has no outputs for this code, data and parameters; "
                "the other machine used different ones, or has not pushed its results"
            )
        _renew_code()
        main(params, args)
    except YoloError as error:
        print(f"error: {printable(redacted(error))}", file=sys.stderr)  # noqa: T201 - the one line a user sees
        return EXIT_RESUMABLE if isinstance(error, UnavailableError | LostWorkerError) else EXIT_ERROR
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = error.filename or Path.cwd()
        print(f"error: {place}: the disk is full; free some space and run the command again", file=sys.stderr)  # noqa: T201
        return EXIT_ERROR
    except Interrupted as stop:
        print(f"stopped: {printable(redacted(stop))}", file=sys.stderr)  # noqa: T201
        return EXIT_RESUMABLE
    return 0


def _renew_code() -> None:
    """Let DVC record the code that runs now, if this process is a stage that DVC has started."""
    _, _, addressed = os.environ.get("DVC_STAGE", "").rpartition(":")  # or dvc.yaml:train@yolov7-tiny
    if (stage := addressed.partition("@")[0]) in STAGES and (files := renew(stage)):
        logging.getLogger(__name__).info("the code has changed since `dvc repro code`: %s", named(files))


def _raise_exit(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)
