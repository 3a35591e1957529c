"""A ciphertext opens for its own tenant and context, unchanged, and for nobody and nothing else."""

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st

from nexus.platform.key_service.v1.faults import CiphertextInvalid
from services.chassis.ids import new_id
from services.platform.key_service import material
from services.platform.key_service.material import Algorithm

TENANT = "acme"
SECRET = material.generate(Algorithm.AES_256_GCM).secret
CONTEXTS = st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=5)
SIGNERS = pytest.mark.parametrize("algorithm", [Algorithm.ES256, Algorithm.ED25519])


def sealed(**context: str) -> bytes:
    ciphertext, _ = material.encrypt(SECRET, new_id(), 1, b"attack at dawn", TENANT, context)
    return ciphertext


@given(plaintext=st.binary(max_size=200), context=CONTEXTS, version=st.integers(1, 2**31 - 1))
def test_what_was_encrypted_is_decrypted(plaintext: bytes, context: dict[str, str], version: int) -> None:
    key_id = new_id()
    ciphertext, label = material.encrypt(SECRET, key_id, version, plaintext, TENANT, context)
    assert material.decrypt(SECRET, ciphertext, TENANT, dict(reversed(context.items()))) == plaintext
    assert material.read_label(ciphertext) == label
    assert (label.key_id, label.version) == (key_id, version)


def test_every_single_bit_counts() -> None:
    ciphertext = sealed()
    for bit in range(len(ciphertext) * 8):
        changed = bytearray(ciphertext)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CiphertextInvalid):
            material.decrypt(SECRET, bytes(changed), TENANT, {})


def test_a_part_of_a_ciphertext_is_none() -> None:
    ciphertext = sealed()
    for length in range(len(ciphertext)):
        with pytest.raises(CiphertextInvalid):
            material.decrypt(SECRET, ciphertext[:length], TENANT, {})


@given(garbage=st.binary(max_size=120))
def test_garbage_is_refused_and_breaks_nothing(garbage: bytes) -> None:
    with pytest.raises(CiphertextInvalid):
        material.decrypt(SECRET, garbage, TENANT, {})


@given(context=CONTEXTS, other=CONTEXTS)
def test_another_context_does_not_open_it(context: dict[str, str], other: dict[str, str]) -> None:
    ciphertext = sealed(**context)
    if context == other:
        assert material.decrypt(SECRET, ciphertext, TENANT, other)
    else:
        with pytest.raises(CiphertextInvalid):
            material.decrypt(SECRET, ciphertext, TENANT, other)


def test_names_and_values_of_a_context_cannot_run_into_each_other() -> None:
    with pytest.raises(CiphertextInvalid):
        material.decrypt(SECRET, sealed(ab="c"), TENANT, {"a": "bc"})
    with pytest.raises(CiphertextInvalid):
        material.decrypt(SECRET, sealed(), "acm", {"e": ""})


def test_another_tenant_does_not_open_it() -> None:
    with pytest.raises(CiphertextInvalid):
        material.decrypt(SECRET, sealed(), "acme2", {})


@SIGNERS
@given(message=st.binary(max_size=200))
def test_a_signature_verifies_its_message_only(algorithm: Algorithm, message: bytes) -> None:
    key, other = material.generate(algorithm), material.generate(algorithm)
    assert key.public is not None
    assert other.public is not None
    signature = material.sign(key.secret, message)
    assert len(signature) == 64
    assert material.verifies(key.public, message, signature)
    assert not material.verifies(key.public, message + b".", signature)
    assert not material.verifies(other.public, message, signature)


@SIGNERS
def test_every_bit_of_a_signature_counts(algorithm: Algorithm) -> None:
    key = material.generate(algorithm)
    assert key.public is not None
    signature = material.sign(key.secret, b"message")
    for bit in range(len(signature) * 8):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        assert not material.verifies(key.public, b"message", bytes(changed))
    assert not material.verifies(key.public, b"message", bytes(64))
    assert not material.verifies(key.public, b"message", signature[:-1])


@SIGNERS
def test_public_keys_are_pem(algorithm: Algorithm) -> None:
    key = material.generate(algorithm)
    assert key.public is not None
    assert load_pem_public_key(material.pem(key.public).encode())
