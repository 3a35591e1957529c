"""What is done with the material of a key version: encrypt and open, sign and verify, authenticate.

A ciphertext says by itself what made it. Its layout, integers big-endian:

    1 byte   format, 1
    16 bytes key id
    4 bytes  key version
    12 bytes nonce, random (NIST SP 800-38D, section 8.2.2: at most 2^32 ciphertexts a version)
    n bytes  AES-256-GCM ciphertext
    16 bytes tag

The header, the tenant and the caller's context are its associated data, each with its length before it.
"""

import hashlib
import hmac
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)

from nexus.platform.key_service.v1.faults import CiphertextInvalid

DATA_KEY_BYTES = 32
_FORMAT = 1
_HEADER = struct.Struct(">B16sI12s")
_TAG_BYTES = 16
_P256_BYTES = 32


class Algorithm(StrEnum):
    """As in the contract."""

    AES_256_GCM = "AES_256_GCM"
    ES256 = "ES256"
    ED25519 = "ED25519"
    HMAC_SHA256 = "HMAC_SHA256"

    @property
    def purpose(self) -> str:
        """What its keys do: "encrypt", "sign" or "authenticate"."""
        return _PURPOSES[self]


_PURPOSES = {
    Algorithm.AES_256_GCM: "encrypt",
    Algorithm.ES256: "sign",
    Algorithm.ED25519: "sign",
    Algorithm.HMAC_SHA256: "authenticate",
}


@dataclass(frozen=True)
class Material:
    """One version of a key."""

    secret: bytes
    """32 random bytes, or a private key in PKCS #8."""
    public: bytes | None = None
    """SubjectPublicKeyInfo of a private key."""


@dataclass(frozen=True)
class Label:
    """What a ciphertext says of itself."""

    key_id: str
    version: int
    nonce: bytes

    def encode(self) -> bytes:
        return _HEADER.pack(_FORMAT, UUID(self.key_id).bytes, self.version, self.nonce)


def generate(algorithm: Algorithm) -> Material:
    if algorithm.purpose != "sign":
        return Material(os.urandom(32))
    private = (
        ec.generate_private_key(ec.SECP256R1())
        if algorithm is Algorithm.ES256
        else ed25519.Ed25519PrivateKey.generate()
    )
    return Material(
        private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )


def read_label(ciphertext: bytes) -> Label:
    """Raises CiphertextInvalid for what was not made by `encrypt`."""
    if len(ciphertext) < _HEADER.size + _TAG_BYTES:
        raise CiphertextInvalid()
    form, key_id, version, nonce = _HEADER.unpack_from(ciphertext)
    if form != _FORMAT:
        raise CiphertextInvalid()
    return Label(str(UUID(bytes=key_id)), version, nonce)


def encrypt(
    secret: bytes, key_id: str, version: int, plaintext: bytes, tenant: str, context: Mapping[str, str]
) -> tuple[bytes, Label]:
    """The ciphertext, and what it says of itself."""
    label = Label(key_id, version, os.urandom(12))
    header = label.encode()
    return header + AESGCM(secret).encrypt(label.nonce, plaintext, _associated(header, tenant, context)), label


def decrypt(secret: bytes, ciphertext: bytes, tenant: str, context: Mapping[str, str]) -> bytes:
    """Raises CiphertextInvalid."""
    label = read_label(ciphertext)
    try:
        return AESGCM(secret).decrypt(
            label.nonce, ciphertext[_HEADER.size :], _associated(label.encode(), tenant, context)
        )
    except InvalidTag:
        raise CiphertextInvalid() from None


def sign(secret: bytes, message: bytes) -> bytes:
    """64 bytes: Ed25519, or r and s of ES256 (RFC 7518, section 3.4)."""
    private = load_der_private_key(secret, password=None)
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private.sign(message)
    assert isinstance(private, ec.EllipticCurvePrivateKey), "the key does not sign"
    r, s = decode_dss_signature(private.sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(_P256_BYTES, "big") + s.to_bytes(_P256_BYTES, "big")


def verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature is `sign`'s of the message."""
    if len(signature) != 2 * _P256_BYTES:
        return False
    key = load_der_public_key(public)
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            assert isinstance(key, ec.EllipticCurvePublicKey)
            r, s = (int.from_bytes(part, "big") for part in (signature[:_P256_BYTES], signature[_P256_BYTES:]))
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def mac(secret: bytes, message: bytes) -> bytes:
    return hmac.digest(secret, message, hashlib.sha256)


def pem(public: bytes) -> str:
    return load_der_public_key(public).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _associated(header: bytes, tenant: str, context: Mapping[str, str]) -> bytes:
    parts = [tenant.encode()]
    for name in sorted(context):
        parts += [name.encode(), context[name].encode()]
    return header + b"".join(struct.pack(">I", len(part)) + part for part in parts)
