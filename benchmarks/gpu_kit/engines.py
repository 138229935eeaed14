"""TensorRT engines: built on this machine in float16, and timed."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

from gpu_kit.clock import median_ms
from gpu_kit.settings import Figures, Item, Settings, SkipItem
from yolov7.catalogue import listed_infos
from yolov7.export.onnx import export_onnx
from yolov7.export.tensorrt import build_engine, check_tensorrt
from yolov7.model import ModelMetadata, create_model

BUILT = ("yolov7-tiny", "yolov9-c", "yolov6-s", "yolov7")


def items(settings: Settings) -> list[Item]:
    """One engine of a variant, for one image and for many."""
    return [
        Item(name, functools.partial(measure, settings, name), 60.0, kind="engine") for name in settings.chosen(BUILT)
    ]


def measure(settings: Settings, variant: str) -> Figures:
    """Build an engine of the decoded graph, and time it at batch 1 and the large one."""
    info = listed_infos([variant])[0]
    with tempfile.TemporaryDirectory() as name:
        graph, engine = Path(name) / "model.onnx", Path(name) / "model.engine"
        model = create_model(variant)
        names, ids = tuple(f"class {number}" for number in range(80)), tuple(range(80))
        metadata = ModelMetadata.of(model, class_names=names, category_ids=ids, image_size=info.image_size)
        export_onnx(model, graph, metadata=metadata)
        problems = check_tensorrt(graph).problems
        if torch.device(settings.device).type != "cuda":
            raise SkipItem(f"an engine needs a GPU; the check of the graph found {len(problems)} problems")
        build_engine(graph, engine, batch=(1, settings.batch, settings.batch))
        data = engine.read_bytes()
    figures: Figures = {"variant": variant, "side": info.image_size, "engine_mb": round(len(data) / 1e6, 1)}
    for batch in (1, settings.batch):
        ms = engine_ms(data, batch, info.image_size, settings)
        figures |= {f"batch_{batch}_ms": round(ms, 4), f"batch_{batch}_images_s": round(batch / ms * 1e3, 1)}
    return figures


def engine_ms(data: bytes, batch: int, side: int, settings: Settings) -> float:
    """Median milliseconds of a pass on inputs that lie on the device."""
    import tensorrt  # type: ignore[import-not-found]

    device = torch.device(settings.device)
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    engine = tensorrt.Runtime(logger).deserialize_cuda_engine(data)
    context = engine.create_execution_context()
    kept = []
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT:
            context.set_input_shape(name, (batch, 3, side, side))
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        kept.append(torch.rand(tuple(context.get_tensor_shape(name)), device=device))
        context.set_tensor_address(name, kept[-1].data_ptr())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        return median_ms(lambda: context.execute_async_v3(stream.cuda_stream), device, seconds=settings.seconds)
