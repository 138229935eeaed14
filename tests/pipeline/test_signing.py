"""Signed versions in real MLflow: refused without a good signature at the gate, at a rollback, and wherever loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.promotion.judge import judge, roll_back
from stages.project.params import Promotion
from stages.registry.versions import CHALLENGER, CHAMPION, SIGNATURE, ModelRegistry, download_model
from tests.pipeline.export_folder import another
from tests.pipeline.test_registry_mlflow import by_tags, register
from tests.security.test_signature import private_pem, public_pem
from yolov7.errors import ModelError
from yolov7.files import sha256_file, write_json
from yolov7.signature import SIGNING_KEY, VERIFY_KEY

pytestmark = pytest.mark.slow


def test_only_signed_versions_are_promoted_and_loaded(
    registry: ModelRegistry, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    key, name = Ed25519PrivateKey.generate(), "signed"
    unsigned, _ = register(registry, name, export, 0.5)
    assert SIGNATURE not in unsigned.tags
    assert judge(registry, name, rules=Promotion(), compare=by_tags).outcome == "promoted", "signing is an option"

    monkeypatch.setenv(VERIFY_KEY, public_pem(key))
    for refused in (
        lambda: judge(registry, name, rules=Promotion(), compare=by_tags),
        lambda: download_model(unsigned.uri),
        lambda: mlflow.pyfunc.load_model(unsigned.uri),
    ):
        with pytest.raises(ModelError, match="not signed, and YOLOV7_VERIFY_KEY is set"):
            refused()

    monkeypatch.setenv(SIGNING_KEY, private_pem(key))
    second, new = register(registry, name, another(tmp_path / "second", export, "second"), 0.6)
    assert new and second.tags[SIGNATURE]
    assert judge(registry, name, rules=Promotion(), compare=by_tags).outcome == "promoted"
    fetched = download_model(f"models:/{name}@{CHAMPION}")
    assert sha256_file(fetched / "model.json") == second.tags["manifest_sha256"]
    assert mlflow.pyfunc.load_model(second.uri).metadata.signature is not None
    with pytest.raises(ModelError, match="not signed"):
        roll_back(registry, name)
    assert registry.by_alias(name, CHAMPION) == registry.by_number(name, 2), "the refused rollback changed nothing"

    signed, new = register(registry, name, export, 0.5)
    assert not new and signed.number == 1 and signed.tags[SIGNATURE], "registered again, the older version is signed"
    download_model(signed.uri)
    mlflow.pyfunc.load_model(signed.uri)
    assert roll_back(registry, name)[0].number == 1


def test_a_stranger_who_can_write_to_the_registry_cannot_pass_a_changed_model(
    registry: ModelRegistry, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    key, name = Ed25519PrivateKey.generate(), "forged"
    monkeypatch.setenv(SIGNING_KEY, private_pem(key))
    monkeypatch.setenv(VERIFY_KEY, public_pem(key))
    version, _ = register(registry, name, export, 0.5)
    stored = Path(mlflow.artifacts.download_artifacts(version.uri)) / "artifacts/export"

    # One byte: the manifest itself finds it, wherever the model is loaded.
    with (stored / "model.onnx").open("ab") as file:
        file.write(b"\0")
    for load in (download_model, mlflow.pyfunc.load_model):
        with pytest.raises(ModelError, match=r"model\.onnx: its bytes are not those"):
            load(version.uri)

    # Another model with its own good manifest, and the tag to match: only the signature tells.
    shutil.rmtree(stored)
    another(stored, export, "a stranger's")
    registry.set_tags(version, {"manifest_sha256": sha256_file(stored / "model.json")})
    for load in (download_model, mlflow.pyfunc.load_model):
        with pytest.raises(ModelError, match="the signature is not one of the keys"):
            load(version.uri)
    with pytest.raises(ModelError, match="the signature is not one of the keys"):
        judge(registry, name, rules=Promotion(), compare=by_tags)

    # Signed, by somebody else.
    monkeypatch.setenv(SIGNING_KEY, private_pem(Ed25519PrivateKey.generate()))
    theirs, _ = register(registry, name, another(tmp_path / "theirs", export, "theirs"), 0.9)
    assert registry.by_alias(name, CHALLENGER) == theirs
    with pytest.raises(ModelError, match="the signature is not one of the keys"):
        judge(registry, name, rules=Promotion(), compare=by_tags)
    with pytest.raises(ModelError, match="the signature is not one of the keys"):
        download_model(theirs.uri)


def test_a_signature_of_one_model_is_invalid_for_another(
    registry: ModelRegistry, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Ed25519PrivateKey.generate()
    monkeypatch.setenv(SIGNING_KEY, private_pem(key))
    good, _ = register(registry, "small", export, 0.5)
    monkeypatch.delenv(SIGNING_KEY)
    monkeypatch.setenv(VERIFY_KEY, public_pem(key))
    other, _ = register(registry, "large", export, 0.5)
    registry.set_tags(other, {SIGNATURE: good.tags[SIGNATURE]})
    assert download_model(good.uri).is_dir()
    with pytest.raises(ModelError, match="the signature is not one of the keys"):
        download_model(other.uri)


def test_a_changed_byte_in_a_folder_is_refused(export: Path, tmp_path: Path) -> None:
    from yolov7.predict import load_detector

    for name in ("model.onnx", "model.safetensors"):
        folder = another(tmp_path / name, export, "changed")
        damaged = bytearray((folder / name).read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (folder / name).write_bytes(damaged)
        with pytest.raises(ModelError, match=rf"{name}: its bytes are not those"):
            load_detector(folder, runtime="onnx" if name.endswith("onnx") else "torch")
    folder = another(tmp_path / "elsewhere", export, "elsewhere")
    write_json(folder / "model.json", {"files": {"../model.onnx": {"sha256": "0"}, "model.onnx": {}}})
    with pytest.raises(ModelError, match="not a list of the folder's files with their sha256"):
        load_detector(folder)
