"""`yolov7 info`: parameters, GFLOPs, strides and published AP."""

from __future__ import annotations

import argparse
import json

from yolov7.tables import print_table


def add_info(parser: argparse.ArgumentParser) -> None:
    """Options of `yolov7 info`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--variant", help="show only this network")
    which.add_argument("--model", metavar="FILE", help="show the network in a .safetensors file")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="your own network, for its kinds of block in FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_info)


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
