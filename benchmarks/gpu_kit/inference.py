"""Speed of the deployed networks: eager, as a CUDA graph, compiled; preparation and suppression apart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu_kit.card import peak_tflops
from gpu_kit.clock import median_ms, reset_peak
from gpu_kit.settings import SMALLEST, Figures, Item, Settings, SkipItem
from yolov7 import letterbox
from yolov7.catalogue import VariantInfo, listed_infos
from yolov7.device import peak_memory_gib
from yolov7.model import Detector, create_model
from yolov7.nms import Thresholds, select

FIRST = ("yolov7-tiny", "yolov9-t", "yolov6-n", "yolov7", "yolov9-c", "yolov6-s")
"""Measured first."""
PHOTO = (720, 1280)


def variants(settings: Settings, few: tuple[str, ...] = ("yolov6-n", "yolov7-tiny")) -> tuple[VariantInfo, ...]:
    """The rows of the catalogue to measure, the most wanted first."""
    infos = {info.variant: info for info in listed_infos()}
    names = (*FIRST, *(name for name in infos if name not in FIRST))
    return tuple(infos[name] for name in settings.chosen(names, few))


def items(settings: Settings) -> list[Item]:
    """Preparation and suppression, then each variant with one image and with many."""
    extras = {"preparation": _preparation, "transfer and scaling": _transfer, "suppression": _suppression}
    found = [Item(name, functools.partial(call, settings), 5.0) for name, call in extras.items()]
    for info in variants(settings):
        for batch in (1, settings.batch):
            call = functools.partial(measure, settings, info, batch)
            found.append(Item(f"{info.variant}, batch {batch}", call, 6.0, kind="network"))
    return found


def compiled_items(settings: Settings) -> list[Item]:
    """Each variant compiled. A part of its own: compiling takes long."""
    found = []
    for info in variants(settings, few=SMALLEST):
        for batch in (1,) if settings.tiny else (settings.batch, 1):
            call = functools.partial(measure_compiled, settings, info, batch)
            found.append(Item(f"{info.variant}, batch {batch}", call, 40.0, kind="compiled"))
    return found


def measure(settings: Settings, info: VariantInfo, batch: int) -> Figures:
    """Eager and as a CUDA graph, beside the published speed and the arithmetic limit of the card."""
    device = torch.device(settings.device)
    reset_peak(device)
    model, images = deployed(settings, info, batch)
    with torch.inference_mode():
        figures = _rate("eager", median_ms(lambda: model(images), device, seconds=settings.seconds), batch)
        try:
            replay = captured(model, images)
        except SkipItem as why:
            figures |= {"graph_ms": None, "graph_images_s": None, "graph_note": str(why)}
        else:
            figures |= _rate("graph", median_ms(replay, device, seconds=settings.seconds), batch)
    return (
        _facts(info, batch, images) | figures | {"memory_gib": round(peak_memory_gib(device), 3)} | _limit(info, device)
    )


def measure_compiled(settings: Settings, info: VariantInfo, batch: int) -> Figures:
    """Compiled, in its usual mode for many images and with CUDA graphs for one."""
    device = torch.device(settings.device)
    model, images = deployed(settings, info, batch)
    torch.compiler.reset()
    how: dict[str, Any] = {"mode": "reduce-overhead" if batch == 1 else "default"}
    fast = torch.compile(model, **({"backend": "eager"} if settings.tiny else how))
    with torch.inference_mode():
        ms = median_ms(lambda: fast(images), device, seconds=settings.seconds)
    return _facts(info, batch, images) | _rate("compiled", ms, batch)


def deployed(settings: Settings, info: VariantInfo, batch: int) -> tuple[Detector, Tensor]:
    """The re-parameterised network in float16, channels_last (float32 on a CPU), and a batch of noise."""
    device = torch.device(settings.device)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    model = _network(info.variant, device, dtype)
    side = max(64, max(info.strides)) if settings.tiny else info.image_size
    images = torch.rand(batch, 3, side, side, device=device).to(dtype)
    return model, images.contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=1)  # the next item is the same network with another batch
def _network(variant: str, device: torch.device, dtype: torch.dtype) -> Detector:
    model = create_model(variant, device=device).reparameterize().to(dtype)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def captured(model: Detector, images: Tensor) -> Callable[[], None]:
    """One pass as a CUDA graph: a call replays it. Raises :class:`SkipItem` without CUDA."""
    if images.device.type != "cuda":
        raise SkipItem(f"{images.device.type} has no CUDA graphs")
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            model(images)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = model(images)
    # The output belongs to the graph and must live as long as it.
    return functools.partial(_replay, graph, kept)


def _replay(graph: torch.cuda.CUDAGraph, _kept: Tensor) -> None:
    graph.replay()


def _facts(info: VariantInfo, batch: int, images: Tensor) -> Figures:
    return {"variant": info.variant, "batch": batch, "side": images.shape[-1], "dtype": str(images.dtype)[6:]}


def _rate(name: str, ms: float, batch: int) -> Figures:
    return {f"{name}_ms": round(ms, 4), f"{name}_images_s": round(batch / ms * 1e3, 1)}


def _limit(info: VariantInfo, device: torch.device) -> Figures:
    """Images per second if every operation ran at the card's peak, and the published speed."""
    peak = peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    speed = info.published.speed if info.published else None
    return {
        "gflops": info.gflops_deploy,
        "limit_images_s": None if peak is None else round(peak * 1e3 / info.gflops_deploy, 1),
        "published_images_s": speed.fps if speed else None,
        "published_conditions": speed.conditions() if speed else None,
    }


# Before and after the network ----------------------------------------------------------------------------------------


def _preparation(settings: Settings) -> Figures:
    """Fitting a photograph to the input, on one core."""
    side = 64 if settings.tiny else 640
    photo = np.random.default_rng(0).integers(0, 256, (*PHOTO, 3), dtype=np.uint8)
    call = functools.partial(letterbox.fit, photo, side, side)
    return {"image_ms": round(median_ms(call, torch.device("cpu"), seconds=settings.seconds), 4)}


def _transfer(settings: Settings) -> Figures:
    """A batch of bytes to the device, there to float16 between 0 and 1, in channels_last."""
    device, side = torch.device(settings.device), 64 if settings.tiny else 640
    images = torch.randint(0, 256, (settings.batch, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    if device.type == "cuda":
        images = images.pin_memory()
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    ms = median_ms(lambda: images.to(device, non_blocking=True).to(dtype).div_(255), device, seconds=settings.seconds)
    return {"image_ms": round(ms / settings.batch, 5), "batch": settings.batch}


def _suppression(settings: Settings) -> Figures:
    """Of one image: about 300 candidates above 0.25, as in a crowded photograph, and all above 0.001."""
    device = torch.device(settings.device)
    generator = torch.Generator().manual_seed(0)
    cells = 640 if settings.tiny else 25200
    centres, sides = torch.rand(2, 1, cells, 2, generator=generator) * torch.tensor([600.0, 90.0]).view(2, 1, 1, 1)
    scores = torch.rand(1, cells, 80, generator=generator) ** 64 * 0.2
    scores[:, :: max(cells // 300, 1), 7] = 0.6
    decoded = torch.cat((centres, centres + sides + 4, scores), 2).to(device)
    found: Figures = {}
    for name, least, many in (("image_ms", 0.25, False), ("evaluation_image_ms", 0.001, True)):
        limits = Thresholds(least, 0.65)
        call = functools.partial(select, decoded, limits, scoring="class probability", multi_label=many)
        found[name] = round(median_ms(call, device, seconds=settings.seconds, warm_up=1), 4)
    return found
