"""Second factors: having them, and proving with them who one is."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexus.identity.auth_service.v1.faults import (
    FactorNotFound,
    MfaInvalid,
    MfaLocked,
    PasskeyRefused,
    TooManyFactors,
    TotpAlreadyEnrolled,
)
from services.chassis.database import Database
from services.chassis.fields import FieldCipher, seal_rows
from services.chassis.lockout import Lockout
from services.chassis.sealing import Sealer
from services.identity.auth_service import recovery_codes
from services.identity.auth_service.challenges import Challenge
from services.identity.auth_service.passkeys import Json, PasskeyWrong, RelyingParty, credential_id
from services.identity.auth_service.store import UNSEALED, FactorStore
from services.identity.auth_service.totp import enrolment_uri, new_totp_secret, step_of

Row = Mapping[str, Any]

_TOTP_FIELD = "totp_factors.secret"
_PASSKEY_FIELD, _NAME_FIELD = "passkeys.public_key", "passkeys.name"


@dataclass(frozen=True)
class Factors:
    """What a user can prove themselves with, beside the password."""

    totp: bool
    passkeys: Sequence[Row]
    recovery_codes_left: int

    def __bool__(self) -> bool:
        return self.totp or bool(self.passkeys)


class FactorRules:
    """Use cases of second factors, over the rows of the call's tenant."""

    def __init__(
        self,
        database: Database,
        store: FactorStore,
        cipher: FieldCipher,
        sealer: Sealer,
        lockout: Lockout,
        party: RelyingParty,
        max_passkeys: int,
    ) -> None:
        self._database = database
        self._store = store
        self._cipher = cipher
        self._sealer = sealer
        self._lockout = lockout
        self._party = party
        self._max_passkeys = max_passkeys

    async def of(self, user_id: str) -> Factors:
        totp = await self._store.totp(user_id)
        return Factors(
            totp is not None and totp["confirmed"],
            await self._store.passkeys(user_id),
            await self._store.recovery_codes_left(user_id),
        )

    async def enroll_totp(self, user_id: str, *, account: str, issuer: str) -> tuple[str, str]:
        """Returns the URI for the QR code, and the secret."""
        secret = new_totp_secret()
        sealed = await self._cipher.seal(secret.encode(), subject=user_id, field=_TOTP_FIELD)
        if not await self._store.put_totp(user_id, sealed):
            raise TotpAlreadyEnrolled()
        return enrolment_uri(secret, account=account, issuer=issuer), secret

    async def confirm_totp(self, user_id: str, code: str) -> list[str]:
        """Returns recovery codes, if the user had none."""
        factor = await self._store.totp(user_id)
        if factor is None:
            raise FactorNotFound()
        if factor["confirmed"]:
            raise TotpAlreadyEnrolled()
        await self._require_open(user_id)
        await self._count(user_id, await self._spend_totp(user_id, factor, code, confirm=True))
        return await self._first_recovery_codes(user_id)

    async def remove_totp(self, user_id: str) -> None:
        async with self._database.transaction():
            await self._store.lock_user(user_id)
            if not await self._store.remove_totp(user_id):
                raise FactorNotFound()
            await self._drop_useless_recovery_codes(user_id)

    async def register_passkey(
        self, user_id: str, challenge: Challenge, answer: Json, name: str
    ) -> tuple[Row, list[str]]:
        """Returns the passkey, and recovery codes if the user had none."""
        try:
            new = self._party.register(answer, challenge=challenge.signed)
        except PasskeyWrong as error:
            raise PasskeyRefused(why=error) from None
        sealed = await self._seal_passkey(user_id, new.public_key, name)
        async with self._database.transaction():
            await self._store.lock_user(user_id)
            await self.require_room(user_id)
            passkey = await self._store.insert_passkey(
                new.credential_id, user_id, sealed[_PASSKEY_FIELD], new.sign_count, sealed[_NAME_FIELD], new.backed_up
            )
        if passkey is None:
            raise PasskeyRefused(why="it is registered already")
        return passkey, await self._first_recovery_codes(user_id)

    async def require_room(self, user_id: str) -> list[Row]:
        """The passkeys of a user who may have one more. Raises TooManyFactors."""
        present = await self._store.passkeys(user_id)
        if len(present) >= self._max_passkeys:
            raise TooManyFactors(limit=self._max_passkeys)
        return list(present)

    async def remove_passkey(self, user_id: str, credential: bytes) -> None:
        async with self._database.transaction():
            await self._store.lock_user(user_id)
            if not await self._store.remove_passkey(user_id, credential):
                raise FactorNotFound()
            await self._drop_useless_recovery_codes(user_id)

    async def new_recovery_codes(self, user_id: str) -> list[str]:
        async with self._database.transaction():
            await self._store.lock_user(user_id)
            if not await self.of(user_id):
                raise FactorNotFound()
            return await self._replace_recovery_codes(user_id)

    async def prove_by_totp(self, user_id: str, code: str) -> None:
        """Raises MfaInvalid or MfaLocked."""
        await self._require_open(user_id)
        factor = await self._store.totp(user_id)
        right = factor is not None and factor["confirmed"] and await self._spend_totp(user_id, factor, code)
        await self._count(user_id, right)

    async def prove_by_recovery_code(self, user_id: str, code: str) -> None:
        """Raises MfaInvalid or MfaLocked."""
        await self._require_open(user_id)
        await self._count(user_id, await self._store.spend_recovery_code(user_id, self._hash(user_id, code)))

    async def prove_by_passkey(self, challenge: Challenge, answer: Json, *, verify_user: bool) -> str:
        """Returns the user whose passkey it is: the challenge's, if that is for one. Raises MfaInvalid."""
        passkey = await self._store.passkey(credential_id(answer))
        if passkey is None or challenge.user_id not in ("", passkey["user_id"]):
            raise MfaInvalid()
        user_id: str = passkey["user_id"]
        try:
            used = self._party.check(
                answer,
                challenge=challenge.signed,
                user_id=user_id,
                public_key=await self._public_key(passkey),
                sign_count=passkey["sign_count"],
                verify_user=verify_user,
            )
        except PasskeyWrong:
            raise MfaInvalid() from None
        if not await self._store.use_passkey(passkey["credential_id"], used.sign_count):
            raise MfaInvalid()
        return user_id

    async def names_of(self, passkeys: Sequence[Row]) -> dict[bytes, str]:
        """What their user calls them, by credential; but for those of a user who has just been erased."""
        names = {each["credential_id"]: each["name"] for each in passkeys if each["name"] is not None}
        sealed = [each for each in passkeys if each["name"] is None]
        opened = await self._cipher.open_rows(
            [(each["user_id"], each["name_sealed"]) for each in sealed], field=_NAME_FIELD
        )
        for each, name in zip(sealed, opened, strict=True):
            if name is not None:
                names[each["credential_id"]] = name.decode()
        return names

    async def seal_passkeys(self) -> None:
        """Those from before their public keys and names were sealed."""

        async def seal(passkey: Row) -> None:
            names = await self.names_of([passkey])
            public_key, name = await self._public_key(passkey), names[passkey["credential_id"]]
            sealed = await self._seal_passkey(passkey["user_id"], public_key, name)
            await self._store.seal_passkey(passkey["credential_id"], sealed[_PASSKEY_FIELD], sealed[_NAME_FIELD])

        await seal_rows(self._database, UNSEALED, seal)

    async def _seal_passkey(self, user_id: str, public_key: bytes, name: str) -> dict[str, bytes]:
        return await self._cipher.seal_all({_PASSKEY_FIELD: public_key, _NAME_FIELD: name.encode()}, subject=user_id)

    async def _public_key(self, passkey: Row) -> bytes:
        sealed = passkey["public_key_sealed"]
        if sealed is None:
            unsealed: bytes = passkey["public_key"]
            return unsealed
        return await self._cipher.open(sealed, subject=passkey["user_id"], field=_PASSKEY_FIELD)

    async def _spend_totp(self, user_id: str, factor: Row, code: str, *, confirm: bool = False) -> bool:
        sealed = factor["secret_sealed"]
        secret = (await self._cipher.open(sealed, subject=user_id, field=_TOTP_FIELD)).decode()
        step = step_of(secret, code, time.time())
        return step is not None and await self._store.spend_totp_step(user_id, sealed, step, confirm=confirm)

    async def _require_open(self, user_id: str) -> None:
        _raise_if_locked(await self._lockout.seconds_left(_subject(user_id)))

    async def _count(self, user_id: str, right: bool) -> None:
        """Raises MfaLocked for an answer that must not count, MfaInvalid for a wrong one."""
        _raise_if_locked(await self._lockout.settle(_subject(user_id), right=right))
        if not right:
            raise MfaInvalid()

    async def _first_recovery_codes(self, user_id: str) -> list[str]:
        async with self._database.transaction():
            await self._store.lock_user(user_id)
            if await self._store.recovery_codes_left(user_id):
                return []
            return await self._replace_recovery_codes(user_id)

    async def _replace_recovery_codes(self, user_id: str) -> list[str]:
        codes = recovery_codes.new_codes()
        await self._store.replace_recovery_codes(user_id, [self._hash(user_id, code) for code in codes])
        return codes

    async def _drop_useless_recovery_codes(self, user_id: str) -> None:
        """Without a factor there is nothing to recover."""
        if not await self.of(user_id):
            await self._store.replace_recovery_codes(user_id, [])

    def _hash(self, user_id: str, code: str) -> bytes:
        return self._sealer.digest(f"recovery {user_id} {recovery_codes.normalized(code)}".encode())


async def erase_factors(store: FactorStore, lockout: Lockout, user_id: str) -> None:
    await store.erase_user(user_id)
    await lockout.clear(_subject(user_id))


def _subject(user_id: str) -> bytes:
    """What wrong answers are counted by."""
    return uuid.UUID(user_id).bytes


def _raise_if_locked(seconds: int) -> None:
    if seconds:
        raise MfaLocked(seconds=seconds, retry_after=seconds)
