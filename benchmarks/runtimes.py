"""The network by runtime and precision, in one run against the eager contiguous float32 training form.

`python benchmarks/runtimes.py yolov7-tiny yolov7 --rounds 10 --threads 2`: random weights and noise, which take as long
as trained ones; the runtimes take turns in every round. Preparation and suppression are those of a 1280 x 720 image.
The lines above the table give the rate at which the processor multiplies large float32 matrices, and the time of the
convolutions at that rate: close to a lower bound for direct float32 convolutions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from yolov7.export import export_onnx, export_openvino
from yolov7.export.calibrate import calibrate
from yolov7.export.onnx import described, write_graph
from yolov7.export.quantize import quantizable, quantized
from yolov7.model import ModelMetadata, create_model
from yolov7.model.cost import conv_gflops
from yolov7.predict import load_detector
from yolov7.predict.benchmark import compare, reference


def export_all(variant: str, folder: Path, side: int) -> dict[str, Path]:
    """Every format, calibrated on one image of noise."""
    model = create_model(variant, 80).eval()
    names = tuple(f"kind {number}" for number in range(80))
    metadata = ModelMetadata.of(model, class_names=names, category_ids=tuple(range(80)), image_size=side)
    graph = export_onnx(model, folder / "model.onnx", metadata=metadata)
    export_openvino(graph, folder / "openvino.xml")
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8)
    ranges, (said, contract) = calibrate(graph, lambda: [noise]), described(graph)
    contract["precision"] = "int8"
    write_graph(folder / "int8.onnx", quantized(graph, quantizable(graph), ranges), said, contract)
    inputs = quantized(graph, quantizable(graph), ranges, placement="openvino")
    write_graph(folder / "inputs.onnx", inputs, said, contract)
    export_openvino(folder / "inputs.onnx", folder / "int8.xml")
    return {
        "onnx": folder / "model.onnx",
        "openvino": folder / "openvino.xml",
        "onnx int8": folder / "int8.onnx",
        "openvino int8": folder / "int8.xml",
    }


def matrix_rate(side: int = 2048, rounds: int = 15) -> float:
    """The best rate of PyTorch's matrix product on the threads it has, in GFLOP/s."""
    left, right = torch.rand(side, side), torch.rand(side, side)
    best = 0.0
    for _ in range(rounds):
        started = time.perf_counter()
        left @ right
        best = max(best, 2 * side**3 / (time.perf_counter() - started) / 1e9)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=640)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    image = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    rate = matrix_rate()
    print(f"large matrices: {rate:.0f} GFLOP/s on {args.threads} threads")
    for variant in args.variants:
        with tempfile.TemporaryDirectory() as folder:
            files = export_all(variant, Path(folder), args.image_size)
            loaded = {name: load_detector(path, threads=args.threads) for name, path in files.items()}
            predictors = {"training form": reference(loaded["onnx"]), **loaded}
            results = compare(predictors, [image], rounds=args.rounds, warmup=args.warmup, threads=args.threads)
        first = results["training form"].timings[1].median
        work = conv_gflops(create_model(variant, 80).eval().reparameterize(), args.image_size)
        print(f"\n{variant}, {args.image_size} px, batch 1, {args.threads} threads, {args.rounds} rounds in turn, ms")
        print(f"{'matrices':14} {work:.1f} GFLOP at that rate {1000 * work / rate:.1f}")
        for name, result in results.items():
            before, network, after, _ = result.timings
            print(
                f"{name:14} network {network.median:7.1f} ({network.low:.1f} to {network.high:.1f})"
                f"  ratio {first / network.median:.2f}  before {before.median:.2f}  after {after.median:.2f}"
            )


if __name__ == "__main__":
    main()
