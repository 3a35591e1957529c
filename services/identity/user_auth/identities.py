"""What users are called elsewhere, at upstream providers: sealed with a key of each user's own, found by a digest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nexus.identity.user_auth.v1.faults import IdentityTaken
from services.chassis.context import current_tenant
from services.chassis.database import Database
from services.chassis.fields import FieldCipher, seal_rows
from services.chassis.sealing import Sealer
from services.identity.user_auth.store import UNSEALED_IDENTITIES, IdentityStore

_FIELD = "identities.subject"


@dataclass(frozen=True)
class Identity:
    identity_id: str
    issuer: str
    subject: str
    create_time: datetime


class Identities:
    """Of users of the call's tenant."""

    def __init__(self, database: Database, store: IdentityStore, cipher: FieldCipher, sealer: Sealer) -> None:
        self._database = database
        self._store = store
        self._cipher = cipher
        self._sealer = sealer

    async def link(self, user_id: str, issuer: str, subject: str) -> None:
        """Raises IdentityTaken when it is another user's."""
        sealed = await self._cipher.seal(subject.encode(), subject=user_id, field=_FIELD)
        async with self._database.transaction():
            owner = await self.user_of(issuer, subject)
            if owner is None:
                owner = await self._store.link(user_id, issuer, sealed, self._digest(issuer, subject))
        if owner != user_id:
            raise IdentityTaken()

    async def user_of(self, issuer: str, subject: str) -> str | None:
        return await self._store.user_of(issuer, subject, self._digest(issuer, subject))

    async def of(self, user_id: str) -> list[Identity]:
        rows = await self._store.of(user_id)
        subjects = await self._subjects(rows)
        return [
            Identity(row["identity_id"], row["issuer"], subjects[row["identity_id"]], row["create_time"])
            for row in rows
            if row["identity_id"] in subjects
        ]

    async def unlink(self, user_id: str, identity_id: str) -> bool:
        return await self._store.unlink(user_id, identity_id)

    async def seal_rows(self) -> None:
        """Those from before they were sealed."""

        async def seal(row: Mapping[str, Any]) -> None:
            sealed = await self._cipher.seal(row["subject"].encode(), subject=row["user_id"], field=_FIELD)
            await self._store.seal(row["identity_id"], sealed, self._digest(row["issuer"], row["subject"]))

        await seal_rows(self._database, UNSEALED_IDENTITIES, seal)

    async def _subjects(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """By identity, but for those of a user who has just been erased."""
        subjects = {row["identity_id"]: row["subject"] for row in rows if row["subject"] is not None}
        sealed = [row for row in rows if row["subject"] is None]
        opened = await self._cipher.open_rows([(row["user_id"], row["subject_sealed"]) for row in sealed], field=_FIELD)
        for row, subject in zip(sealed, opened, strict=True):
            if subject is not None:
                subjects[row["identity_id"]] = subject.decode()
        return subjects

    def _digest(self, issuer: str, subject: str) -> bytes:
        """Of the tenant, too: it says nothing to other tenants."""
        return self._sealer.digest(json.dumps(["identity", current_tenant(), issuer, subject]).encode())
