"""Time DVC on many small files, and on the same files packed into shards.

    python benchmarks/layout.py [--files 100000] [--per-shard 1000] [--size 2000]

`add` into an empty cache, `status` with nothing changed, `add` again after one file has changed, and `checkout` after
the folder was removed. The cache is linked (hardlinks), as this project sets it up.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np


def write_files(folder: Path, count: int, size: int) -> None:
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // 1000:04d}" / f"{number:08d}.jpg"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(generator.bytes(size))


def write_shards(folder: Path, count: int, size: int, per_shard: int) -> None:
    generator = np.random.default_rng(0)
    folder.mkdir()
    for start in range(0, count, per_shard):
        with tarfile.open(folder / f"shard-{start // per_shard:05d}.tar", "w") as shard:
            for number in range(start, min(start + per_shard, count)):
                entry = tarfile.TarInfo(f"{number:08d}.jpg")
                entry.size = size
                shard.addfile(entry, io.BytesIO(generator.bytes(size)))


def dvc(folder: Path, *arguments: str) -> float:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    started = time.perf_counter()
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - started


def measure(layout: str, arguments: argparse.Namespace) -> list[float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dvc(folder, "init", "--no-scm", "-q")
        dvc(folder, "config", "cache.type", "hardlink,copy")
        data = folder / "data"
        if layout == "files":
            write_files(data, arguments.files, arguments.size)
        else:
            write_shards(data, arguments.files, arguments.size, arguments.per_shard)
        seconds = [dvc(folder, "add", "-q", "data"), dvc(folder, "status", "-q")]
        first = next(path for path in sorted(data.rglob("*")) if path.is_file())
        changed = bytearray(first.read_bytes())
        changed[-600] ^= 1
        first.unlink()  # a link into the cache is never written through
        first.write_bytes(changed)
        before = cache_bytes(folder)
        seconds.append(dvc(folder, "add", "-q", "data"))
        grown = cache_bytes(folder) - before
        shutil.rmtree(data)
        seconds.append(dvc(folder, "checkout", "-q"))
        return [*seconds, grown / 1e6]


def cache_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / ".dvc/cache").rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--per-shard", type=int, default=1000)
    parser.add_argument("--size", type=int, default=2000, help="bytes of a file")
    arguments = parser.parse_args()
    print("| layout | add | status | add after a change | checkout | cache grows by |\n| --- " + "| ---: " * 5 + "|")
    for layout in ("files", "shards"):
        *seconds, megabytes = measure(layout, arguments)
        print(f"| {layout} | {' | '.join(f'{one:.1f} s' for one in seconds)} | {megabytes:.1f} MB |", flush=True)


if __name__ == "__main__":
    main()
