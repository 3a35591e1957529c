"""A sealed column opens for its own tenant, subject and field, and for nobody once its subject was shredded."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from nexus.platform.key_service.v1.faults import KeyNotUsable, SubjectShredded
from services.chassis.clients import Clients
from services.chassis.context import acting_for
from services.chassis.fields import FieldCipher
from services.chassis.ids import new_id
from services.chassis.sealing import SealBroken
from tests.platforms import Platform, Tenant


@pytest.fixture
async def clients(platform: Platform) -> AsyncIterator[Clients]:
    """As pv-keys, which may call key-service."""
    clients = Clients(platform.settings, "pv-keys", frozenset({"key-service"}))
    yield clients
    await clients.stop()


async def data_keys(platform: Platform, tenant: Tenant) -> int:
    """How often key-service was asked."""
    admin = await platform.admin()
    try:
        count: int = await admin.fetchval(
            "SELECT count(*) FROM key_service.key_uses WHERE tenant_id = $1", tenant.tenant_id
        )
        return count
    finally:
        await admin.close()


async def test_what_was_sealed_is_opened_by_another_process(clients: Clients, tenant: Tenant) -> None:
    subject = new_id()
    with acting_for(tenant.tenant_id):
        sealed = await FieldCipher(clients).seal(b"JBSWY3DP", subject=subject, field="totp")
        assert b"JBSWY3DP" not in sealed
        assert await FieldCipher(clients).open(sealed, subject=subject, field="totp") == b"JBSWY3DP"


async def test_many_fields_of_a_subject_cost_one_call_each_way(
    platform: Platform, clients: Clients, tenant: Tenant
) -> None:
    subject, values = new_id(), {f"field{n}": bytes([n]) for n in range(20)}
    here, there = FieldCipher(clients), FieldCipher(clients)
    with acting_for(tenant.tenant_id):
        sealed = await here.seal_all(values, subject=subject)
        assert await here.open_all(sealed, subject=subject) == values
        assert await data_keys(platform, tenant) == 1
        assert await there.open_all(sealed, subject=subject) == values
        assert await data_keys(platform, tenant) == 2


async def test_it_opens_as_nothing_else_and_for_nobody_else(
    clients: Clients, tenant: Tenant, other_tenant: Tenant
) -> None:
    cipher, ann, bob = FieldCipher(clients), new_id(), new_id()
    with acting_for(tenant.tenant_id):
        sealed = await cipher.seal(b"secret", subject=ann, field="totp")
        for subject, field in ((bob, "totp"), (ann, "phone")):
            with pytest.raises(SealBroken):
                await cipher.open(sealed, subject=subject, field=field)
    with acting_for(other_tenant.tenant_id), pytest.raises(SealBroken):
        await cipher.open(sealed, subject=ann, field="totp")


async def test_no_byte_can_be_changed(clients: Clients, tenant: Tenant) -> None:
    cipher, subject = FieldCipher(clients), new_id()
    with acting_for(tenant.tenant_id):
        sealed = await cipher.seal(b"secret", subject=subject, field="totp")

        async def breaks(changed: bytes) -> None:
            with pytest.raises(SealBroken):
                await cipher.open(changed, subject=subject, field="totp")

        flipped = [sealed[:n] + bytes([sealed[n] ^ 1]) + sealed[n + 1 :] for n in range(len(sealed))]
        await asyncio.gather(*(breaks(changed) for changed in [*flipped, b"", sealed[:40], sealed[:-1]]))


async def test_a_shredded_subject_is_unreadable_and_the_others_are_not(clients: Clients, tenant: Tenant) -> None:
    cipher, ann, bob = FieldCipher(clients), new_id(), new_id()
    with acting_for(tenant.tenant_id):
        of_ann = await cipher.seal(b"ann's", subject=ann, field="phone")
        of_bob = await cipher.seal(b"bob's", subject=bob, field="phone")
        await cipher.shred(ann)
        for reader in (cipher, FieldCipher(clients)):
            with pytest.raises(KeyNotUsable):
                await reader.open(of_ann, subject=ann, field="phone")
            with pytest.raises(SubjectShredded):
                await reader.seal(b"new", subject=ann, field="phone")
            assert await reader.open(of_bob, subject=bob, field="phone") == b"bob's"


async def test_a_subject_shredded_elsewhere_is_forgotten_when_its_time_is_over(
    clients: Clients, tenant: Tenant
) -> None:
    cipher, subject = FieldCipher(clients, remember_seconds=0), new_id()
    with acting_for(tenant.tenant_id):
        sealed = await cipher.seal(b"secret", subject=subject, field="phone")
        await FieldCipher(clients).shred(subject)
        with pytest.raises(KeyNotUsable):
            await cipher.open(sealed, subject=subject, field="phone")


async def test_rows_of_many_subjects_cost_one_call_and_leave_out_who_was_shredded(
    platform: Platform, clients: Clients, tenant: Tenant, other_tenant: Tenant
) -> None:
    cipher, subjects = FieldCipher(clients), [new_id() for _ in range(20)]
    with acting_for(tenant.tenant_id):
        rows = [
            (subject, await cipher.seal(f"{n}".encode(), subject=subject, field="phone"))
            for n, subject in enumerate(subjects)
        ]
        await FieldCipher(clients).shred(subjects[3])
        expected = [None if n == 3 else f"{n}".encode() for n in range(20)]
        before, reader = await data_keys(platform, tenant), FieldCipher(clients)
        assert await reader.open_rows([*rows, *rows], field="phone") == expected * 2
        assert await data_keys(platform, tenant) == before + 19
        assert await reader.open_rows(rows[4:], field="phone") == expected[4:]
        assert await data_keys(platform, tenant) == before + 19
        assert await reader.open_rows([], field="phone") == []
        with pytest.raises(SealBroken):
            await reader.open_rows([(subjects[1], rows[0][1])], field="phone")
    with acting_for(other_tenant.tenant_id), pytest.raises(SealBroken):
        await FieldCipher(clients).open_rows(rows[:1], field="phone")
