"""Validation and index of a synthetic annotation set of COCO train2017's size, and of a quarter of it.

    python benchmarks/data.py                       118,287 images with 860,001 boxes, image checks off
    python benchmarks/data.py --scale 0.1 --outlines 1 --unsorted
    python benchmarks/data.py --scale 20.29 --alone --without-files       2.4 million images, 17 million boxes

Every step runs in a process of its own, whose seconds and peak memory are reported. The image files exist and are
empty; of millions of images they are left out, and a stub says that they are there. Needs 2.2 GB of disk at scale 20.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

IMAGES, BOXES, CLASSES = 118_287, 860_001, 80
HELD_OUT = 0.01
"""Share of the images in val, and in test."""
PIECE = 20_000
"""Records written at a time."""
ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"validate": (120.0, 0.75), "index": (30.0, 2.0), "open": (0.1, None)}
"""Seconds and GB that the full set may take."""


def write_dataset(folder: Path, scale: float, outlines: float, *, files: bool, unsorted: bool = False) -> None:
    """A data set as ingest leaves it: one record per line. Written piece by piece, whatever its size."""
    from stages.dataset.layout import SPLITS
    from yolov7.files import write_json

    generator = np.random.default_rng(0)
    images = round(IMAGES * scale)
    held_out = max(1, round(images * HELD_OUT))
    counts = {"train": images - 2 * held_out, "val": held_out, "test": held_out}
    boxes = round(BOXES * scale)
    first = 1
    for split in SPLITS:
        share = round(boxes * counts[split] / images)
        owners = generator.integers(0, counts[split], share)
        if not unsorted:
            owners.sort()
        write_split(folder / "data/ingested" / split, counts[split], owners, first, outlines, generator)
        if files:
            make_files(folder / "data/ingested" / split / "images", counts[split], first)
        first += counts[split]
    write_json(folder / "data/ingested/dataset.json", {"source": "benchmark", "test_is_val": False, "sha256": "0" * 64})
    (folder / "params.yaml").write_text("validation: {check_images: false}\nper_variant: {yolov7-tiny: {}}\n")
    (folder / "validation").symlink_to(ROOT / "validation")


def make_files(folder: Path, images: int, first: int) -> None:
    for i in range(first, first + images):
        os.close(os.open(folder / f"{i:012d}.jpg", os.O_CREAT | os.O_WRONLY))


def write_split(
    folder: Path, images: int, owners: np.ndarray, first: int, outlines: float, generator: np.random.Generator
) -> None:
    (folder / "images").mkdir(parents=True)
    sizes = np.where(generator.random(images)[:, None] < 0.7, [[640, 480]], [[480, 640]])
    with (folder / "annotations.json").open("w") as file:
        file.write('{\n"info":{},\n"licenses":[],\n"images":[\n')
        for start in range(0, images, PIECE):
            rows = sizes[start : start + PIECE].tolist()
            lines = (
                f'{{"id":{i},"file_name":"{i:012d}.jpg","width":{width},"height":{height}}}'
                for i, (width, height) in enumerate(rows, first + start)
            )
            file.write((",\n" if start else "") + ",\n".join(lines))
        file.write('\n],\n"annotations":[\n')
        for start in range(0, len(owners), PIECE):
            some = owners[start : start + PIECE]
            lines = write_boxes(some, sizes[some], first, first * 100 + start, outlines, generator)
            file.write((",\n" if start else "") + ",\n".join(lines))
        classes = ",\n".join(f'{{"id":{i},"name":"class {i}"}}' for i in range(1, CLASSES + 1))
        file.write(f'\n],\n"categories":[\n{classes}\n]\n}}\n')


def write_boxes(
    owners: np.ndarray, sizes: np.ndarray, image: int, number: int, outlines: float, generator: np.random.Generator
) -> Iterator[str]:
    """Annotation records; `outlines` of them have a polygon of 3 to 45 points, and one in a hundred is a crowd."""
    popularity = 1 / np.arange(1, CLASSES + 1)
    labels = generator.choice(CLASSES, len(owners), p=popularity / popularity.sum()) + 1
    sides = np.clip(generator.lognormal(-2, 0.8, sizes.shape), 0.01, 0.95) * sizes
    corners = generator.random(sizes.shape) * (sizes - sides)
    boxes = np.hstack([corners, sides]).round(2)
    areas = (boxes[:, 2] * boxes[:, 3] * 0.6).round(2).tolist()
    points = np.where(generator.random(len(owners)) < outlines, generator.integers(3, 46, len(owners)), 0)
    spread = generator.random((int(points.sum()), 2)) * np.repeat(sides, points, axis=0)
    ends = np.cumsum(points).tolist()
    rings = (np.repeat(corners, points, axis=0) + spread).round(2)
    crowds = (generator.random(len(owners)) < 0.01).tolist()
    rows = zip(owners.tolist(), labels.tolist(), boxes.tolist(), areas, points.tolist(), ends, crowds, strict=True)
    for place, (owner, label, box, area, count, end, crowd) in enumerate(rows, number):
        ring = ",".join(map(str, rings[end - count : end].ravel().tolist()))
        outline = f',"segmentation":[[{ring}]]' if count else ""
        if crowd and outlines:
            outline = ',"segmentation":{"counts":[10,20,30,40],"size":[10,10]}'
        yield (
            f'{{"id":{place},"image_id":{image + owner},"category_id":{label},"bbox":{box},"area":{area},'
            f'"iscrowd":{int(crowd)}{outline}}}'
        ).replace(" ", "")


def measure(step: str, stub: bool) -> None:
    """One step in the working folder; prints seconds and peak GB as JSON."""
    from yolov7.data.index import Index, build_index
    from yolov7.data.read_columns import read_columns
    from yolov7.memory import peak_memory_gib

    ingested = Path("data/ingested/train")
    started, worked = time.perf_counter(), time.process_time()
    if step == "validate":
        from stages import validate
        from stages.project import params

        if stub:
            validate.check_images = all_there
        validate.main(params.load(), argparse.Namespace())
    elif step == "index":
        build_index(read_columns(ingested / "annotations.json"), ingested / "images", Path("index"))
    else:
        started, worked = time.perf_counter(), time.process_time()
        Index.open("index")
    times = {"seconds": time.perf_counter() - started, "processor": time.process_time() - worked}
    print(json.dumps({**times, "gb": peak_memory_gib() * 2**30 / 1e9}))


def all_there(paths: Iterable[str], **_: object) -> Any:
    """In place of `check_images`: every file exists."""
    from stages.validation.image_cache import ImageCheck
    from stages.validation.images import CheckedImages

    there = ImageCheck(exists=True)
    return CheckedImages([there for _ in paths], 0)


def run_step(step: str, folder: Path, *, stub: bool) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", step, *(["--without-files"] if stub else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GX_ANALYTICS_ENABLED": "false"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of COCO train2017 that counts as the full set")
    parser.add_argument("--measure", choices=sorted(LIMITS), help=argparse.SUPPRESS)
    parser.add_argument("--outlines", type=float, default=0.0, help="share of the boxes that have a polygon")
    parser.add_argument("--unsorted", action="store_true", help="boxes in any order, as in COCO, not image by image")
    parser.add_argument("--without-files", action="store_true", help="a stub says that every image file exists")
    parser.add_argument("--alone", action="store_true", help="without the quarter, and without limits")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.without_files)
        return
    sys.path.insert(0, str(ROOT))
    found: dict[float, dict[str, dict[str, float]]] = {}
    for scale in (arguments.scale,) if arguments.alone else (arguments.scale / 4, arguments.scale):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            files = not arguments.without_files
            write_dataset(folder, scale, arguments.outlines, files=files, unsorted=arguments.unsorted)
            found[scale] = {step: run_step(step, folder, stub=arguments.without_files) for step in LIMITS}
    if arguments.alone:
        print_one(found[arguments.scale])
    else:
        print_both(found, arguments.scale)


def print_one(found: dict[str, dict[str, float]]) -> None:
    print("| step | s (processor) | GB |\n| --- | ---: | ---: |")
    for step, one in found.items():
        print(f"| {step} | {one['seconds']:.3g} ({one['processor']:.3g}) | {one['gb']:.2f} |")


def print_both(found: dict[float, dict[str, dict[str, float]]], scale: float) -> None:
    print("| step | quarter: s (processor) | GB | full: s (processor) | GB | growth (processor) | limit |")
    print("| --- " + "| ---: " * 6 + "|")
    for step, (seconds, gigabytes) in LIMITS.items():
        part, whole = (found[size][step] for size in sorted(found))
        limit = f"{seconds:g} s" + (f", {gigabytes:g} GB" if gigabytes else "")
        figures = " | ".join(
            f"{one['seconds']:.3g} ({one['processor']:.3g}) | {one['gb']:.2f}" for one in (part, whole)
        )
        growth = f"{whole['seconds'] / part['seconds']:.1f} ({whole['processor'] / part['processor']:.1f})"
        print(f"| {step} | {figures} | {growth} | {limit} |")
    full = found[scale]
    late = [step for step, (seconds, _) in LIMITS.items() if full[step]["seconds"] > seconds]
    large = [step for step, (_, limit) in LIMITS.items() if limit and full[step]["gb"] > limit]
    if late or large:
        sys.exit(f"over the limit: time {late}, memory {large}")


if __name__ == "__main__":
    main()
