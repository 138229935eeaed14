"""`yolov7 train`: a detector trained on a data set."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

from yolov7.cli.options import add_data, data_arguments, read_settings, show_log


def add_train(parser: argparse.ArgumentParser) -> None:
    """Options of `yolov7 train`."""
    parser.add_argument(
        "variant",
        metavar="VARIANT",
        help="name of `yolov7 info`, MODULE:FUNCTION, or a .safetensors file to start from",
    )
    add_data(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training images (the recipe's)")
    parser.add_argument("--image-size", type=int, metavar="N", help="long side of the images in pixels (the recipe's)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images per batch (16)")
    parser.add_argument("--weights", metavar="FILE", help=".safetensors or published .pt to start from, or a variant")
    parser.add_argument("--preset", metavar="NAME", help="another recipe; `small` suits hundreds of images")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="any training parameter, nested ones with dots: --set augment.mixup=0.0 seed=1",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto (auto)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that load data (0 on a CPU, else up to 8)")
    parser.add_argument("--fresh", action="store_true", help="start over, even if there is a state to resume")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    from yolov7.errors import ConfigError
    from yolov7.runs import train_detector
    from yolov7.runs.evaluation import REPORT
    from yolov7.runs.folder import RunFolder

    show_log()
    options: dict[str, Any] = read_settings(args.set, "--set")
    own = options.keys() & inspect.signature(train_detector).parameters.keys()
    if own:
        raise ConfigError(f"--set: {min(own)}: not a training parameter; `yolov7 train --help` shows the other options")
    for name in ("epochs", "image_size", "batch_size", "weights", "preset"):
        if getattr(args, name) is not None:
            if name in options:
                raise ConfigError(f"--set: {name} is given twice, by --{name.replace('_', '-')} too")
            options[name] = getattr(args, name)
    trained = train_detector(
        args.variant,
        out=args.output,
        device=args.device,
        workers=args.workers,
        resume=not args.fresh,
        **data_arguments(args),
        **options,
    )
    trained.evaluate(device=args.device)
    print(trained.weights)
    print(RunFolder(trained.folder).evaluation("val") / REPORT)
