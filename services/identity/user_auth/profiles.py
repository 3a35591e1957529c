"""What is personal about users, their address and name: sealed with a key of each user's own.

Addresses are compared, and found, by a keyed digest. Nobody can therefore search for a part of one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import email_validator

from nexus.type.v1.faults import InvalidRequest
from services.chassis.context import current_tenant
from services.chassis.database import NO_NUL
from services.chassis.fields import FieldCipher
from services.chassis.sealing import Sealer

_FIELD = "users.profile"


@dataclass(frozen=True)
class Profile:
    email: str
    display_name: str


@dataclass(frozen=True)
class Address:
    """An e-mail address as it is compared: normalised, in lower case."""

    digest: bytes
    """Of the address and the tenant: it says nothing to those who read it, and nothing to other tenants."""
    text: str
    """To look for it among rows that have not been sealed yet."""


class Profiles:
    """Of users of the call's tenant."""

    def __init__(self, cipher: FieldCipher, sealer: Sealer) -> None:
        self._cipher = cipher
        self._sealer = sealer

    def address(self, email: str) -> Address:
        """One that cannot be parsed belongs to nobody and is compared as it is."""
        try:
            text = email_validator.validate_email(email, check_deliverability=False).normalized.casefold()
        except email_validator.EmailNotValidError:
            text = email.casefold()
        return Address(self._sealer.digest(f"{current_tenant()} {text}".encode()), text)

    def digest_of(self, user: Mapping[str, Any]) -> bytes:
        """Of a user's address."""
        digest: bytes | None = user["email_digest"]
        return digest if digest is not None else self.address(user["email"]).digest

    async def seal(self, user_id: str, profile: Profile) -> bytes:
        if "\0" in profile.email + profile.display_name:
            raise InvalidRequest(summary=NO_NUL)
        text = json.dumps([profile.email, profile.display_name])
        return await self._cipher.seal(text.encode(), subject=user_id, field=_FIELD)

    async def of(self, user: Mapping[str, Any]) -> Profile:
        if user["profile_sealed"] is None:
            return _unsealed(user)
        return _profile(await self._cipher.open(user["profile_sealed"], subject=user["user_id"], field=_FIELD))

    async def of_all(self, users: Sequence[Mapping[str, Any]]) -> dict[str, Profile]:
        """By user id. A user who has just been erased has none any more."""
        sealed = [(user["user_id"], user["profile_sealed"]) for user in users if user["profile_sealed"] is not None]
        opened = await self._cipher.open_rows(sealed, field=_FIELD)
        profiles = {user["user_id"]: _unsealed(user) for user in users if user["profile_sealed"] is None}
        for (user_id, _), text in zip(sealed, opened, strict=True):
            if text is not None:
                profiles[user_id] = _profile(text)
        return profiles

    def forget(self, user_id: str) -> None:
        """Of an erased user."""
        self._cipher.forget(user_id)


def _unsealed(user: Mapping[str, Any]) -> Profile:
    return Profile(user["email"], user["display_name"])


def _profile(text: bytes) -> Profile:
    email, display_name = json.loads(text)
    return Profile(email, display_name)
