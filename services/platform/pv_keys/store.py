"""The SQL of pv-keys."""

from datetime import timedelta

import asyncpg
from google.protobuf import json_format

from nexus.platform.pv_keys.v1.pv_keys_pb2 import SigningPolicy
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.platform.pv_keys.payloads import Payload
from services.platform.pv_keys.policy import Usage

_KEY = """key_id::text, label, curve, hd_root, secret_sealed, public_key, ethereum_account, root_key_id::text, path,
    locked, policy, create_time, proposal_id::text, proposal, proposer_id::text, proposal_approved_by::text[]"""
_SIGNING = """s.signing_id::text, s.key_id::text, s.state, s.request, s.payload, s.signature, s.slot, s.destination,
    s.asset, s.amount::text, s.requester_id::text, s.create_time, s.sign_time,
    ARRAY(SELECT a.user_id::text FROM approvals a
          WHERE a.tenant_id = s.tenant_id AND a.signing_id = s.signing_id ORDER BY a.create_time) AS approved_by"""


class PrivateKeyStore:
    """The private keys of the call's tenant, and what they signed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(
        self,
        key_id: str,
        label: str,
        curve: str,
        secret_sealed: bytes,
        public_key: bytes,
        ethereum_account: str,
        policy: SigningPolicy,
        *,
        hd_root: bool = False,
        root_key_id: str | None = None,
        path: str = "",
    ) -> asyncpg.Record | None:
        """None if there is such a key, or one of the same path under the same root."""
        return await self._database.fetchrow(
            f"""
            INSERT INTO private_keys (key_id, label, curve, secret_sealed, public_key, ethereum_account, policy,
                                      hd_root, root_key_id, path)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
            ON CONFLICT DO NOTHING RETURNING {_KEY}
            """,
            key_id,
            label,
            curve,
            secret_sealed,
            public_key,
            ethereum_account,
            policy_json(policy),
            hd_root,
            root_key_id,
            path,
        )

    async def by_id(self, key_id: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(f"SELECT {_KEY} FROM private_keys WHERE key_id = $1", key_id)

    async def locked(self, key_id: str) -> asyncpg.Record | None:
        """Nobody else signs with the key or changes it until the transaction ends."""
        return await self._database.fetchrow(f"SELECT {_KEY} FROM private_keys WHERE key_id = $1 FOR UPDATE", key_id)

    async def derived(self, root_key_id: str, path: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            f"""
            SELECT {_KEY} FROM private_keys
            WHERE tenant_id = nexus.tenant_id() AND root_key_id = $1 AND path = $2
            """,
            root_key_id,
            path,
        )

    async def same(self, curve: str, public_key: bytes, *, hd_root: bool) -> asyncpg.Record | None:
        """The key with this public part."""
        return await self._database.fetchrow(
            f"""
            SELECT {_KEY} FROM private_keys
            WHERE tenant_id = nexus.tenant_id() AND curve = $1 AND public_key = $2 AND hd_root = $3
            """,
            curve,
            public_key,
            hd_root,
        )

    async def page(self, before: str | None, limit: int) -> list[asyncpg.Record]:
        """The latest first, those made before the key `before`."""
        return await self._database.fetch(
            f"""
            SELECT {_KEY} FROM private_keys
            WHERE tenant_id = nexus.tenant_id() AND ($1::uuid IS NULL OR key_id < $1)
            ORDER BY key_id DESC LIMIT $2
            """,
            before,
            limit,
        )

    async def set_policy(self, key_id: str, policy: SigningPolicy) -> asyncpg.Record | None:
        """Put a policy in force; what was proposed before is forgotten."""
        return await self._database.fetchrow(
            f"""
            UPDATE private_keys
            SET policy = $2, proposal_id = NULL, proposal = NULL, proposer_id = NULL, proposal_approved_by = '{{}}'
            WHERE key_id = $1 RETURNING {_KEY}
            """,
            key_id,
            policy_json(policy),
        )

    async def propose_policy(self, key_id: str, policy: SigningPolicy, proposer_id: str) -> asyncpg.Record | None:
        """Let a policy wait for approvals, in place of any other."""
        return await self._database.fetchrow(
            f"""
            UPDATE private_keys SET proposal_id = $2, proposal = $3, proposer_id = $4, proposal_approved_by = '{{}}'
            WHERE key_id = $1 RETURNING {_KEY}
            """,
            key_id,
            new_id(),
            policy_json(policy),
            proposer_id,
        )

    async def approve_policy(self, key_id: str, user_id: str) -> asyncpg.Record | None:
        """A second approval of the same user changes nothing."""
        return await self._database.fetchrow(
            f"""
            UPDATE private_keys SET proposal_approved_by = array_append(array_remove(proposal_approved_by, $2), $2)
            WHERE key_id = $1 RETURNING {_KEY}
            """,
            key_id,
            user_id,
        )

    async def set_locked(self, key_id: str, *, locked: bool) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            f"UPDATE private_keys SET locked = $2 WHERE key_id = $1 RETURNING {_KEY}", key_id, locked
        )

    async def insert_signing(
        self, key_id: str, payload: Payload, request: bytes, requester_id: str, request_id: str
    ) -> asyncpg.Record:
        row = await self._database.fetchrow(
            f"""
            INSERT INTO signings AS s (signing_id, key_id, state, request, payload, slot, destination, asset, amount,
                                       requester_id, request_id)
            VALUES ($1, $2, 'PENDING', $3, $4, $5, $6, $7, $8::text::numeric, $9, $10) RETURNING {_SIGNING}
            """,
            new_id(),
            key_id,
            request,
            payload.bytes_to_sign,
            payload.slot,
            payload.destination,
            payload.asset,
            str(payload.amount),
            requester_id,
            request_id,
        )
        assert row is not None
        return row

    async def signing(self, signing_id: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(f"SELECT {_SIGNING} FROM signings s WHERE signing_id = $1", signing_id)

    async def requested(self, key_id: str, requester_id: str, request_id: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            f"""
            SELECT {_SIGNING} FROM signings s
            WHERE tenant_id = nexus.tenant_id() AND key_id = $1 AND requester_id = $2 AND request_id = $3
            """,
            key_id,
            requester_id,
            request_id,
        )

    async def in_slot(self, key_id: str, slot: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            f"""
            SELECT {_SIGNING} FROM signings s
            WHERE tenant_id = nexus.tenant_id() AND key_id = $1 AND slot = $2 AND slot <> '' AND state <> 'REJECTED'
            """,
            key_id,
            slot,
        )

    async def set_signed(self, signing_id: str, signature: bytes) -> asyncpg.Record:
        row = await self._database.fetchrow(
            f"""
            UPDATE signings s SET state = 'SIGNED', signature = $2, sign_time = clock_timestamp()
            WHERE signing_id = $1 AND state = 'PENDING' RETURNING {_SIGNING}
            """,
            signing_id,
            signature,
        )
        assert row is not None, "its key is locked, so nobody else has signed it"
        return row

    async def set_rejected(self, signing_id: str) -> asyncpg.Record:
        row = await self._database.fetchrow(
            f"UPDATE signings s SET state = 'REJECTED' WHERE signing_id = $1 RETURNING {_SIGNING}", signing_id
        )
        assert row is not None
        return row

    async def approve(self, signing_id: str, user_id: str) -> None:
        """A second approval of the same user changes nothing."""
        await self._database.execute(
            "INSERT INTO approvals (signing_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING", signing_id, user_id
        )

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

    async def signings(self, key_id: str, before: str | None, limit: int) -> list[asyncpg.Record]:
        """The latest first, those before the signing `before`."""
        return await self._database.fetch(
            f"""
            SELECT {_SIGNING} FROM signings s
            WHERE tenant_id = nexus.tenant_id() AND key_id = $1 AND ($2::uuid IS NULL OR signing_id < $2)
            ORDER BY signing_id DESC LIMIT $3
            """,
            key_id,
            before,
            limit,
        )

    async def note(
        self, key_id: str, action: str, user_id: str, request_id: str, signing_id: str | None = None
    ) -> None:
        """Add to the key's events."""
        await self._database.execute(
            "INSERT INTO key_events (event_id, key_id, action, user_id, request_id, signing_id) "
            "VALUES ($1, $2, $3, $4, $5, $6)",
            new_id(),
            key_id,
            action,
            user_id,
            request_id,
            signing_id,
        )

    async def events(self, key_id: str, before: str | None, limit: int) -> list[asyncpg.Record]:
        """The latest first, those before the event `before`."""
        return await self._database.fetch(
            """
            SELECT event_id::text, action, user_id::text, request_id, signing_id::text, create_time FROM key_events
            WHERE tenant_id = nexus.tenant_id() AND key_id = $1 AND ($2::uuid IS NULL OR event_id < $2)
            ORDER BY event_id DESC LIMIT $3
            """,
            key_id,
            before,
            limit,
        )


def policy_json(policy: SigningPolicy) -> str:
    return json_format.MessageToJson(policy, indent=None)


def proposal_of(row: asyncpg.Record) -> SigningPolicy | None:
    return json_format.Parse(row["proposal"], SigningPolicy()) if row["proposal"] is not None else None


def policy_of(row: asyncpg.Record) -> SigningPolicy:
    return json_format.Parse(row["policy"], SigningPolicy())
