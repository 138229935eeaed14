"""`yolov7 info`: parameters, GFLOPs, strides and published AP."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from yolov7.tables import print_table

if TYPE_CHECKING:
    from yolov7.catalogue import VariantInfo


def add_info(parser: argparse.ArgumentParser) -> None:
    """Options of `yolov7 info`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--variant", help="show only this network")
    which.add_argument("--model", metavar="FILE", help="show the network in a .safetensors file")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="your own network, for its kinds of block in FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_info)


def _rows(args: argparse.Namespace) -> list[VariantInfo]:
    """Listed networks are in the catalogue; any other is built and counted, which needs torch."""
    from yolov7.catalogue import listed_infos

    if args.model:
        from yolov7.model.info import file_info

        return [file_info(args.model, network=args.network or "")]
    if args.variant and ":" in args.variant:
        from yolov7.model.info import variant_info

        return [variant_info(args.variant)]
    return listed_infos([args.variant] if args.variant else None)


def _info(args: argparse.Namespace) -> None:
    from yolov7.catalogue import sections
    from yolov7.errors import ConfigError

    if args.network and not args.model:
        raise ConfigError("--network belongs to --model; --variant MODULE:FUNCTION shows your own network")
    rows = _rows(args)
    if args.json:
        print(json.dumps([row.as_json() for row in rows], indent=2))
        return
    for number, section in enumerate(sections(rows)):
        heading, *lines = section.rows
        print(f"\n{section.title}" if number else section.title)
        print_table(heading, lines, left=1)
        if section.note:
            print(section.note)
