"""Figures for the comparison with revision 85b8700: how they are computed, and the folder of that revision's.

The recorder (record_frozen.py) and the tests (test_frozen.py, test_frozen_served.py) both use these functions. When
modules move, the imports inside them follow; what they compute stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import yolov7

REVISION = "85b8700"
DATA = Path(os.environ.get("YOLOV7_FROZEN") or Path(__file__).parents[1] / "data" / REVISION)
"""The committed data. `YOLOV7_FROZEN` names another folder, for data that record_frozen.py wrote on another machine."""

VERSIONS = ("torch", "numpy", "opencv-python-headless", "onnx", "onnxscript", "onnx-ir")
EXPORTER = ("torch", "onnx", "onnxscript", "onnx-ir")
ARITHMETIC = ("torch", "numpy", "opencv-python-headless", "machine", "capability", "cpu", "threads")
SAME_INITIAL_BITS = ("AVX2", "AVX512")
"""Random and fused weights came out the same with these kernels of PyTorch, and not with its plain ones."""
PRESET_VARIANTS = {"p5": "yolov7", "p6": "yolov7-w6", "tiny": "yolov7-tiny", "finetune": "yolov7-x", "small": "yolov7"}
DOCUMENT = {"sha256": "0" * 64}
"""In place of a data set."""
TIMES = ("seconds", "images_per_second")


def read(name: str) -> Any:
    """A JSON file of the data."""
    return json.loads((DATA / name).read_text(encoding="utf-8"))


# Environment ---------------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Libraries and hardware on which the bits of a result depend."""
    versions = {name: metadata.version(name).split("+")[0] for name in VERSIONS}
    return {
        **versions,
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
    }


def cpu_model() -> str:
    """Kernels and their blocking are chosen by vendor and model; the marketing name is often hidden."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return " ".join(found.get(key, "?") for key in ("vendor_id", "cpu family", "model"))


def changed(*names: str) -> str:
    """Those of the given parts of the environment that differ from the recorded ones."""
    then, now = read("environment.json"), environment()
    return ", ".join(f"{name} {then[name]} then, {now[name]} now" for name in names if then[name] != now[name])


# Parameters ----------------------------------------------------------------------------------------------------------


def presets() -> dict[str, Any]:
    from yolov7.config import train_parameters

    return {name: train_parameters({"preset": name}) for name in PRESET_VARIANTS}


def shipped_params() -> Any:
    """params.yaml as revision 85b8700 shipped it."""
    from stages.project.params import load

    return load(DATA / "params.yaml")


def identities() -> dict[str, tuple[dict[str, Any], str]]:
    """Identity and fingerprint of runs: the shipped params.yaml, every preset, a network of the user's own."""
    from yolov7.config import train_parameters
    from yolov7.train.identity import fingerprint, run_identity

    runs = {"params.yaml": ("yolov7-tiny", shipped_params().train_for("yolov7-tiny"), None)}
    for name, train in presets().items():
        runs[name] = (PRESET_VARIANTS[name], train, None)
    own = train_parameters({"preset": "small", "network": "small_detector:small_network"})
    runs["own network"] = ("small", own, None)
    runs["start weights"] = ("yolov7", train_parameters({"weights": "start.safetensors"}), "1" * 64)
    found = {}
    for name, (variant, train, weights) in runs.items():
        identity = run_identity(variant, train, DOCUMENT, weights)
        found[name] = (json.loads(json.dumps(identity)), fingerprint(identity))
    return found


def not_in(recorded: Any, now: Any, at: str = "") -> list[str]:
    """Keys of `now` that are missing in `recorded`."""
    if not isinstance(recorded, Mapping) or not isinstance(now, Mapping):
        return []
    new = [f"{at}{key}" for key in now if key not in recorded]
    return new + [name for key in now if key in recorded for name in not_in(recorded[key], now[key], f"{at}{key}.")]


def on_keys_of(recorded: Any, now: Any) -> Any:
    """`now` without the keys that are missing in `recorded`."""
    if not isinstance(recorded, Mapping) or not isinstance(now, Mapping):
        return now
    return {key: on_keys_of(recorded[key], now[key]) for key in now if key in recorded}


# Networks ------------------------------------------------------------------------------------------------------------


def network_json(variant: str) -> dict[str, Any]:
    from yolov7.model.spec_json import network_to_json

    return network_to_json(network(variant))


def network(variant: str) -> Any:
    return yolov7.create_model(variant, device="meta").spec


def network_of(document: Mapping[str, Any]) -> Any:
    from yolov7.model.spec_json import network_from_json

    return network_from_json(document)


def layout(model: Any) -> dict[str, Any]:
    """Names, shapes and types of a model's tensors in their order, as one digest; how many, and parameters."""
    lines = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in model.state_dict().items()]
    return {
        "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "tensors": len(lines),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


# ONNX ----------------------------------------------------------------------------------------------------------------


def tiny_graphs(folder: Path) -> dict[str, Any]:
    """yolov7-tiny, seed 0, deploy form, as ONNX with decoded output and with suppression."""
    from yolov7.export import export_onnx, export_onnx_nms
    from yolov7.nms import Thresholds

    model = yolov7.create_model("yolov7-tiny", seed=0).reparameterize()
    said = yolov7.ModelMetadata.of(model, class_names=tuple(f"class {n}" for n in range(model.num_classes)))
    decoded = export_onnx(model, folder / "decoded.onnx", metadata=said)
    nms = export_onnx_nms(decoded, folder / "nms.onnx", Thresholds(0.25, 0.45, 100))
    return {"decoded": decoded, "nms": nms}


def graph_figures(graph: Any) -> dict[str, Any]:
    """Content of a graph, whatever the names of its values.

    `convolutions`: weight shape, then sum and sum of magnitudes of weight and bias (the exporter leaves out one of
    zeros); sorted.
    """
    from onnx import numpy_helper

    values = {value.name: numpy_helper.to_array(value) for value in graph.graph.initializer}
    digests = sorted(
        f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}" for array in values.values()
    )
    rows = []
    for node in graph.graph.node:
        if node.op_type == "Conv":
            weight, *bias = (values[name].astype(np.float64) for name in node.input[1:])
            sums = [float(x) for array in (weight, *(bias or [np.zeros(1)])) for x in (array.sum(), abs(array).sum())]
            rows.append([list(weight.shape), *sums])
    return {
        "operators": dict(sorted(Counter(node.op_type for node in graph.graph.node).items())),
        "initializers": len(digests),
        "initializers_sha256": hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        "convolutions": sorted(rows),
    }


# The small detector --------------------------------------------------------------------------------------------------


def outputs(model: Any, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Raw maps and decoded predictions in eval mode; images uint8 (B, 3, H, W)."""
    with torch.inference_mode():
        raw, decoded = model.raw(images / 255), model(images / 255)
    return {**{f"raw_{n}": map_.numpy() for n, map_ in enumerate(raw)}, "decoded": decoded.numpy()}


def image() -> np.ndarray:
    """The synthetic image of the detections: uint8 RGB (H, W, 3)."""
    import cv2

    return cv2.imread(str(DATA / "image.png"))[..., ::-1].copy()


def rows(detections: Any) -> dict[str, Any]:
    """Detections as plain lists."""
    return {name: getattr(detections, name).tolist() for name in ("boxes", "scores", "labels")}


def figures_of(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """A history without its times."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history]


def assert_same_detections(found: Mapping[str, Any]) -> None:
    """Of :func:`image`, in its pixels; runtimes round differently."""
    recorded = read("detections.json")
    assert found["labels"] == recorded["labels"]
    np.testing.assert_allclose(found["scores"], recorded["scores"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["boxes"], recorded["boxes"], rtol=0, atol=0.02)
