"""Sealing of stored secrets: AES-256-GCM under the platform's root key, and keyed hashes.

A sealed value opens only with the same `purpose`, so that one column's value cannot be moved to another.
"""

import hashlib
import hmac
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.chassis.config import ConfigError, Settings

_NONCE_BYTES = 12


class SealBroken(Exception):  # noqa: N818  says what happened to the seal
    """The value was not sealed with this key for this purpose, or has been changed."""


class Sealer:
    """Seals and opens values of one service."""

    def __init__(self, root_key: bytes, service: str) -> None:
        """`root_key` has 32 bytes; each service derives its own keys from it (HKDF, RFC 5869)."""
        keys = HKDF(SHA256(), 64, salt=None, info=b"nexus/sealing/" + service.encode()).derive(root_key)
        self._aead = AESGCM(keys[:32])
        self._mac_key = keys[32:]

    def seal(self, value: bytes, purpose: str) -> bytes:
        """Returns nonce, ciphertext and tag in one."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, value, purpose.encode())

    def open(self, sealed: bytes, purpose: str) -> bytes:
        """Raises SealBroken."""
        try:
            return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], purpose.encode())
        except (InvalidTag, ValueError) as error:
            raise SealBroken(purpose) from error

    def digest(self, value: bytes) -> bytes:
        """A keyed hash (HMAC-SHA256): equal for equal values, useless without the key."""
        return hmac.digest(self._mac_key, value, hashlib.sha256)


def read_root_key(settings: Settings) -> bytes:
    """Raises ConfigError when the file is missing or has not 32 bytes."""
    path = settings.root_key_file or settings.home / "secrets" / "root.key"
    try:
        key = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"NEXUS_ROOT_KEY_FILE: {path} cannot be read ({error.strerror})") from None
    if len(key) != 32:
        raise ConfigError(f"NEXUS_ROOT_KEY_FILE: {path} must hold 32 random bytes, not {len(key)}")
    return key
