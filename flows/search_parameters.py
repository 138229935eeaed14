"""Search better training parameters on your data: `python -m flows.search_parameters`.

Runs the flow of :mod:`flows.search` in this process; Prefect and MLflow servers are used if the environment names them.
Killed, the same command continues.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

from flows.environment import run_flow
from stages.search.space import Space


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code (2: a mistake that the message explains)."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.search_parameters", description="Search training parameters (params.yaml: search)."
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="trials that train at the same time (1)")
    args = parser.parse_args(arguments)
    if not 1 <= args.workers <= 64:
        parser.error(f"--workers: a number from 1 to 64 is expected, got {args.workers}")

    def start() -> Callable[[], object]:
        from flows.search import search_parameters

        return partial(search_parameters, args.workers)

    return run_flow(start, check=Space.of)


if __name__ == "__main__":
    sys.exit(main())
