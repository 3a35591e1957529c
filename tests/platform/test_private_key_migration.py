"""A database in which one private key has two rows, as it could before migration 0003, comes out with one."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from pydantic import SecretStr

from services.chassis.config import Settings
from services.chassis.ids import new_id
from services.chassis.migrations import migrate
from services.chassis.spec import discover
from tests.platforms import Platform

LATER = ("0002b_one_row_a_key_before", "0003_one_row_a_key")


@pytest.fixture
async def before(platform: Platform) -> AsyncIterator[Settings]:
    """A database of the test's own, at the migration before."""
    name, admin = f"scratch_{new_id().replace('-', '')}", await platform.admin()
    assert platform.settings.database_url is not None
    url = platform.settings.database_url.get_secret_value().replace("/nexus?", f"/{name}?")
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        settings = platform.settings.model_copy(update={"database_url": SecretStr(url)})
        await migrate(settings, [discover()["pv-keys"]])
        connection = await asyncpg.connect(url)
        await connection.execute(
            "DROP TABLE pv_keys.merged_keys; "
            "ALTER TABLE pv_keys.private_keys DROP CONSTRAINT private_keys_tenant_id_curve_public_key_hd_root_key"
        )
        await connection.execute("DELETE FROM nexus.migrations WHERE owner = 'pv_keys' AND name = ANY($1)", LATER)
        await connection.close()
        yield settings
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


class Rows:
    """What a tenant has."""

    def __init__(self, connection: asyncpg.Connection, tenant_id: str) -> None:
        self._connection = connection
        self.tenant_id = tenant_id

    async def key(self, public: bytes, *, root: str | None = None, path: str = "", hd_root: bool = False) -> str:
        key_id = new_id()
        await self._connection.execute(
            "INSERT INTO pv_keys.private_keys (tenant_id, key_id, label, curve, hd_root, secret_sealed, public_key, "
            "ethereum_account, root_key_id, path, policy) "
            "VALUES ($1, $2, 'k', 'ED25519', $3, 'x', $4, '', $5, $6, '{}')",
            self.tenant_id,
            key_id,
            hd_root,
            public,
            root,
            path,
        )
        return key_id

    async def signing(self, key_id: str, slot: str, request_id: str = "same") -> str:
        signing_id, requester = new_id(), "00000000-0000-7000-8000-000000000001"
        await self._connection.execute(
            "INSERT INTO pv_keys.signings (tenant_id, signing_id, key_id, state, request, payload, slot, destination, "
            "asset, amount, requester_id, request_id, sign_time) "
            "VALUES ($1, $2, $3, 'SIGNED', '', '', $4, '', '', 0, $5, $6, now())",
            self.tenant_id,
            signing_id,
            key_id,
            slot,
            requester,
            request_id,
        )
        return signing_id

    async def keys(self) -> dict[str, tuple[str | None, bool]]:
        """Root and lock of each."""
        rows = await self._connection.fetch(
            "SELECT key_id::text, root_key_id::text, locked FROM pv_keys.private_keys WHERE tenant_id = $1",
            self.tenant_id,
        )
        return {row["key_id"]: (row["root_key_id"], row["locked"]) for row in rows}

    async def signings(self) -> dict[str, tuple[str, str]]:
        """Key and slot of each."""
        rows = await self._connection.fetch(
            "SELECT signing_id::text, key_id::text, slot FROM pv_keys.signings WHERE tenant_id = $1", self.tenant_id
        )
        return {row["signing_id"]: (row["key_id"], row["slot"]) for row in rows}


async def test_two_rows_of_one_key_become_one_that_is_locked_and_forgets_no_slot(before: Settings) -> None:
    assert before.database_url is not None
    connection = await asyncpg.connect(before.database_url.get_secret_value())
    try:
        mine, other = Rows(connection, "mine"), Rows(connection, "other")
        alone, theirs = await mine.key(b"alone"), await other.key(b"one")
        root = await mine.key(b"root", hd_root=True)
        same_root = await mine.key(b"root", hd_root=True)
        one = await mine.key(b"one", root=root, path="m/0")
        two = await mine.key(b"one", root=same_root, path="m/00")
        child = await mine.key(b"child", root=same_root, path="m/1")
        first, again = await mine.signing(one, "height 7"), await mine.signing(two, "height 7")
        later, unasked = await mine.signing(two, "height 8", "other"), await mine.signing(alone, "height 7")

        applied = await migrate(before, [discover()["pv-keys"]])

        assert applied == [f"pv_keys/{name}" for name in LATER]
        assert await mine.keys() == {alone: (None, False), root: (None, True), one: (root, True), child: (root, False)}
        assert await other.keys() == {theirs: (None, False)}
        assert await mine.signings() == {
            first: (one, "height 7"),
            again: (one, ""),
            later: (one, "height 8"),
            unasked: (alone, "height 7"),
        }
        merged = await connection.fetch("SELECT key_id::text, merged_into::text, was FROM pv_keys.merged_keys")
        assert {(row["key_id"], row["merged_into"]) for row in merged} == {(same_root, root), (two, one)}
        assert "m/00" in " ".join(row["was"] for row in merged)
        assert not [row for row in merged if "secret_sealed" in row["was"]]
    finally:
        await connection.close()
