"""Everything worth measuring on a machine with one GPU, in order of worth, within the given minutes.

    python benchmarks/gpu.py --minutes 8 -o FOLDER
    python benchmarks/gpu.py --minutes 2 -o FOLDER --parts training loader --variants yolov7 yolov9-c
    python benchmarks/gpu.py --tiny --device cpu -o FOLDER       a trial of the kit itself, without a GPU

Writes results.json after every item, results.md with tables for docs/benchmarks.md, traces of a training step, and
log.txt. What fails is recorded, and the rest goes on. docs/benchmarks.md says what each figure means. It needs a
checkout, no network and none of the pipeline's packages. The exit status is 1 if any part has failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for _folder in (HERE, HERE.parent):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

from gpu_kit.parts import PARTS  # noqa: E402  from a plain checkout, where nothing is installed
from gpu_kit.runner import Runner  # noqa: E402
from gpu_kit.settings import Settings  # noqa: E402


def main() -> None:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="all parts together (default: 8)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--variants", nargs="+", default=[], help="only these (default: all)")
    parser.add_argument("--side", type=int, default=640, help="pixels of the training images (default: 640)")
    parser.add_argument("--batch", type=int, help="images of a large batch (default: 32)")
    parser.add_argument("--workers", type=int, default=0, help="loader processes (default: one a core)")
    parser.add_argument("--tiny", action="store_true", help="few variants, small images, few rounds")
    parser.add_argument("--fail", nargs="+", choices=names, default=[], help="parts that fail, to try what comes of it")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        folder=arguments.output.resolve(),
        device=arguments.device,
        tiny=arguments.tiny,
        side=arguments.side,
        batch=arguments.batch or (2 if arguments.tiny else 32),
        variants=tuple(arguments.variants),
        workers=arguments.workers or (1 if arguments.tiny else 0),
        fail=tuple(arguments.fail),
    )
    if arguments.tiny:  # threads that wait for each other make small tensors slower
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # The server that forks the processes of the parts reads the path from the environment alone.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    parts = tuple(part for part in PARTS if part.name in arguments.parts)
    results = Runner(settings, arguments.minutes, parts).run()
    print(f"{arguments.output / 'results.md'}: {results['seconds']:.0f} s", flush=True)
    sys.exit(any(part["status"] == "failed" for part in results["parts"].values()))


if __name__ == "__main__":
    main()
