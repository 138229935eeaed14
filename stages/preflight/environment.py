"""Misspelt environment variables, which would silently have no effect."""

from __future__ import annotations

import difflib
import os

from stages.preflight.findings import Findings
from stages.serving.settings import VARIABLES

OURS = (
    "YOLOV7_CACHE",
    "YOLOV7_DEVICE",
    "YOLOV7_NODES",
    "YOLOV7_PIPELINE_CHILD",
    "YOLOV7_PIPELINE_OWNER",
    "YOLOV7_PROCESSES",
    "YOLOV7_RENDEZVOUS",
    "YOLOV7_RESTARTS",
    "YOLOV7_RESTORE_ONLY",
    "YOLOV7_SERVE_BATCH_SIZE",
    "YOLOV7_SERVE_MAX_PIXELS",
    "YOLOV7_SERVE_MAX_REQUEST_PIXELS",
    "YOLOV7_SIGNING_KEY",
    "YOLOV7_STATE_REMOTE",
    "YOLOV7_VERIFY_KEY",
    "YOLOV7_WEIGHTS_MIRROR",
    "YOLOV7_WORKERS",
    *VARIABLES,
)
"""Every variable that this project reads or sets for its children."""
_OF_TESTS = ("YOLOV7_FROZEN", "YOLOV7_TEST_DEVICE")
_RECORDS = (
    "DATA_HTTP_TOKEN",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_S3_ENDPOINT_URL",
)
_OTHERS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_ENDPOINT_URL",
    "AWS_SECRET_ACCESS_KEY",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_URL",
)
_ALIKE = (
    "AWS_ENDPOINT_URL_S3",
    "MLFLOW_REGISTRY_DIR",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_DIR",
    "PREFECT_API_KEY",
    "PREFECT_SERVER_API_AUTH_STRING",
    "PREFECT_UI_API_URL",
)
"""Names of MLflow, Prefect and botocore that only look like misspellings."""
_CLOSE = 0.8
_SHORTEST = 12
"""Shorter names may begin like any other."""
_OWN_PREFIX = "YOLOV7_"
_NOT_MEANT = ("YOLOV7_SERVE_", "YOLOV7_PIPELINE_", "YOLOV7_RESTORE_")
"""Variables of the model server and of child processes; no training waits for them."""


def check_environment(found: Findings) -> None:
    """A misspelt variable of ours or of MLflow is a problem unless the right one is set; of others a warning."""
    known = {*OURS, *_OF_TESTS, *_RECORDS, *_OTHERS, *_ALIKE}
    for name in sorted(os.environ):
        if name in known:
            continue
        meant = _meant(name)
        if meant is not None and not os.environ.get(meant):
            text = f"the environment has {name}, which nothing reads: {meant} is meant"
            (found.warning if meant in _OTHERS else found.problem)(text)
        elif name.upper().startswith(_OWN_PREFIX):
            found.warning(f"the environment has {name}, which nothing reads; params.yaml holds all other settings")


def _meant(name: str) -> str | None:
    """The variable that a misspelt name means, if it is close to one."""
    candidates = [each for each in (*OURS, *_RECORDS, *_OTHERS) if not each.startswith(_NOT_MEANT)]
    given = name.upper().replace("-", "_")
    longer = [each for each in candidates if len(given) > _SHORTEST and each.startswith(given)]
    close = longer or difflib.get_close_matches(given, candidates, n=1, cutoff=_CLOSE)
    return close[0] if close else None
