"""What quantising parts of a network costs: AP of int8 files, and processor time of one image.

    python benchmarks/int8.py models/V/export [--images 100] [--rounds 20] [--side N] [--only-time]
    python benchmarks/int8.py models/V/export --ranges      # AP by method of calibration, ranges of their own or shared
    python benchmarks/int8.py models/V/export --metrics 6   # AP with six layers in float, chosen by each metric

Run in a workspace with `data/index`. Parts are the convolutions that the export quantises, and the last ones of each
branch of the head, which it leaves in float. Time is that of the process on one thread, so other programs on the
machine weigh little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import onnx

from yolov7.artefact import Int8Settings
from yolov7.config import RangeMethod
from yolov7.data.index import Index
from yolov7.export.calibrate import calibrate, shared
from yolov7.export.int8 import Int8Exporter
from yolov7.export.onnx import described, write_graph
from yolov7.export.openvino import export_openvino
from yolov7.export.quantize import Placement, quantizable, quantized
from yolov7.export.samples import Samples, evenly_spaced
from yolov7.export.sensitivity import Metric, as_rows
from yolov7.predict.load import open_runtime
from yolov7.predict.runtimes import Runtime, onnx_session, scaled_parts

PLACEMENTS: tuple[Placement, ...] = ("onnx", "openvino")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--side", type=int, help="of the timed image (as trained)")
    parser.add_argument("--only-time", action="store_true")
    parser.add_argument("--ranges", action="store_true")
    parser.add_argument("--metrics", type=int, metavar="N")
    args = parser.parse_args()
    file = args.export / "model.onnx"
    graph = onnx.load(file)
    train, val = (Index.open(Path("data/index") / split) for split in ("train", "val"))
    settings = Int8Settings(validation_images=args.images)
    exporter = Int8Exporter(graph, file, calibration=train, validation=val, settings=settings)
    layers, last = quantizable(graph), last_of_branches(graph)
    samples = Samples(val, evenly_spaced(len(val), args.images), exporter._float)
    if args.ranges or args.metrics:
        print(f"float: AP {exporter.float_ap:.4f}", flush=True)
        if args.ranges:
            by_method(exporter, graph, layers, samples)
        if args.metrics:
            by_metric(exporter, graph, layers, samples, args.metrics)
        return
    if not args.only_time:
        print(f"float: AP {exporter.float_ap:.4f}", flush=True)
        observe_outputs(exporter, graph, [name for names in last.values() for name in names])
        rows = {"what the export quantises": layers}
        rows |= {f"the same, and the last of `{branch}`": [*layers, *names] for branch, names in last.items()}
        rows |= {f"the last of `{branch}` alone": names for branch, names in last.items()}
        for what, names in rows.items():
            found = [samples.ap(opened(exporter, graph, names, placement)) for placement in PLACEMENTS]
            print(f"{what} ({len(names)}): AP {found[0]:.4f} ONNX Runtime, {found[1]:.4f} OpenVINO", flush=True)
    timed(exporter, graph, layers, args.rounds, args.side or exporter.metadata.image_size)


def by_method(exporter: Int8Exporter, graph: onnx.ModelProto, layers: Sequence[str], samples: Samples) -> None:
    """AP of both runtimes with ranges by each method, of their own and shared."""
    for method in get_args(RangeMethod):
        own = calibrate(graph, lambda: exporter._batches(exporter.settings.calibration_images), method=method)
        for what, ranges in (("own", own), ("shared", shared(graph, own))):
            exporter.__dict__["ranges"] = ranges
            found = [samples.ap(opened(exporter, graph, layers, placement)) for placement in PLACEMENTS]
            print(f"{method}, {what}: AP {found[0]:.4f} ONNX Runtime, {found[1]:.4f} OpenVINO", flush=True)


def by_metric(
    exporter: Int8Exporter, graph: onnx.ModelProto, layers: Sequence[str], samples: Samples, keep: int
) -> None:
    """AP with the `keep` layers in float that each metric finds most sensitive."""
    for placement in PLACEMENTS:
        rows = exporter.sensitivities(layers, placement, ap=True)
        for metric in get_args(Metric):
            worst = [row["node"] for row in as_rows(rows, metric)][:keep]
            left = [name for name in layers if name not in worst]
            ap = samples.ap(opened(exporter, graph, left, placement))
            print(f"{placement}, {keep} in float by {metric}: AP {ap:.4f}", flush=True)


def last_of_branches(graph: onnx.ModelProto) -> dict[str, list[str]]:
    """The convolutions that the export leaves in float, by the name of their branch."""
    chosen, last = set(quantizable(graph)), defaultdict(list)
    for node in graph.graph.node:
        if node.op_type == "Conv" and node.name not in chosen:
            words = [word for word in node.input[1].split(".")[:-2] if not word.isdigit()]
            last[words[-1]].append(node.name)
    return dict(last)


def observe_outputs(exporter: Int8Exporter, graph: onnx.ModelProto, names: Sequence[str]) -> None:
    """Ranges of their outputs, which the export never needs: smallest and largest on sixteen images."""
    outputs = [node.output[0] for node in graph.graph.node if node.name in names]
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = onnx_session(copy)
    for batch in exporter._batches(16):
        for image in scaled_parts(batch, 1):
            for name, value in zip(outputs, session.run(outputs, {"images": image}), strict=True):
                low, high = exporter.ranges.get(name, (0.0, 0.0))
                exporter.ranges[name] = (min(low, float(value.min())), max(high, float(value.max())))


def opened(exporter: Int8Exporter, graph: onnx.ModelProto, names: Sequence[str], placement: Placement) -> Runtime:
    """The graph with these convolutions in int8, on one thread."""
    metadata, contract = described(graph)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_graph(file, quantized(graph, names, exporter.ranges, placement=placement), metadata, contract)
        if placement == "openvino":
            export_openvino(file, file.with_suffix(".xml"))
            file = file.with_suffix(".xml")
        runtime = open_runtime(file, threads=1)
    assert isinstance(runtime, Runtime)
    return runtime


def timed(exporter: Int8Exporter, graph: onnx.ModelProto, layers: Sequence[str], rounds: int, side: int) -> None:
    """Processor time of one image, in turn."""
    runtimes = {
        f"{placement} {kind}": opened(exporter, graph, names, placement)
        for placement in PLACEMENTS
        for kind, names in (("float", []), ("int8", layers))
    }
    image = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8)
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    for number in range(rounds + 3):
        for name, runtime in runtimes.items():
            started = time.process_time()
            runtime.decoded(image)
            if number >= 3:  # the first ones compile
                times[name].append((time.process_time() - started) * 1e3)
    for name, values in times.items():
        print(f"{name}: {min(values):.1f} ms at least, median {statistics.median(values):.1f}")


if __name__ == "__main__":
    main()
