"""The gate on measurements that are really made: registered versions, fetched, run side by side on a test image."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from small_detector import small_detector
from small_int8 import int8_export, project_with_test_split

from flows.promote import main
from flows.promotion.judge import describe as describe_decision
from flows.promotion.judge import judge, roll_back
from flows.report import decision_lines
from stages import compare as stage
from stages.project.params import Params, Promotion
from stages.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, SIGNATURE, ModelRegistry, Version, download_model
from tests.pipeline.export_folder import CATEGORY_IDS, CLASSES, another, describe, image_bytes
from tests.pipeline.test_registry_mlflow import register
from tests.security.test_signature import private_pem, public_pem
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import build_index
from yolov7.errors import ModelError
from yolov7.predict.runtimes import METADATA_KEY
from yolov7.signature import SIGNING_KEY, VERIFY_KEY

pytestmark = pytest.mark.slow


@pytest.fixture
def registry(registry: ModelRegistry) -> ModelRegistry:
    """The registry, in a folder with a test split of one image."""
    images = Path("data/ingested/test/images")
    images.mkdir(parents=True)
    (images / "first.png").write_bytes(image_bytes())
    categories = [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    records = [{"id": 1, "file_name": "first.png", "width": 48, "height": 64}]
    box = {"id": 1, "image_id": 1, "category_id": CATEGORY_IDS[0], "bbox": [4.0, 4.0, 20.0, 30.0]}
    build_index(CocoAnnotations(Path("a.json"), records, [box], categories), images, Path("data/index/test"))
    document = {"sha256": "d", "splits": {"test": {"sha256": "ab" * 32}}, "test_is_val": False}
    Path("data/ingested/dataset.json").write_text(json.dumps(document))
    return registry


def measured(challenger: Version, champion: Version) -> Mapping[str, Any]:
    """The stage itself, in this process."""
    output = Path("comparison.json")
    stage.main(Params(), argparse.Namespace(challenger=challenger.uri, champion=champion.uri, output=output))
    found: Mapping[str, Any] = json.loads(output.read_text())
    return found


def renamed(folder: Path, source: Path, names: tuple[str, ...]) -> Path:
    """A copy whose model calls its classes by other names."""
    another(folder, source, "renamed")
    model = onnx.load(folder / "model.onnx")
    (about,) = (one for one in model.metadata_props if one.key == METADATA_KEY)
    about.value = json.dumps({**json.loads(about.value), "class_names": names})
    onnx.save(model, folder / "model.onnx")
    describe(folder, "renamed")
    return folder


def test_a_champion_with_other_classes_is_not_an_error_and_can_be_replaced(
    registry: ModelRegistry, export: Path, tmp_path: Path
) -> None:
    name, rules = "classes", Promotion(max_latency_ms=60_000.0)
    register(registry, name, renamed(tmp_path / "old", export, ("cat", "dog", "owlet")), 0.5)
    registry.set_aliases(name, {CHAMPION: 1})
    register(registry, name, export, 0.4)
    kept = judge(registry, name, rules=rules, compare=measured)
    assert kept.outcome == "kept"
    assert kept.reason.startswith("the champion knows other classes (3, the challenger 3; new: 'owl'; gone: 'owlet')")
    won = judge(registry, name, rules=rules, compare=measured, new_classes=True)
    assert [check.rule for check in won.checks] == ["classes", "latency", "artefact", "data"]
    assert registry.aliases(name) == {CHALLENGER: 2, CHAMPION: 2, PREVIOUS: 1}
    register(registry, name, another(tmp_path / "same", export, "same classes"), 0.4)
    assert "AP" in [check.rule for check in judge(registry, name, rules=rules, compare=measured).checks]


def test_a_version_whose_int8_file_loses_too_much_is_kept_and_its_figures_are_on_record(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    shutil.rmtree("data")
    detector = small_detector()
    index = project_with_test_split(Path(), detector)
    register(registry, "bits", int8_export(detector, tmp_path / "first", index, formats=["onnx-int8"]), 0.5)
    kept = judge(registry, "bits", rules=Promotion(max_int8_loss=1e-6), compare=measured)
    assert kept.outcome == "kept" and [check.rule for check in kept.checks if not check.passed] == ["int8"]
    found = kept.evidence["challenger"]
    int8 = found["int8"]["model-int8.onnx"]
    loss = found["AP"] - int8["AP"]
    assert loss > 1e-6 and kept.reason.endswith(
        f"model-int8.onnx: test AP {int8['AP']:.4f}, {loss:.4f} below the float file's {found['AP']:.4f}; 1e-06 allowed"
    )
    assert (
        "\n" not in describe_decision(kept) and f"`model-int8.onnx` AP {int8['AP']:.4f}" in decision_lines([kept])[-1]
    )
    won = judge(registry, "bits", rules=Promotion(max_int8_loss=loss + 0.001), compare=measured)
    assert won.outcome == "promoted"
    version = registry.resolve(f"models:/bits@{CHAMPION}")
    assert version.tags["int8.model-int8.onnx.AP"] == f"{int8['AP']:.6f}"
    assert version.tags["AP"] == f"{found['AP']:.6f}"


def test_after_signing_is_switched_on_the_old_champion_is_signed_and_measured(
    registry: ModelRegistry, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    name, key = "late", Ed25519PrivateKey.generate()
    register(registry, name, export, 0.5)
    registry.set_aliases(name, {CHAMPION: 1})
    monkeypatch.setenv(SIGNING_KEY, private_pem(key))
    monkeypatch.setenv(VERIFY_KEY, public_pem(key))
    second, _ = register(registry, name, another(tmp_path / "second", export, "second"), 0.6)
    with pytest.raises(ModelError, match="late version 1: not signed"):
        judge(registry, name, rules=Promotion(), compare=measured)

    assert main(["--sign", f"models:/{name}@{CHAMPION}"]) == 0
    assert "late version 1 is signed: its files are those of its manifest" in capsys.readouterr().out
    assert judge(registry, name, rules=Promotion(), compare=measured).reason.startswith("test AP"), "measured"
    registry.set_aliases(name, {CHAMPION: 2, PREVIOUS: 1})
    assert roll_back(registry, name)[0].number == 1
    import mlflow

    assert mlflow.pyfunc.load_model(f"models:/{name}/1").metadata.signature is not None

    # A key that is withdrawn: what it has signed is not signed over.
    stranger = Ed25519PrivateKey.generate()
    monkeypatch.setenv(SIGNING_KEY, private_pem(stranger))
    monkeypatch.setenv(VERIFY_KEY, public_pem(stranger))
    assert main(["--sign", second.uri]) == 2
    assert "the signature is not one of the keys" in capsys.readouterr().err
    monkeypatch.setenv(VERIFY_KEY, public_pem(key) + public_pem(stranger))
    assert main(["--sign", second.uri]) == 0
    monkeypatch.setenv(VERIFY_KEY, public_pem(stranger))
    assert download_model(second.uri).is_dir(), "a change of keys"


def test_a_version_changed_in_the_registry_is_not_signed(
    registry: ModelRegistry, export: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import mlflow

    version, _ = register(registry, "touched", export, 0.5)
    assert main(["--sign", version.uri]) == 2
    assert f"{SIGNING_KEY} is not set" in capsys.readouterr().err
    with (Path(mlflow.artifacts.download_artifacts(version.uri)) / "artifacts/export/model.onnx").open("ab") as file:
        file.write(b"\0")
    monkeypatch.setenv(SIGNING_KEY, private_pem(Ed25519PrivateKey.generate()))
    assert main(["--sign", version.uri]) == 2
    assert "its bytes are not those" in capsys.readouterr().err
    assert SIGNATURE not in registry.resolve(version.uri).tags
    with pytest.raises(SystemExit):
        main(["--sign", version.uri, "--rollback", "touched"])
