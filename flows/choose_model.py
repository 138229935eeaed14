"""Which network for my data? `python -m flows.choose_model`.

Runs the flow of :mod:`flows.choice` in this process; Prefect and MLflow servers are used if the environment names them.
Killed, the same command continues.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

from flows.environment import run_flow
from stages.choice.plan import check_choice


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code (2: a mistake that the message explains)."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.choose_model", description="Choose the network for your data (params.yaml: choice)."
    )
    parser.add_argument("--no-promotion", action="store_true", help="register the model, and do not run the gate")
    args = parser.parse_args(arguments)

    def start() -> Callable[[], object]:
        from flows.choice import choose_model

        return partial(choose_model, not args.no_promotion)

    return run_flow(start, check=check_choice)


if __name__ == "__main__":
    sys.exit(main())
