"""A teacher named by a registered version, on real MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.registry.versions import CHALLENGER, ModelRegistry
from stages.training.teacher import teacher_file
from yolov7.config import Train
from yolov7.errors import ConfigError, ModelError
from yolov7.files import sha256_file

pytestmark = pytest.mark.slow


def test_the_weights_behind_a_version_are_the_teacher(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = registry.run_for({"run_id": None, "fingerprint": "taught"}, experiment="tests", name="taught")
    registry.client.create_registered_model("taught")
    registry.client.create_model_version("taught", "export", run_id)
    registry.set_aliases("taught", {CHALLENGER: 1})
    address = f"models:/taught@{CHALLENGER}"
    with pytest.raises(ModelError, match=r"taught version 1: its run does not have the weights of the training"):
        teacher_file(Train(distill_from=address, distill_sha256="0" * 64))

    weights = tmp_path / "best.safetensors"
    weights.write_bytes(b"weights in training form")
    digest = sha256_file(weights)
    registry.client.log_artifact(run_id, str(weights), "checkpoint")
    with pytest.raises(ConfigError, match=f"distill_sha256: missing next to .*; write `distill_sha256: {digest}`"):
        teacher_file(Train(distill_from=address))
    with pytest.raises(ConfigError, match=f"expects {'0' * 64}, but {address} has {digest}"):
        teacher_file(Train(distill_from=address, distill_sha256="0" * 64))
    fetched = teacher_file(Train(distill_from="models:/taught/1", distill_sha256=digest))
    assert fetched is not None and sha256_file(fetched) == digest

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:9")  # what was fetched once needs no server
    assert teacher_file(Train(distill_from=address, distill_sha256=digest)) == fetched
    fetched.write_bytes(b"damaged")
    with pytest.raises(ModelError, match="MLflow at http://localhost:9"):
        teacher_file(Train(distill_from=address, distill_sha256=digest))
