"""Packages that the kit needs, and what is measured without them."""

from __future__ import annotations

import importlib

LIBRARY = ("torch", "numpy", "cv2", "pydantic", "safetensors")
NEEDS: dict[str, tuple[str, ...]] = {
    "correctness": (*LIBRARY, "pycocotools", "pytest"),
    "inference": LIBRARY,
    "training": LIBRARY,
    "loader": (*LIBRARY, "pycocotools"),
    "profile": LIBRARY,
    "compiled": LIBRARY,
    "tensorrt": (*LIBRARY, "onnx", "tensorrt"),
}
"""Modules that each part imports."""
INSTALL = {"cv2": "opencv-python-headless"}
"""Names of packages, where they are not those of their modules."""


def missing(names: tuple[str, ...]) -> list[str]:
    """Those that cannot be imported, as packages to install."""
    found = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001  a broken package is as good as none
            found.append(INSTALL.get(name, name))
    return found


def missing_by_part(parts: tuple[str, ...]) -> dict[str, list[str]]:
    """Part -> packages it lacks; only parts that lack any."""
    found = {part: missing(NEEDS[part]) for part in parts}
    return {part: names for part, names in found.items() if names}
