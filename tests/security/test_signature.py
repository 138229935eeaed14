"""Signatures of manifests: made and refused by real Ed25519 keys, which come from the environment alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from yolov7.errors import ConfigError, ModelError
from yolov7.files import sha256_file
from yolov7.signature import SIGNATURE, SIGNING_KEY, VERIFY_KEY, require, require_beside, sign

NAME, MANIFEST = "yolov7-tiny", "ab" * 32


def private_pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: bytes | None = None) -> str:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden).decode()


def public_pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SIGNING_KEY, VERIFY_KEY):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def test_without_keys_nothing_is_signed_and_nothing_is_asked_for(tmp_path: Path) -> None:
    assert sign(NAME, MANIFEST) is None
    require(NAME, MANIFEST, None, what="it")
    require(NAME, MANIFEST, "no signature", what="it")
    require_beside(tmp_path / "nowhere")


@pytest.mark.parametrize("as_file", [True, False])
def test_what_was_signed_passes_and_nothing_else_does(
    key: ed25519.Ed25519PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_file: bool
) -> None:
    def given(pem: str, name: str) -> str:
        (tmp_path / name).write_text(pem)
        return str(tmp_path / name) if as_file else pem

    monkeypatch.setenv(SIGNING_KEY, given(private_pem(key), "signing.pem"))
    signature = sign(NAME, MANIFEST)
    assert signature is not None and signature == sign(NAME, MANIFEST), "the same each time"
    monkeypatch.setenv(VERIFY_KEY, given(public_pem(key), "verify.pem"))
    require(NAME, MANIFEST, signature, what="it")
    for name, manifest, wrong in [
        ("another-model", MANIFEST, signature),
        (NAME, "cd" * 32, signature),
        (NAME, MANIFEST, signature[:-4] + "AAA="),
        (NAME, MANIFEST, "not base64 at all"),
    ]:
        with pytest.raises(ModelError, match="it: the signature is not one of the keys in YOLOV7_VERIFY_KEY"):
            require(name, manifest, wrong, what="it")
    for missing in (None, ""):
        with pytest.raises(ModelError, match="it: not signed, and YOLOV7_VERIFY_KEY is set"):
            require(NAME, MANIFEST, missing, what="it")


def test_while_keys_are_changed_both_are_good(key: ed25519.Ed25519PrivateKey, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = ed25519.Ed25519PrivateKey.generate()
    signatures = []
    for one in (key, newer):
        monkeypatch.setenv(SIGNING_KEY, private_pem(one))
        signatures.append(sign(NAME, MANIFEST))
    monkeypatch.setenv(VERIFY_KEY, public_pem(key) + public_pem(newer))
    for signature in signatures:
        require(NAME, MANIFEST, signature, what="it")
    monkeypatch.setenv(VERIFY_KEY, public_pem(newer))
    with pytest.raises(ModelError, match="the signature is not"):
        require(NAME, MANIFEST, signatures[0], what="it")


def test_keys_that_cannot_be_used_are_named_and_never_shown(
    key: ed25519.Ed25519PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    broken = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----"
    for pem in (private_pem(curve), private_pem(key, b"password"), public_pem(key), broken):
        monkeypatch.setenv(SIGNING_KEY, pem)
        with pytest.raises(ConfigError, match="YOLOV7_SIGNING_KEY: an Ed25519 private key without password") as caught:
            sign(NAME, MANIFEST)
        assert not any(line in str(caught.value) for line in pem.splitlines())
    for pem in (public_pem(curve), "-----BEGIN PUBLIC KEY-----\nc2VjcmV0\n-----END PUBLIC KEY-----", private_pem(key)):
        monkeypatch.setenv(VERIFY_KEY, pem)
        with pytest.raises(ConfigError, match="YOLOV7_VERIFY_KEY: ") as caught:
            require(NAME, MANIFEST, "AAAA", what="it")
        assert not any(line in str(caught.value) for line in pem.splitlines())
    monkeypatch.setenv(SIGNING_KEY, str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match="neither PEM text nor a PEM file that can be read"):
        sign(NAME, MANIFEST)


def test_a_folder_with_its_signature_beside_it(
    key: ed25519.Ed25519PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export, beside = tmp_path / "export", tmp_path / SIGNATURE
    export.mkdir()
    (export / "model.json").write_text('{"files": {}}')
    monkeypatch.setenv(SIGNING_KEY, private_pem(key))
    monkeypatch.setenv(VERIFY_KEY, public_pem(key))
    with pytest.raises(ModelError, match="not signed"):
        require_beside(export)
    write: Callable[..., object] = lambda **values: beside.write_text(json.dumps(values))  # noqa: E731
    write(name=NAME, signature=sign(NAME, sha256_file(export / "model.json")))
    require_beside(export)
    (export / "model.json").write_text('{"files": {} }')
    with pytest.raises(ModelError, match="the signature is not"):
        require_beside(export)
    for damaged in ("", "[]", "{}", "\x00"):
        beside.write_text(damaged)
        with pytest.raises(ModelError, match=r"signature\.json: not readable as a signature"):
            require_beside(export)
