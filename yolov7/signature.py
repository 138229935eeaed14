"""Signatures of registered models: Ed25519 over the model's name and the sha256 of its manifest.

The manifest (`model.json`) holds the sha256 of every file of an export folder, so a signature of its own sha256
covers all of them. Keys come from the environment alone, as the path of a PEM file or as PEM text: `YOLOV7_SIGNING_KEY`
is the private key that signs at registration; `YOLOV7_VERIFY_KEY` holds one or more public keys (several during a
change of keys), one of which must have signed every model that is loaded. Needs the package `cryptography`.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov7.artefact import DESCRIPTION
from yolov7.documents import load_json
from yolov7.errors import ConfigError, ModelError
from yolov7.files import sha256_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNING_KEY, VERIFY_KEY = "YOLOV7_SIGNING_KEY", "YOLOV7_VERIFY_KEY"
SIGNATURE = "signature.json"
"""Lies beside the export folder in a registered model: model's name, manifest's sha256, signature in base64."""
_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


def sign(name: str, manifest_sha256: str) -> str | None:
    """The signature in base64, the same each time; None if no signing key is set.

    Raises :class:`ConfigError` for a key that is not an unencrypted Ed25519 private key.
    """
    pem = _pem(SIGNING_KEY)
    if pem is None:
        return None
    return base64.b64encode(_private_key(pem).sign(_statement(name, manifest_sha256))).decode()


def require(name: str, manifest_sha256: str, signature: str | None, *, what: str) -> None:
    """Refuse `what` unless one of the public keys has signed it. Without such keys nothing is checked.

    Raises :class:`ModelError` for a missing or wrong signature and :class:`ConfigError` for keys that cannot be read.
    """
    pem = _pem(VERIFY_KEY)
    if pem is None:
        return
    keys = _public_keys(pem)
    if not signature:
        raise ModelError(f"{what}: not signed, and {VERIFY_KEY} is set; register or sign it with {SIGNING_KEY} set")
    if not any(_signed_by(key, _statement(name, manifest_sha256), signature) for key in keys):
        raise ModelError(
            f"{what}: the signature is not one of the keys in {VERIFY_KEY} over this model: "
            "do not use it before you know who registered it"
        )


def require_beside(export: str | os.PathLike[str]) -> None:
    """:func:`require` for an export folder with its `signature.json` beside it, as a registered model holds them."""
    if _pem(VERIFY_KEY) is None:
        return
    file, manifest = Path(export).with_name(SIGNATURE), Path(export) / DESCRIPTION
    try:
        document = load_json(file)
        name, signature = str(document["name"]), str(document["signature"])
    except FileNotFoundError:
        name, signature = "", None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: not readable as a signature ({error})") from None
    if not manifest.is_file():
        raise ModelError(f"{manifest}: missing; fetch or export the folder again")
    require(name, sha256_file(manifest), signature, what=str(export))


def _statement(name: str, manifest_sha256: str) -> bytes:
    # The name is part of it: a signed tiny network must not pass for the champion of another model.
    return f"yolov7 registered model\n{name}\n{manifest_sha256}\n".encode()


def _pem(variable: str) -> bytes | None:
    value = os.environ.get(variable, "").strip()
    if not value:
        return None
    if value.startswith("-----BEGIN "):
        return value.encode()
    try:
        return Path(value).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{variable}: neither PEM text nor a PEM file that can be read ({reason})") from None


def _private_key(pem: bytes) -> Ed25519PrivateKey:
    serialization, ed25519, unsupported = _cryptography(SIGNING_KEY)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, unsupported):
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(
            f"{SIGNING_KEY}: an Ed25519 private key without password is expected, as PEM or the path of a PEM file; "
            "make one with `openssl genpkey -algorithm ed25519 -out signing.pem`"
        )
    return key


def _public_keys(pem: bytes) -> list[Ed25519PublicKey]:
    serialization, ed25519, unsupported = _cryptography(VERIFY_KEY)
    keys: list[Ed25519PublicKey] = []
    for block in _PUBLIC.findall(pem):
        try:
            key = serialization.load_pem_public_key(block)
        except (ValueError, unsupported):
            key = None
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise ConfigError(f"{VERIFY_KEY}: key {len(keys) + 1} is not an Ed25519 public key")
        keys.append(key)
    if not keys:
        raise ConfigError(
            f"{VERIFY_KEY}: one or more Ed25519 public keys are expected, as PEM or the path of a PEM file; "
            "`openssl pkey -in signing.pem -pubout -out verify.pem` writes that of a signing key"
        )
    return keys


def _signed_by(key: Ed25519PublicKey, statement: bytes, signature: str) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(signature, validate=True), statement)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _cryptography(variable: str) -> tuple[Any, Any, type[Exception]]:
    """The package `cryptography`, which only keys need. Raises :class:`ConfigError` if it is not installed."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ConfigError(f"{variable} is set: it needs `pip install cryptography`") from None
    return serialization, ed25519, UnsupportedAlgorithm
