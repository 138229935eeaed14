"""What the processes of the parts share; a package that is missing is named elsewhere."""

from __future__ import annotations

import contextlib
import importlib

for _name in ("torch", "torch._dynamo", "numpy", "cv2", "gpu_kit.inference", "gpu_kit.training", "gpu_kit.loading"):
    with contextlib.suppress(Exception):
        importlib.import_module(_name)
