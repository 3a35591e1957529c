"""Encryption of single columns: each value under a data key of its tenant and subject, from key-service.

Envelope encryption: a data key seals many values in this process, for a minute; key-service is asked once for it
and keeps nothing of it. Every sealed value carries its data key, encrypted under the subject's key in key-service,
so that destroying that one key makes everything about the subject unreadable, wherever copies of it are
(crypto-shredding). A service that uses this declares key-service among its `calls`.

A sealed value, integers big-endian:

    1 byte   format, 1
    2 bytes  length of the encrypted data key
    n bytes  the encrypted data key, a ciphertext of key-service
    12 bytes nonce, random
    m bytes  AES-256-GCM ciphertext and tag; tenant, subject and field are its associated data
"""

import asyncio
import logging
import os
import struct
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import asyncpg
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nexus.platform.key_service.v1.faults import CiphertextInvalid
from nexus.platform.key_service.v1.vault_pb2 import (
    IssueDataKeyRequest,
    OpenAllRequest,
    OpenRequest,
    ShredSubjectRequest,
)
from nexus.platform.key_service.v1.vault_pb2_grpc import VaultServiceStub
from services.chassis.clients import Clients
from services.chassis.context import acting_for, current_tenant
from services.chassis.database import Database
from services.chassis.errors import Fault
from services.chassis.sealing import SealBroken

Name = TypeVar("Name")

logger = logging.getLogger(__name__)

KEY_NAME = "fields"
REMEMBER_SECONDS = 60.0
_REMEMBER = 10_000
_FORMAT = 1
_HEAD = struct.Struct(">BH")
_NONCE_BYTES = 12
_OPEN_AT_ONCE = 1_000


@dataclass(frozen=True)
class _DataKey:
    aead: AESGCM
    encrypted: bytes
    expires: float
    """On the clock of `time.monotonic`."""


class FieldCipher:
    """Seals and opens columns, for the tenant of the call or of `acting_for`.

    All methods raise key-service's faults: SubjectShredded when something is to be sealed for a subject that was
    shredded, KeyNotUsable when something of it is to be opened.
    """

    def __init__(self, clients: Clients, *, remember_seconds: float = REMEMBER_SECONDS) -> None:
        """`remember_seconds` is how long a data key may be used without asking: a subject that another process
        shreds can be read here so much longer."""
        self._vault = clients.stub(VaultServiceStub)
        self._remember_seconds = remember_seconds
        self._to_seal: OrderedDict[tuple[str, str], _DataKey] = OrderedDict()
        self._to_open: OrderedDict[tuple[str, str, bytes], _DataKey] = OrderedDict()

    async def seal(self, value: bytes, *, subject: str, field: str) -> bytes:
        """`field` names the column: a value opens only as what it was sealed as."""
        return (await self.seal_all({field: value}, subject=subject))[field]

    async def open(self, sealed: bytes, *, subject: str, field: str) -> bytes:
        """Raises SealBroken for what was not sealed for this tenant, subject and field, or was changed."""
        return (await self.open_all({field: sealed}, subject=subject))[field]

    async def seal_all(self, values: Mapping[str, bytes], *, subject: str) -> dict[str, bytes]:
        """Several fields of one subject, under one data key."""
        tenant = _tenant()
        key = self._to_seal.get((tenant, subject))
        if key is None or key.expires < time.monotonic():
            issued = await self._vault.IssueDataKey(IssueDataKeyRequest(key=KEY_NAME, subject=subject))
            key = self._data_key(issued.plaintext, issued.ciphertext)
            _remember(self._to_seal, (tenant, subject), key)
            _remember(self._to_open, (tenant, subject, key.encrypted), key)
        return {field: _seal(key, value, tenant, subject, field) for field, value in values.items()}

    async def open_all(self, sealed: Mapping[str, bytes], *, subject: str) -> dict[str, bytes]:
        """Several fields of one subject; asks once for each data key among them. Raises SealBroken."""
        tenant = _tenant()
        encrypted = {field: _encrypted_key(value, field) for field, value in sealed.items()}
        different = set(encrypted.values())
        keys = dict(
            zip(different, await asyncio.gather(*(self._key(tenant, subject, key) for key in different)), strict=True)
        )
        return {field: _open(keys[encrypted[field]], value, tenant, subject, field) for field, value in sealed.items()}

    async def open_rows(self, sealed: Sequence[tuple[str, bytes]], *, field: str) -> list[bytes | None]:
        """One field of many rows, each (subject, sealed value); asks once for all data keys among them.

        None for a row whose subject was shredded. Raises SealBroken.
        """
        tenant = _tenant()
        wanted = [(tenant, subject, _encrypted_key(value, field)) for subject, value in sealed]
        keys = await self._keys(dict.fromkeys(wanted))
        return [
            _open(keys[name], value, tenant, subject, field) if name in keys else None
            for name, (subject, value) in zip(wanted, sealed, strict=True)
        ]

    async def shred(self, subject: str) -> None:
        """Make everything that any service sealed for the subject unreadable, for good."""
        await self._vault.ShredSubject(ShredSubjectRequest(subject=subject))
        self.forget(subject)

    def forget(self, subject: str) -> None:
        """Drop the data keys of a subject that are remembered here: when its keys were shredded elsewhere."""
        about = (_tenant(), subject)
        self._to_seal.pop(about, None)
        for remembered in [remembered for remembered in self._to_open if remembered[:2] == about]:
            del self._to_open[remembered]

    async def _key(self, tenant: str, subject: str, encrypted: bytes) -> _DataKey:
        key = self._to_open.get((tenant, subject, encrypted))
        if key is None or key.expires < time.monotonic():
            try:
                opened = await self._vault.Open(OpenRequest(ciphertext=encrypted))
            except CiphertextInvalid:
                raise SealBroken(subject) from None
            key = self._data_key(opened.plaintext, encrypted)
            _remember(self._to_open, (tenant, subject, encrypted), key)
        return key

    async def _keys(self, names: Iterable[tuple[str, str, bytes]]) -> dict[tuple[str, str, bytes], _DataKey]:
        """Those of the data keys that can be opened."""
        keys, unknown = {}, []
        for name in names:
            key = self._to_open.get(name)
            if key is None or key.expires < time.monotonic():
                unknown.append(name)
            else:
                keys[name] = key
        for first in range(0, len(unknown), _OPEN_AT_ONCE):
            some = unknown[first : first + _OPEN_AT_ONCE]
            try:
                answer = await self._vault.OpenAll(OpenAllRequest(ciphertexts=[encrypted for _, _, encrypted in some]))
            except CiphertextInvalid:
                raise SealBroken("a data key") from None
            for name, opened in zip(some, answer.opened, strict=True):
                if opened.HasField("plaintext"):
                    keys[name] = self._data_key(opened.plaintext, name[2])
                    _remember(self._to_open, name, keys[name])
        return keys

    def _data_key(self, plaintext: bytes, encrypted: bytes) -> _DataKey:
        return _DataKey(AESGCM(plaintext), encrypted, time.monotonic() + self._remember_seconds)


async def seal_rows(
    database: Database, unsealed: str, seal: Callable[[asyncpg.Record], Awaitable[None]], *, at_once: int = 500
) -> None:
    """Seal rows from before their columns were: a job, for `service.every`.

    `unsealed` selects such rows of all tenants, `tenant_id` among their columns, up to `$1` of them. `seal` writes one
    back sealed, if it is still as it was read; it is called as of the row's tenant. A row that cannot be sealed is
    logged, and keeps no other from it.
    """
    async with database.transaction(platform_wide=True):
        rows = await database.fetch(unsealed, at_once)
    for row in rows:
        with acting_for(row["tenant_id"]):
            try:
                await seal(row)
            except (Fault, asyncpg.PostgresError):
                logger.exception("a row stays unsealed for now", extra={"tenant": row["tenant_id"]})


def _tenant() -> str:
    tenant = current_tenant()
    assert tenant is not None, "a field belongs to a tenant: call this in a call of one, or in acting_for"
    return tenant


def _remember(keys: "OrderedDict[Name, _DataKey]", name: Name, key: _DataKey) -> None:
    keys[name] = key
    while len(keys) > _REMEMBER:
        keys.popitem(last=False)


def _seal(key: _DataKey, value: bytes, tenant: str, subject: str, field: str) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    ciphertext = key.aead.encrypt(nonce, value, _associated(tenant, subject, field))
    return _HEAD.pack(_FORMAT, len(key.encrypted)) + key.encrypted + nonce + ciphertext


def _open(key: _DataKey, sealed: bytes, tenant: str, subject: str, field: str) -> bytes:
    nonce_at = _HEAD.size + len(key.encrypted)
    nonce, ciphertext = sealed[nonce_at : nonce_at + _NONCE_BYTES], sealed[nonce_at + _NONCE_BYTES :]
    try:
        return key.aead.decrypt(nonce, ciphertext, _associated(tenant, subject, field))
    except (InvalidTag, ValueError) as error:
        raise SealBroken(field) from error


def _encrypted_key(sealed: bytes, field: str) -> bytes:
    if len(sealed) < _HEAD.size:
        raise SealBroken(field)
    form, length = _HEAD.unpack_from(sealed)
    if form != _FORMAT or not length:
        raise SealBroken(field)
    return sealed[_HEAD.size : _HEAD.size + length]


def _associated(tenant: str, subject: str, field: str) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in (tenant.encode(), subject.encode(), field.encode()))
