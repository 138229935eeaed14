"""Check what training, export and registration will need: `python -m stages.preflight [--variant V]`.

The checks that `stages.train` makes before its first epoch, for all variants of params.yaml or for one.
"""

from __future__ import annotations

import argparse
import logging

from stages.preflight.check import require
from stages.project.command import run_stage
from stages.project.params import Params
from yolov7.errors import ConfigError, nearest

log = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """Report all problems in one message."""
    if args.variant and args.variant not in params.variants:
        known = list(params.variants)
        raise ConfigError(f"--variant: {args.variant!r} is not in params.yaml: variants{nearest(args.variant, known)}")
    variants = [args.variant] if args.variant else list(params.variants)
    require(params, variants)
    log.info("%s can be trained, exported and registered", ", ".join(variants))


if __name__ == "__main__":
    run_stage(main, options=[("--variant", {"help": "one of the variants in params.yaml (default: all)"})])
