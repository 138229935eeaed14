"""Fetch the statistics of the champion's training data: `python -m stages.data_reference [--model NAME]`.

They are written next to the rules (`validation/reference.json`), where the validate stage compares new data with them.
The stage itself never asks the registry: its result follows from files that DVC tracks. Only this command changes the
reference, and a team can commit it.

If there is no champion, or it was registered without statistics, the file stays as it is and a message says so. A
registry that does not answer within the time limit ends the command with exit code 75.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from stages.project.command import Interrupted, run_stage
from stages.project.params import Params
from stages.registry.errors import RegistryUnavailableError
from stages.registry.versions import CHAMPION, DATA_STATISTICS, ModelRegistry, Version
from stages.validation.statistics import Statistics
from stages.validation.suite import REFERENCE
from yolov7.errors import ModelError
from yolov7.files import write_json

log = logging.getLogger(__name__)

_SECONDS = 30.0
"""Default time limit for MLflow."""


def main(params: Params, args: argparse.Namespace) -> None:
    """Write the reference of the first requested model that has a champion with statistics."""
    names = [args.model] if args.model else [f"{params.registry.model_prefix}{variant}" for variant in params.variants]
    # A validation should not wait for a server that is unavailable: one attempt, and a few seconds.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    try:
        with time_limit(args.timeout):
            fetch_reference(names, Path(params.validation.suite) / REFERENCE)
    except RegistryUnavailableError as error:
        raise Interrupted(f"{error}; the reference stays as it is") from error
    except TimeoutError:
        raise Interrupted(f"MLflow did not answer within {args.timeout:g} s; the reference stays as it is") from None


def fetch_reference(names: Sequence[str], target: Path) -> Statistics | None:
    """Write the statistics of the first champion that has some; returns them, or None if no champion has.

    Raises :class:`ModelError` for an invalid document, and :class:`RegistryUnavailableError`.
    """
    registry = ModelRegistry()
    for name in names:
        champion = registry.by_alias(name, CHAMPION)
        if champion is None:
            log.info("%s has no champion yet", name)
            continue
        found = _statistics(registry, champion)
        if found is None:
            log.warning("%s was registered without statistics of its data", champion)
            continue
        write_json(target, found.model_dump(exclude_none=True))
        log.info("%s: the data of %s", target, champion)
        return found
    log.warning("there is nothing to compare data with: drift is not judged until a champion has statistics")
    return None


def _statistics(registry: ModelRegistry, champion: Version) -> Statistics | None:
    path = champion.tags.get(DATA_STATISTICS)
    document = None if path is None else registry.recorded(champion, path)
    if document is None:
        return None
    try:
        return Statistics.model_validate({**document, "champion": str(champion)})
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ModelError(f"{champion}: {path} of its run is not a valid statistics document: {reason}") from None


class _TimeUp(BaseException):
    """Not an Exception: HTTP clients turn those into their own."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TimeoutError` if the block takes longer, whatever it waits for. For the main thread.

    Without alarm signals (Windows) nothing bounds the block.
    """
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise _TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TimeUp:
        raise TimeoutError from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    run_stage(
        main,
        options=[
            ("--model", {"help": "registered model (default: the first variant's with a champion)"}),
            (
                "--timeout",
                {"type": float, "default": _SECONDS, "help": "time limit for MLflow in seconds (default: 30)"},
            ),
        ],
    )
