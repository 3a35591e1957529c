"""A sealed value opens for the service and the purpose it was sealed for, unchanged, and for nobody else."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.sealing import SealBroken, Sealer

ROOT_KEY = bytes(range(32))
SEALER = Sealer(ROOT_KEY, "token-mgr")
PURPOSES = st.text(st.characters(codec="utf-8"))


@given(value=st.binary(), purpose=PURPOSES)
def test_what_is_sealed_opens(value: bytes, purpose: str) -> None:
    assert Sealer(ROOT_KEY, "token-mgr").open(SEALER.seal(value, purpose), purpose) == value


@given(value=st.binary(min_size=8), purpose=PURPOSES)
def test_the_value_cannot_be_seen_and_no_two_seals_are_alike(value: bytes, purpose: str) -> None:
    first, second = SEALER.seal(value, purpose), SEALER.seal(value, purpose)
    assert first != second
    assert value not in first


@given(value=st.binary(), purpose=PURPOSES, other=PURPOSES)
def test_another_purpose_does_not_open_it(value: bytes, purpose: str, other: str) -> None:
    if purpose != other:
        with pytest.raises(SealBroken):
            SEALER.open(SEALER.seal(value, purpose), other)


@given(value=st.binary())
def test_another_service_or_root_key_does_not_open_it(value: bytes) -> None:
    sealed = SEALER.seal(value, "column")
    for other in (Sealer(ROOT_KEY, "user-auth"), Sealer(os.urandom(32), "token-mgr")):
        with pytest.raises(SealBroken):
            other.open(sealed, "column")


@given(value=st.binary(), data=st.data())
def test_one_flipped_bit_breaks_the_seal(value: bytes, data: st.DataObject) -> None:
    sealed = bytearray(SEALER.seal(value, "column"))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealBroken):
        SEALER.open(bytes(sealed), "column")


@given(garbage=st.binary(max_size=64))
def test_garbage_is_refused_as_a_broken_seal(garbage: bytes) -> None:
    with pytest.raises(SealBroken):
        SEALER.open(garbage, "column")


@given(value=st.binary(), data=st.data())
def test_a_value_cut_short_is_refused(value: bytes, data: st.DataObject) -> None:
    sealed = SEALER.seal(value, "column")
    length = data.draw(st.integers(0, len(sealed) - 1))
    with pytest.raises(SealBroken):
        SEALER.open(sealed[:length], "column")


@given(value=st.binary(), other=st.binary())
def test_digests_are_equal_for_equal_values_of_one_service(value: bytes, other: bytes) -> None:
    assert SEALER.digest(value) == Sealer(ROOT_KEY, "token-mgr").digest(value)
    assert (SEALER.digest(value) == SEALER.digest(other)) == (value == other)
    assert SEALER.digest(value) != Sealer(ROOT_KEY, "user-auth").digest(value)
