"""The device: name, arithmetic limit, and what a matrix product reaches on it.

The limits are the vendor's figures for dense float16 products with float32 sums; laptops and overclocked cards differ.
"""

from __future__ import annotations

import os
import platform

import torch

from gpu_kit.clock import median_ms
from gpu_kit.settings import Figures, Settings

PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 PCIE": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "A30": 165.0,
    "A40": 150.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "T4": 65.0,
    "V100": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Dense float16 TFLOP/s by a part of the device's name."""


def peak_tflops(name: str) -> float | None:
    """The limit of a device by its name; None for an unknown one. The longest name that fits decides."""
    words = name.upper().replace("-", " ").split()
    fitting = [known for known in PEAK_TFLOPS if all(word in words for word in known.split())]
    return PEAK_TFLOPS[max(fitting, key=len)] if fitting else None


def measured_tflops(device: torch.device, *, tiny: bool) -> float:
    """TFLOP/s of a large square product in float16 (float32 on a CPU) of random numbers."""
    side, dtype = (256, torch.float32) if tiny or device.type == "cpu" else (8192, torch.float16)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / median_ms(lambda: a @ b, device, seconds=0.02 if tiny else 0.5) / 1e9


def describe(settings: Settings) -> Figures:
    """The head of the report."""
    device = torch.device(settings.device)
    figures: Figures = {
        "device": settings.device,
        "name": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "peak_tflops": None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        figures |= {
            "name": properties.name,
            "cuda": torch.version.cuda,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "peak_tflops": peak_tflops(properties.name),
        }
    figures["measured_tflops"] = round(measured_tflops(device, tiny=settings.tiny), 2)
    return figures
