"""results.json and results.md of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

TITLES = {
    "correctness": "Correctness: tests/gpu",
    "inference": "Inference",
    "compiled": "Inference, compiled",
    "training": "Training",
    "loader": "Training with the loader",
    "profile": "Profile of a training step",
    "tensorrt": "TensorRT",
}
COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "correctness": (("passed", "passed"), ("failed", "failed"), ("skipped", "skipped")),
    "inference": (
        ("side", "px"),
        ("eager_ms", "eager, ms"),
        ("eager_images_s", "images/s"),
        ("graph_ms", "CUDA graph, ms"),
        ("graph_images_s", "images/s"),
        ("published_images_s", "published, images/s"),
        ("limit_images_s", "limit of the card, images/s"),
        ("image_ms", "one image, ms"),
        ("evaluation_image_ms", "in an evaluation, ms"),
        ("memory_gib", "GiB"),
    ),
    "compiled": (("side", "px"), ("compiled_ms", "compiled, ms"), ("compiled_images_s", "images/s")),
    "training": (
        ("step_ms", "step, ms"),
        ("images_s", "images/s"),
        ("ratio", "to plain"),
        ("busy", "device busy"),
        ("driver_busy", "by the driver"),
        ("memory_gib", "GiB"),
    ),
    "loader": (
        ("workers", "workers"),
        ("image_ms", "image, ms"),
        ("images_s", "images/s"),
        ("waited", "waiting for data"),
        ("busy", "device busy"),
        ("driver_busy", "by the driver"),
        ("memory_gib", "GiB"),
    ),
    "profile": (
        ("kernel_ms", "kernels, ms"),
        ("launches", "launches"),
        ("waits", "waits"),
        ("copies", "copies"),
        ("operators", "operators"),
    ),
    "tensorrt": (("side", "px"), ("engine_mb", "MB"), ("batch_1_ms", "batch 1, ms"), ("batch_32_ms", "batch 32, ms")),
}
"""Figure -> heading, in the order of the table. Other figures are in the JSON alone."""
PERCENT = ("busy", "driver_busy", "waited")


def write(folder: Path, results: dict[str, Any]) -> None:
    """Both files, each in one step."""
    for name, text in (("results.json", json.dumps(results, indent=1) + "\n"), ("results.md", markdown(results))):
        temporary = folder / f".{name}.new"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)


def markdown(results: dict[str, Any]) -> str:
    """The tables, ready for docs/benchmarks.md."""
    lines = [f"## {_device(results['device'])}", "", _about(results), ""]
    for name, part in results["parts"].items():
        lines += [f"### {TITLES[name]}", ""]
        lines += _table(name, part["rows"])
        lines += _EXTRAS.get(name, _nothing)(part["rows"])
        lines += _left_out(part)
    return "\n".join(lines).rstrip() + "\n"


def _device(device: Row) -> str:
    return str(device.get("name", "Unknown device"))


def _about(results: dict[str, Any]) -> str:
    device = results["device"]
    if "error" in device:
        return f"The device did not answer: {device['error']}"
    if not device:
        return "The device has not answered."
    peak = device.get("peak_tflops")
    limit = f"{peak:g} TFLOP/s in float16 by its vendor" if peak else "no known limit"
    return (
        f"`python benchmarks/gpu.py --minutes {results['minutes']:g}`: {results['seconds']:.0f} s, PyTorch "
        f"{device.get('torch')}, Python {device.get('python')}, {device.get('cores')} cores. The device has {limit}; a "
        f"large matrix product reaches {device.get('measured_tflops')}."
    )


def _table(name: str, rows: Sequence[Row]) -> list[str]:
    """A line for each item that was measured."""
    measured = [row for row in rows if row["figures"]]
    if not measured:
        return []
    if name == "training":
        measured = [row | {"figures": row["figures"] | {"ratio": _ratio(row, measured)}} for row in measured]
    columns = [
        (key, heading) for key, heading in COLUMNS[name] if any(row["figures"].get(key) is not None for row in measured)
    ]
    lines = [_line(["", *(heading for _, heading in columns)]), _line(["---", *("---:" for _ in columns)])]
    for row in measured:
        lines.append(_line([row["item"], *(_cell(key, row["figures"].get(key)) for key, _ in columns)]))
    return [*lines, ""]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in PERCENT:
        return f"{100 * value:.0f} %"
    if isinstance(value, float):
        return f"{value:.{0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 0.1 else 4}f}"
    return str(value)


def _ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """Images per second beside the plain way of the same variant."""
    figures = row["figures"]
    plain = [
        other["figures"]["images_s"]
        for other in rows
        if other["figures"]["variant"] == figures["variant"] and not other["figures"]["options"]
    ]
    return figures["images_s"] / plain[0] if plain else None


def _left_out(part: Row) -> list[str]:
    """What was not measured and why; one line for each reason."""
    reasons: dict[str, list[str]] = {}
    for row in part["rows"]:
        if row["status"] != "ok":
            reasons.setdefault(f"{row['status']}: {row['why']}", []).append(row["item"] or "all")
    lines = [f"* {', '.join(items)}: {_escaped(why)}" for why, items in reasons.items()]
    if not part["rows"]:
        lines.append(f"* {part['status']}{': ' if part['why'] else ''}{_escaped(part['why'])}")
    return [*lines, ""] if lines else []


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


def _nothing(_rows: Sequence[Row]) -> list[str]:
    return []


def _conditions(rows: Sequence[Row]) -> list[str]:
    """Which card the published figures are of."""
    found = dict.fromkeys(row["figures"].get("published_conditions") for row in rows)
    known = [text for text in found if text]
    return [f"Published: {'; '.join(known)}.", ""] if known else []


def _kernels(rows: Sequence[Row]) -> list[str]:
    """The most expensive kernels of each step."""
    lines = []
    for row in rows:
        top = row["figures"].get("top", ())[:8]
        if top:
            lines += [_line([f"{row['item']}, most expensive", "ms", "share"]), _line(["---", "---:", "---:"])]
            lines += [_line([f"`{_name(one)}`", _cell("", one["ms"]), _cell("busy", one["share"])]) for one in top]
            lines.append("")
    return lines


def _name(kernel: Row) -> str:
    return str(kernel["name"])[:70].replace("|", "/").replace("`", "'")


_EXTRAS: dict[str, Callable[[Sequence[Row]], list[str]]] = {"inference": _conditions, "profile": _kernels}
