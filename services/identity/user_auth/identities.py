"""What users are called elsewhere, at upstream providers: sealed with a key of each user's own, found by a digest."""

import json
from collections.abc import Sequence

from nexus.identity.user_auth.v1 import user_auth_pb2 as pb
from nexus.identity.user_auth.v1.faults import IdentityTaken
from services.chassis.context import current_tenant
from services.chassis.fields import FieldCipher, seal_rows
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf
from services.chassis.service import Service
from services.chassis.table import Row, Table

_FIELD = "identities.subject"
_UNSEALED = (
    "SELECT tenant_id, identity_id, user_id, issuer, subject FROM identities WHERE subject_sealed IS NULL LIMIT $1"
)
_identity = MessageOf(pb.LinkedIdentity)


class Identities:
    """Of users of the call's tenant."""

    def __init__(self, service: Service, cipher: FieldCipher) -> None:
        self._database = service.database
        self._table = Table(service.database, "identities", key="identity_id")
        self._cipher = cipher
        self._sealer = service.sealer

    async def link(self, user_id: str, issuer: str, subject: str) -> None:
        """Raises IdentityTaken when it is another user's."""
        sealed = await self._cipher.seal(subject.encode(), subject=user_id, field=_FIELD)
        async with self._database.transaction():
            owner = await self.user_of(issuer, subject)
            if owner is None:
                digest = self._digest(issuer, subject)
                linked = await self._table.insert_new(
                    identity_id=new_id(), user_id=user_id, issuer=issuer, subject_sealed=sealed, subject_digest=digest
                )
                owner = user_id if linked is not None else await self.user_of(issuer, subject)
        if owner != user_id:
            raise IdentityTaken()

    async def user_of(self, issuer: str, subject: str) -> str | None:
        """Rows that are not sealed yet have a `subject`, the others a digest."""
        condition = "(subject_digest = $3 OR issuer = $1 AND subject = $2)"
        rows = await self._table.select(condition, issuer, subject, self._digest(issuer, subject))
        return rows[0]["user_id"] if rows else None

    async def of(self, user_id: str) -> list[pb.LinkedIdentity]:
        rows = await self._table.all(user_id=user_id)
        subjects = await self._subjects(rows)
        return [_identity(row, subject=subjects[row["identity_id"]]) for row in rows if row["identity_id"] in subjects]

    async def unlink(self, user_id: str, identity_id: str) -> int:
        """Returns how many there were."""
        return await self._table.delete(user_id=user_id, identity_id=identity_id)

    async def seal_rows(self) -> None:
        """Those from before they were sealed."""

        async def seal(row: Row) -> None:
            await self._table.update(
                row["identity_id"],
                where={"subject": row["subject"]},
                subject=None,
                subject_sealed=await self._cipher.seal(row["subject"].encode(), subject=row["user_id"], field=_FIELD),
                subject_digest=self._digest(row["issuer"], row["subject"]),
            )

        await seal_rows(self._database, _UNSEALED, seal)

    async def _subjects(self, rows: Sequence[Row]) -> dict[str, str]:
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
