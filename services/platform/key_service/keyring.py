"""What key-service does, one method a use case."""

import hmac
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta

from nexus.platform.key_service.v1.faults import (
    CiphertextInvalid,
    KeyNameTaken,
    KeyNotFound,
    SubjectShredded,
)
from nexus.type.v1.faults import Conflict
from services.chassis.clock import now
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.sealing import SealBroken
from services.platform.key_service import material
from services.platform.key_service.lifecycle import PEOPLE, Key, State
from services.platform.key_service.material import Algorithm, Label
from services.platform.key_service.roots import Roots, VaultError
from services.platform.key_service.store import KeyStore, Use, Version

logger = logging.getLogger(__name__)


class Keyring:
    """The keys of the call's tenant. An `owner` is a service's id, or PEOPLE."""

    def __init__(self, database: Database, roots: Roots) -> None:
        self._database = database
        self._roots = roots
        self._store = KeyStore(database)

    # Making and finding.

    async def create(
        self,
        tenant_id: str,
        owner: str,
        name: str,
        subject: str,
        algorithm: Algorithm,
        rotation_period: timedelta | None,
    ) -> Key:
        """Raises KeyNameTaken, SubjectShredded."""
        key_id, first = new_id(), material.generate(algorithm)
        wrapped = await self._roots.current.wrap(first.secret, _purpose(tenant_id, key_id, 1))
        async with self._database.transaction():
            if subject and await self._store.subject_is_shredded(subject):
                raise SubjectShredded()
            key = await self._store.insert(key_id, owner, name, subject, algorithm, rotation_period)
            if key is None:
                raise KeyNameTaken(name=name)
            await self._store.insert_version(key, 1, wrapped, first.public)
        return key

    async def ensure(
        self,
        tenant_id: str,
        owner: str,
        name: str,
        subject: str,
        algorithm: Algorithm,
        rotation_period: timedelta | None,
    ) -> Version:
        """The primary version of the key, which is made if there is none. Raises SubjectShredded."""
        found = await self._store.primary_named(owner, name, subject)
        if found is None:
            try:
                await self.create(tenant_id, owner, name, subject, algorithm, rotation_period)
            except KeyNameTaken:
                logger.info("another call has made the key at the same time", extra={"key": name})
            found = await self._store.primary_named(owner, name, subject)
            if found is None:
                raise Conflict(retry_after=0.05)
        return found

    async def get(self, key_id: str) -> Key:
        key = await self._store.by_id(key_id)
        if key is None:
            raise KeyNotFound(key=key_id)
        return key

    async def named(self, owner: str, name: str, subject: str) -> Key:
        key = await self._store.named(owner, name, subject)
        if key is None:
            raise KeyNotFound(key=name)
        return key

    async def primary(self, key_id: str) -> Version:
        """The primary version of a key of the tenant's people. Raises KeyNotFound, KeyOfService."""
        version = await self._store.version(key_id)
        if version is None:
            raise KeyNotFound(key=key_id)
        version.key.require_people()
        return version

    async def primary_named(self, owner: str, name: str, subject: str) -> Version:
        version = await self._store.primary_named(owner, name, subject)
        if version is None:
            raise KeyNotFound(key=name)
        return version

    async def public_keys(self, key: Key) -> list[Version]:
        key.require_purpose("sign")
        return await self._store.living_versions(key.key_id)

    # Using.

    async def encrypt(self, primary: Version, plaintext: bytes, use: Use) -> bytes:
        secret = await self._secret(primary, "encrypt")
        ciphertext, label = _encrypt(primary, secret, plaintext, use.context)
        await self._record(primary, use, made=label)
        return ciphertext

    async def generate_data_key(self, primary: Version, use: Use) -> tuple[bytes, bytes]:
        """256 random bits, in clear and encrypted."""
        data_key = os.urandom(material.DATA_KEY_BYTES)
        return data_key, await self.encrypt(primary, data_key, use)

    async def decrypt(self, owner: str, ciphertext: bytes, use: Use) -> tuple[bytes, Version]:
        """Raises CiphertextInvalid, KeyNotFound, KeyOfService, KeyNotUsable, VersionTooOld."""
        plaintext, version = await self._open(owner, ciphertext, use)
        await self._record(version, use)
        return plaintext, version

    async def decrypt_all(self, owner: str, ciphertexts: Sequence[bytes], use: Use) -> list[bytes | None]:
        """Of as many keys, with two statements. None where the key may not be used.

        Raises CiphertextInvalid, KeyNotFound.
        """
        labels = [material.read_label(ciphertext) for ciphertext in ciphertexts]
        versions = await self._store.versions({(label.key_id, label.version) for label in labels})
        if any(version.key.owner != owner for version in versions.values()):
            raise KeyNotFound(key="of another service")
        usable = await self._store.record_all(list(versions.values()), use)
        opened: list[bytes | None] = []
        for label, ciphertext in zip(labels, ciphertexts, strict=True):
            version = versions.get((label.key_id, label.version))
            if version is None:
                raise CiphertextInvalid()
            if version.key.key_id not in usable:
                opened.append(None)
                continue
            secret = await self._secret(version, "encrypt")
            opened.append(material.decrypt(secret, ciphertext, version.key.tenant_id, use.context))
        return opened

    async def rewrap(self, owner: str, ciphertext: bytes, use: Use) -> tuple[bytes, int]:
        """The same plaintext under the primary version; a ciphertext that is under it already, as it is."""
        plaintext, version = await self._open(owner, ciphertext, use)
        if version.version == version.key.primary_version:
            await self._record(version, use)
            return ciphertext, version.version
        primary = await self._store.version(version.key.key_id)
        assert primary is not None, "a key has a primary version"
        secret = await self._secret(primary, "encrypt")
        fresh, label = _encrypt(primary, secret, plaintext, use.context)
        await self._record(primary, use, made=label, replaced=material.read_label(ciphertext))
        return fresh, primary.version

    async def sign(self, primary: Version, message: bytes, use: Use) -> bytes:
        signature = material.sign(await self._secret(primary, "sign"), message)
        await self._record(primary, use)
        return signature

    async def verify(self, primary: Version, message: bytes, signature: bytes, version: int, use: Use) -> bool:
        """With one version, or with any if it is 0."""

        async def made_by(candidate: Version) -> bool:
            assert candidate.public is not None, "a signing key has a public part"
            return material.verifies(candidate.public, message, signature)

        return await self._any(primary, "sign", version, made_by, use)

    async def compute_hmac(self, primary: Version, message: bytes, use: Use) -> bytes:
        mac = material.mac(await self._secret(primary, "authenticate"), message)
        await self._record(primary, use)
        return mac

    async def verify_hmac(self, primary: Version, message: bytes, mac: bytes, version: int, use: Use) -> bool:
        """With one version, or with any if it is 0."""

        async def made_by(candidate: Version) -> bool:
            secret = await self._secret(candidate, "authenticate")
            return hmac.compare_digest(material.mac(secret, message), mac)

        return await self._any(primary, "authenticate", version, made_by, use)

    # Looking after.

    async def rotate(self, key_id: str) -> Key:
        async with self._database.transaction():
            key = await self._locked(key_id)
            key.require_state(State.ENABLED, State.DISABLED)
            return await self._rotate(key)

    async def set_rotation_period(self, key_id: str, period: timedelta | None) -> Key:
        async with self._database.transaction():
            key = await self._locked(key_id)
            key.require_state(State.ENABLED, State.DISABLED)
            return await self._store.set_rotation_period(key, period)

    async def set_minimum_version(self, key_id: str, version: int, *, abandon_older: bool) -> Key:
        async with self._database.transaction():
            key = await self._locked(key_id)
            older = await self._store.count_ciphertexts(key, version)
            key.check_minimum(version, older, abandon_older=abandon_older)
            return await self._store.set_minimum_version(key, version)

    async def set_enabled(self, key_id: str, *, enabled: bool) -> Key:
        async with self._database.transaction():
            key = await self._locked(key_id)
            key.require_people()
            key.require_state(State.ENABLED, State.DISABLED)
            return await self._store.set_state(key, State.ENABLED if enabled else State.DISABLED)

    async def schedule_destruction(self, key_id: str, delay: timedelta, shortest: timedelta) -> Key:
        async with self._database.transaction():
            key = await self._locked(key_id)
            key.check_destruction(delay, shortest)
            return await self._store.set_state(key, State.DESTROYING, now() + delay)

    async def cancel_destruction(self, key_id: str) -> Key:
        async with self._database.transaction():
            key = await self._locked(key_id)
            key.check_cancel()
            return await self._store.set_state(key, State.DISABLED)

    async def destroy(self, key: Key) -> Key:
        """Now and for good; a destroyed key stays as it is."""
        async with self._database.transaction():
            key = await self._locked(key.key_id)
            return key if key.state is State.DESTROYED else await self._store.destroy(key)

    async def shred(self, subject: str) -> int:
        """Destroy what any service has for a subject; returns how many keys."""
        async with self._database.transaction():
            keys = await self._store.shred_subject(subject)
            for key in keys:
                await self._store.destroy(key)
        return len(keys)

    # Jobs, over all tenants. They bear running in several replicas at once.

    async def rotate_due(self) -> int:
        """Returns how many keys it rotated."""
        return await self._all_due(self._store.due_for_rotation, self._rotate)

    async def destroy_due(self) -> int:
        """Returns how many keys it destroyed."""
        return await self._all_due(self._store.due_for_destruction, self._store.destroy)

    async def move_to_current_root(self, most: int = sys.maxsize) -> int:
        """Wrap anew what an older root, or an older version of it, has wrapped; returns how many versions."""
        generation = await self._roots.current.generation()
        moved, last = 0, None
        while moved < most:
            async with self._database.transaction(platform_wide=True):
                batch = await self._store.wrapped_otherwise(generation, last)
                moved += sum([await self._move(version) for version in batch])
            if not batch:
                break
            last = batch[-1]
        return moved

    async def _move(self, version: Version) -> bool:
        """Whether it could be wrapped anew."""
        assert version.wrapped is not None, "only what is there can be wrapped anew"
        purpose = _purpose(version.key.tenant_id, version.key.key_id, version.version)
        try:
            renewed = await self._roots.renew(version.wrapped, purpose)
        except (SealBroken, VaultError):
            logger.exception("a key cannot be unwrapped", extra={"key": version.key.key_id})
            return False
        await self._store.set_wrapped(version, renewed)
        return True

    async def wrapped_by(self) -> tuple[str, dict[str, int]]:
        """The root that wraps now, and how many versions of all tenants' keys each has wrapped."""
        async with self._database.transaction(platform_wide=True):
            return await self._roots.current.generation(), await self._store.count_wrapped()

    async def forget_uses(self, keep: timedelta) -> None:
        await self._store.forget_uses(keep)

    async def _all_due(
        self, next_batch: Callable[[], Awaitable[list[Key]]], tend: Callable[[Key], Awaitable[Key]]
    ) -> int:
        total = 0
        while True:
            async with self._database.transaction(platform_wide=True):
                batch = await next_batch()
                for key in batch:
                    await tend(key)
            total += len(batch)
            if not batch:
                return total

    async def _rotate(self, key: Key) -> Key:
        """Of a locked key."""
        version, fresh = key.primary_version + 1, material.generate(key.algorithm)
        wrapped = await self._roots.current.wrap(fresh.secret, _purpose(key.tenant_id, key.key_id, version))
        await self._store.insert_version(key, version, wrapped, fresh.public)
        return await self._store.add_primary(key, version)

    async def _locked(self, key_id: str) -> Key:
        key = await self._store.locked(key_id)
        if key is None:
            raise KeyNotFound(key=key_id)
        return key

    async def _secret(self, version: Version, purpose: str) -> bytes:
        key = version.key
        key.require_state(State.ENABLED)
        key.require_purpose(purpose)
        key.require_version(version.version)
        assert version.wrapped is not None, "only a destroyed key has no material"
        return await self._roots.unwrap(version.wrapped, _purpose(key.tenant_id, key.key_id, version.version))

    async def _open(self, owner: str, ciphertext: bytes, use: Use) -> tuple[bytes, Version]:
        label = material.read_label(ciphertext)
        version = await self._store.version(label.key_id, label.version)
        if version is None:
            raise CiphertextInvalid()
        if owner == PEOPLE:
            version.key.require_people()
        elif version.key.owner != owner:
            raise KeyNotFound(key=label.key_id)
        secret = await self._secret(version, "encrypt")
        try:
            return material.decrypt(secret, ciphertext, version.key.tenant_id, use.context), version
        except CiphertextInvalid:
            await self._record(version, use, succeeded=False)
            raise

    async def _any(
        self, primary: Version, purpose: str, version: int, made_by: Callable[[Version], Awaitable[bool]], use: Use
    ) -> bool:
        key = primary.key
        key.require_state(State.ENABLED)
        key.require_purpose(purpose)
        key.require_version(version or key.primary_version)
        candidates = [found for found in await self._store.living_versions(key.key_id) if version in (0, found.version)]
        for candidate in candidates:
            if await made_by(candidate):
                await self._record(candidate, use)
                return True
        await self._record(primary, use, succeeded=False)
        return False

    async def _record(
        self,
        version: Version,
        use: Use,
        *,
        succeeded: bool = True,
        made: Label | None = None,
        replaced: Label | None = None,
    ) -> None:
        """Raises Conflict, whereupon the chassis calls again, when the key has changed under our hands."""
        if not await self._store.record(
            version.key, version.version, use, succeeded=succeeded, made=made, replaced=replaced
        ):
            raise Conflict(retry_after=0.05)


def _encrypt(primary: Version, secret: bytes, plaintext: bytes, context: Mapping[str, str]) -> tuple[bytes, Label]:
    key = primary.key
    return material.encrypt(secret, key.key_id, primary.version, plaintext, key.tenant_id, context)


def _purpose(tenant_id: str, key_id: str, version: int) -> str:
    """What wrapped material is bound to."""
    return f"key {tenant_id} {key_id} {version}"
