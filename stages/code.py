"""Write which code each stage runs, so that DVC compares one file for each: `code/STAGE.sha256`.

DVC runs this stage when any file of `stages` or `yolov7` has changed; a list that comes out the same makes nothing
stale. What has changed is logged.
"""

from __future__ import annotations

import argparse
import logging

from stages.project.command import run_stage
from stages.project.params import Params
from stages.project.stage_code import named, write_lists

logger = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """The stage: the modules in, a list per stage out."""
    changed = write_lists()
    for stage, files in changed.items():
        if files:
            logger.info("%s: changed: %s", stage, named(files))
    if not any(changed.values()):
        logger.info("no stage runs other code than before")


if __name__ == "__main__":
    run_stage(main)
