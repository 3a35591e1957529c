"""Sealing of stored secrets: AES-256-GCM under the platform's root key, and keyed hashes.

A sealed value opens only with the same `purpose`, so that one column's value cannot be moved to another. It opens
with whichever version of the root key sealed it.
"""

import hashlib
import hmac
import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.chassis.root_keys import RootKey, RootKeyFile, RootKeys

_NONCE_BYTES = 12
_REMEMBER = 1000


class SealBroken(Exception):  # noqa: N818  says what happened to the seal
    """The value was not sealed with this key for this purpose, or has been changed."""


class Sealer:
    """Seals and opens values of one service."""

    def __init__(self, root: RootKeyFile | bytes, service: str) -> None:
        """Each service derives its own keys from the root's. `root` may be a key of 32 bytes that never changes."""
        self._file = root if isinstance(root, RootKeyFile) else None
        self._fixed = RootKeys.of(root) if isinstance(root, bytes) else None
        self._service = service

    @property
    def version(self) -> int:
        """The version of the root key that seals now."""
        return self._root.sealing.version

    @property
    def has_former_versions(self) -> bool:
        """Whether there may be values that another version than this has sealed."""
        return len(self._root.keys) > 1

    def seal(self, value: bytes, purpose: str, version: int | None = None) -> bytes:
        """Returns nonce, ciphertext and tag in one; by the version that seals now unless another is named."""
        root = self._root
        key = root.sealing if version is None else next(key for key in root.keys if key.version == version)
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead(key).encrypt(nonce, value, purpose.encode())

    def open(self, sealed: bytes, purpose: str) -> bytes:
        """Raises SealBroken."""
        return self._opened(sealed, purpose)[0]

    def renewed(self, sealed: bytes, purpose: str) -> bytes | None:
        """The same, sealed by the version that seals now; None where it is. Raises SealBroken."""
        value, version = self._opened(sealed, purpose)
        return self.seal(value, purpose) if version != self.version else None

    def digest(self, value: bytes) -> bytes:
        """A keyed hash (HMAC-SHA256): equal for equal values, useless without the key."""
        return hmac.digest(_derived(self._root.lookup, self._service)[32:], value, hashlib.sha256)

    @property
    def _root(self) -> RootKeys:
        if self._file is not None:
            return self._file.keys
        assert self._fixed is not None
        return self._fixed

    def _opened(self, sealed: bytes, purpose: str) -> tuple[bytes, int]:
        """The value, and the version that sealed it."""
        for key in reversed(self._root.keys):
            try:
                opened = self._aead(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], purpose.encode())
            except (InvalidTag, ValueError):
                continue
            return opened, key.version
        raise SealBroken(purpose)

    def _aead(self, key: RootKey) -> AESGCM:
        return AESGCM(_derived(key.key, self._service)[:32])


@lru_cache(_REMEMBER)
def _derived(key: bytes, service: str) -> bytes:
    """64 bytes by HKDF (RFC 5869): half to seal with, half for keyed hashes."""
    return HKDF(SHA256(), 64, salt=None, info=b"nexus/sealing/" + service.encode()).derive(key)
