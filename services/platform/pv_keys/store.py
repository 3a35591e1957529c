"""The SQL of pv-keys."""

from datetime import timedelta

from nexus.platform.pv_keys.v1.faults import PrivateKeyNotFound, SigningNotFound
from services.chassis.database import Database
from services.chassis.table import Row, Table
from services.platform.pv_keys.policy import Usage

_SIGNING = """signings.*, ARRAY(
    SELECT a.user_id FROM approvals a
    WHERE a.tenant_id = signings.tenant_id AND a.signing_id = signings.signing_id ORDER BY a.create_time) AS approved_by
"""


class PrivateKeyStore:
    """The private keys of the call's tenant, and what they signed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.keys = Table(database, "private_keys", key="key_id", missing=PrivateKeyNotFound)
        self.signings = Table(database, "signings", key="signing_id", columns=_SIGNING, missing=SigningNotFound)
        self.approvals = Table(database, "approvals", key="user_id")
        self.events = Table(database, "key_events", key="event_id")

    async def in_slot(self, key_id: str, slot: str) -> Row | None:
        return await self._database.fetchrow(
            f"""
            SELECT {_SIGNING} FROM signings
            WHERE tenant_id = nexus.tenant_id() AND key_id = $1 AND slot = $2 AND slot <> '' AND state <> 'REJECTED'
            """,
            key_id,
            slot,
        )

    async def set_signed(self, signing_id: str, signature: bytes) -> Row:
        row = await self._database.fetchrow(
            f"""
            UPDATE signings SET state = 'SIGNED', signature = $2, sign_time = clock_timestamp()
            WHERE signing_id = $1 AND state = 'PENDING' RETURNING {_SIGNING}
            """,
            signing_id,
            signature,
        )
        assert row is not None, "its key is locked, so nobody else has signed it"
        return row

    async def usage(self, key_id: str, period: timedelta, asset: str) -> Usage:
        """What the key has signed in the last `period`."""
        row = await self._database.fetchrow(
            """
            SELECT count(*) AS signatures, coalesce(sum(amount) FILTER (WHERE asset = $3), 0)::text AS amount
            FROM signings
            WHERE tenant_id = nexus.tenant_id() AND key_id = $1 AND state = 'SIGNED'
              AND sign_time > clock_timestamp() - $2::interval
            """,
            key_id,
            period,
            asset,
        )
        assert row is not None
        return Usage(row["signatures"], int(row["amount"]))
