"""What eight bits cost and gain: AP, size and time of float, post-training, partial and quantisation-aware int8 files.

    python benchmarks/eight_bits.py --index data/index V=models/V/train/best.safetensors[,QUANTIZED] ...

QUANTIZED is `models/V/quantized/quantized.safetensors`. Every file is measured as it would be used: opened from the
disk, in its own runtime. AP is that of the validation split; ranges come from the training split. `partial` keeps the
most sensitive layers in float (`--keep`). Time is that of the process on one thread for one image, the files of a
network in turn, so other programs weigh little. The tables are Markdown; `-o` also writes the figures as JSON.

`--views` adds, for each int8 file, the mean loss of AP on eight views of the validation images (`views.py`) in points,
with its standard error: on few images a single AP is chance.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from views import make_views

from yolov7.artefact import Int8Settings
from yolov7.data.index import Index
from yolov7.export.int8 import Int8Exporter
from yolov7.export.onnx import export_onnx
from yolov7.export.openvino import export_openvino
from yolov7.export.quantize import Placement
from yolov7.export.samples import Samples
from yolov7.files import write_json
from yolov7.model import load_checkpoint
from yolov7.model.quantized import learnt_ranges
from yolov7.predict.load import open_runtime
from yolov7.predict.runtimes import Runtime

RUNTIMES: dict[Placement, tuple[str, str]] = {"onnx": ("ONNX Runtime", ".onnx"), "openvino": ("OpenVINO", ".xml")}
KINDS = ("float", "post-training", "partial", "aware")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NAME=FLOAT[,QUANTIZED]")
    parser.add_argument("--index", type=Path, default=Path("data/index"))
    parser.add_argument("--images", type=int, default=500, help="of the validation split")
    parser.add_argument("--keep", type=int, default=6, help="layers in float of the partial file")
    parser.add_argument("--metric", default="shift", help="ranks them")
    parser.add_argument("--method", default="mse", help="of the ranges")
    parser.add_argument("--rounding", default="compensated", help="of the weights")
    parser.add_argument("--side", type=int, help="of the timed image (as trained)")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--views", action="store_true", help="the loss on eight views of the validation images too")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    train, val = (Index.open(args.index / split) for split in ("train", "val"))
    plain = Int8Settings(
        validation_images=args.images, method=args.method, metric=args.metric, rounding=args.rounding, keep_in_float=0
    )
    figures: dict[str, Any] = {}
    for item in args.networks:
        name, _, paths = item.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            made = Files(Path(folder), train, val, plain, args.keep)
            rows = made.all(*[Path(path) for path in paths.split(",")])
            timed(rows, args.side or made.image_size, args.rounds)
            if args.views:
                on_views(rows, list(make_views(val, Path(folder) / "views")))
            figures[name] = [{k: v for k, v in row.items() if k != "file"} for row in rows]
        print("\n".join(table(name, figures[name])), flush=True)
        if args.output:
            write_json(args.output, figures)


class Files:
    """The files of one network in a folder, each measured on the validation images."""

    def __init__(self, folder: Path, train: Index, val: Index, settings: Int8Settings, keep: int):
        self.folder, self.train, self.val, self.settings, self.keep = folder, train, val, settings, keep
        self.image_size = 0

    def all(self, weights: Path, trained: Path | None = None) -> list[dict[str, Any]]:
        """A row per kind of file and runtime."""
        exporter = self._exporter(weights, "float")
        rows = list(self._float_rows(exporter))
        rows += self._int8_rows(exporter, "post-training")
        exporter.settings = self.settings.model_copy(update={"keep_in_float": self.keep})
        rows += self._int8_rows(exporter, "partial")
        if trained is not None:
            rows += self._int8_rows(self._exporter(trained, "aware"), "aware")
        return rows

    def _exporter(self, weights: Path, name: str) -> Int8Exporter:
        model, metadata = load_checkpoint(weights)
        self.image_size = metadata.image_size
        learnt = learnt_ranges(model) if metadata.form == "quantized" else None
        deploy, file = model.reparameterize(), self.folder / f"{name}.onnx"
        graph = export_onnx(deploy, file, metadata=replace(metadata, form="deploy"))
        return Int8Exporter(
            graph, file, calibration=self.train, validation=self.val, settings=self.settings, learnt=learnt
        )

    def _float_rows(self, exporter: Int8Exporter) -> Iterator[dict[str, Any]]:
        onnx_file, openvino_file = self.folder / "float.onnx", self.folder / "float.xml"
        export_openvino(onnx.load(onnx_file), openvino_file)
        for placement, file in (("onnx", onnx_file), ("openvino", openvino_file)):
            yield self._row("float", placement, file, exporter.float_ap, [])

    def _int8_rows(self, exporter: Int8Exporter, kind: str) -> Iterator[dict[str, Any]]:
        for placement in RUNTIMES:
            file = self.folder / f"{kind}-{placement}{RUNTIMES[placement][1]}"
            report = exporter.export(file, placement)
            yield self._row(kind, placement, file, report.ap, report.kept_in_float)

    def _row(self, kind: str, placement: str, file: Path, ap: float, in_float: list[str]) -> dict[str, Any]:
        size = file.stat().st_size + (file.with_suffix(".bin").stat().st_size if file.suffix == ".xml" else 0)
        return {"kind": kind, "placement": placement, "file": file, "AP": ap, "MB": size / 1e6, "in_float": in_float}


def timed(rows: list[dict[str, Any]], side: int, rounds: int) -> None:
    """Add the processor time of one image on one thread, ms, median and least of `rounds` in turn."""
    image = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8)
    runtimes = [network(row["file"]) for row in rows]
    times: list[list[float]] = [[] for _ in rows]
    for number in range(rounds + 3):
        for runtime, taken in zip(runtimes, times, strict=True):
            started = time.process_time()
            runtime.decoded(image)
            if number >= 3:  # the first ones compile
                taken.append((time.process_time() - started) * 1e3)
    for row, taken in zip(rows, times, strict=True):
        row |= {"ms": statistics.median(taken), "least_ms": min(taken), "side": side}


def on_views(rows: list[dict[str, Any]], views: list[Index]) -> None:
    """Add to int8 rows `losses`: by how many points AP is below the float ONNX file's on each view."""
    base = next(row for row in rows if row["kind"] == "float" and row["placement"] == "onnx")
    runtime = network(base["file"])
    samples = [Samples(view, range(len(view)), runtime) for view in views]
    base["views"] = [seen.ap(runtime) for seen in samples]
    for row in rows:
        if row["kind"] != "float":
            opened = network(row["file"])
            row["views"] = [seen.ap(opened) for seen in samples]
            row["losses"] = [100 * (a - b) for a, b in zip(base["views"], row["views"], strict=True)]


def network(file: Path) -> Runtime:
    runtime = open_runtime(file, threads=1)
    assert isinstance(runtime, Runtime)
    return runtime


def table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """One row per kind, both runtimes beside each other; `times faster` is against the float file in ONNX Runtime."""
    base = next(row for row in rows if row["kind"] == "float" and row["placement"] == "onnx")
    lines = [
        f"| {name}, {base['side']} px | AP, ONNX Runtime | ms | faster | MB | AP, OpenVINO | ms | faster | MB |",
        f"| --- |{' ---: |' * 8}",
    ]
    for kind in KINDS:
        cells = []
        for placement in RUNTIMES:
            for row in rows:
                if (row["kind"], row["placement"]) == (kind, placement):
                    faster = base["ms"] / row["ms"]
                    cells += [f"{row['AP']:.4f}", f"{row['ms']:.1f}", f"{faster:.2f}", f"{row['MB']:.1f}"]
        if cells:
            lines.append(f"| {kind} | {' | '.join(cells)} |")
    for row in rows:
        if "losses" in row:
            error = statistics.stdev(row["losses"]) / len(row["losses"]) ** 0.5
            loss = f"loses {statistics.mean(row['losses']):.2f} points, standard error {error:.2f}"
            lines.append(f"eight views, {row['kind']}, {RUNTIMES[row['placement']][0]}: {loss}")
    return lines


if __name__ == "__main__":
    main()
