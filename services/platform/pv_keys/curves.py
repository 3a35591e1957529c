"""Private keys of three curves as 32 bytes: made, taken in, derived; what is public of them; signatures."""

import os
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from eth_account import Account
from eth_account.hdaccount import seed_from_mnemonic
from eth_utils.exceptions import ValidationError as EthereumError
from slip10 import SLIP10  # type: ignore[import-untyped]
from slip10.utils import SLIP10DerivationError  # type: ignore[import-untyped]

from nexus.platform.pv_keys.v1.faults import DerivationInvalid, PrivateKeyInvalid

SEED_BYTES = 64
_FIRST_HARDENED = 2**31


class Curve(StrEnum):
    """As in the contract."""

    ED25519 = "ED25519"
    P256 = "P256"
    SECP256K1 = "SECP256K1"


_SLIP10_NAMES = {Curve.ED25519: "ed25519", Curve.P256: "secp256r1", Curve.SECP256K1: "secp256k1"}
_ECDSA = {Curve.P256: ec.SECP256R1(), Curve.SECP256K1: ec.SECP256K1()}
_SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141  # SEC 2, section 2.4.1


def generate(curve: Curve) -> bytes:
    """A private key."""
    if curve is Curve.ED25519:
        return ed25519.Ed25519PrivateKey.generate().private_bytes_raw()
    return ec.generate_private_key(_ECDSA[curve]).private_numbers().private_value.to_bytes(32, "big")


def generate_seed() -> bytes:
    """The seed of a hierarchy (BIP-32)."""
    return os.urandom(SEED_BYTES)


def require_private(curve: Curve, private: bytes) -> None:
    """Raises PrivateKeyInvalid for bytes that are no private key: 0, or not below the order of the curve."""
    if curve is not Curve.ED25519:
        try:
            same = _ecdsa(curve, private).private_numbers().private_value.to_bytes(32, "big") == private
        except ValueError:
            same = False
        if not same:
            raise PrivateKeyInvalid(why=f"it is not a private key of {curve}")


def seed_of(mnemonic: str, passphrase: str) -> bytes:
    """The seed that a mnemonic stands for (BIP-39). Raises PrivateKeyInvalid."""
    try:
        return seed_from_mnemonic(" ".join(mnemonic.split()), passphrase)
    except (EthereumError, ValueError):
        raise PrivateKeyInvalid(why="it is not a BIP-39 mnemonic in English") from None


def derive(curve: Curve, seed: bytes, path: str) -> bytes:
    """The private key at a path under a seed (BIP-32, SLIP-10). Raises DerivationInvalid."""
    if any(int(step.rstrip("'")) >= _FIRST_HARDENED for step in path.split("/")[1:]):
        raise DerivationInvalid(path=path, why="a step is above 2147483647")
    try:
        private: bytes = SLIP10.from_seed(seed, curve_name=_SLIP10_NAMES[curve]).get_privkey_from_path(path)
    except SLIP10DerivationError:
        raise DerivationInvalid(path=path, why=f"{curve} derives hardened steps only, as in m/0'/1'") from None
    return private


def public_of_seed(curve: Curve, seed: bytes) -> bytes:
    return public_of(curve, SLIP10.from_seed(seed, curve_name=_SLIP10_NAMES[curve]).privkey)


def public_of(curve: Curve, private: bytes) -> bytes:
    """32 bytes of Ed25519, or a compressed point (SEC 1)."""
    if curve is Curve.ED25519:
        return ed25519.Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    return _ecdsa(curve, private).public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def ethereum_account(curve: Curve, private: bytes) -> str:
    """With its checksum (EIP-55); "" on other curves than Ethereum's."""
    return str(Account.from_key(private).address) if curve is Curve.SECP256K1 else ""


def sign(curve: Curve, private: bytes, message: bytes) -> bytes:
    """64 bytes, the same every time: Ed25519, or r and s of ECDSA with SHA-256 and the nonce of RFC 6979."""
    if curve is Curve.ED25519:
        return ed25519.Ed25519PrivateKey.from_private_bytes(private).sign(message)
    r, s = decode_dss_signature(_ecdsa(curve, private).sign(message, ec.ECDSA(SHA256(), deterministic_signing=True)))
    if curve is Curve.SECP256K1:
        s = min(s, _SECP256K1_ORDER - s)  # both verify; Bitcoin and Ethereum take the lower only (BIP-62)
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _ecdsa(curve: Curve, private: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(private, "big"), _ECDSA[curve])
