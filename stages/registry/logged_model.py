"""Log an export folder as an MLflow model: its serving code, signature, example and requirements."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

_SERVING = Path(__file__).parents[1] / "serving" / "model.py"


def log_model(export: Path, example: bytes | None) -> Any:
    """Log the folder as a pyfunc model of the active run, with an image as its example; returns MLflow's record."""
    import mlflow
    import pandas as pd

    import yolov7

    return mlflow.pyfunc.log_model(
        name="model",
        python_model=str(_SERVING),
        artifacts={"export": str(export)},
        # The library is packed in: the version keeps working when this checkout has changed.
        code_paths=[str(Path(yolov7.__file__).parent)],
        signature=_signature(export),
        input_example=None if example is None else pd.DataFrame({"image": [example]}),
        pip_requirements=_requirements(),
    )


def _signature(export: Path) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    from stages.serving.model import COLUMNS
    from yolov7.predict import load_detector

    detector = load_detector(export)
    kinds = {"int64": DataType.long, "float64": DataType.double, "object": DataType.string}
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(kinds[kind], name) for name, kind in COLUMNS.items()]),
        params=ParamSchema(
            [
                ParamSpec("confidence", DataType.double, float(detector.confidence)),
                ParamSpec("iou", DataType.double, float(detector.iou)),
            ]
        ),
    )


_NOT_SERVED = frozenset({"orjson"})
"""Dependencies of the library that no prediction loads: it reads annotations with them."""


def _requirements() -> list[str]:
    """The library's own dependencies and the server's, pinned to the installed versions."""
    needed = [line for line in metadata.requires("yolov7-pipeline") or [] if "extra ==" not in line]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in needed]
    names = [name for name in names if name not in _NOT_SERVED]
    # A build such as 2.13.0+cpu exists on this kind of machine only.
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in ["mlflow", *names, "pandas", "pillow"]]
