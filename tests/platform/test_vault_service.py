"""Services have keys of their own, and what was sealed for a shredded subject is lost for all of them."""

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from nexus.platform.key_service.v1 import key_service_pb2 as pb
from nexus.platform.key_service.v1 import vault_pb2
from nexus.platform.key_service.v1.faults import (
    AlgorithmUnsuitable,
    CiphertextInvalid,
    KeyNotFound,
    KeyNotUsable,
    SubjectShredded,
)
from nexus.platform.key_service.v1.vault_pb2_grpc import VaultServiceStub
from nexus.type.v1.faults import CallerNotAllowed
from services.chassis.clients import Clients
from services.chassis.clock import moment, now
from services.chassis.context import OPERATOR, acting_for
from services.chassis.ids import new_id
from tests.identity.people import change
from tests.platforms import Platform, Tenant

if TYPE_CHECKING:
    from nexus.platform.key_service.v1.vault_pb2_grpc import VaultServiceAsyncStub


async def vault_of(platform: Platform, caller: str) -> AsyncIterator["VaultServiceAsyncStub"]:
    clients = Clients(platform.settings, caller, None)
    stub: Any = clients.stub(VaultServiceStub)
    yield stub
    await clients.stop()


@pytest.fixture
async def vault(platform: Platform, tenant: Tenant) -> AsyncIterator["VaultServiceAsyncStub"]:
    """The vault of pv-keys, in a tenant."""
    with acting_for(tenant.tenant_id):
        async for stub in vault_of(platform, "pv-keys"):
            yield stub


@pytest.fixture
async def others(platform: Platform) -> AsyncIterator["VaultServiceAsyncStub"]:
    """The vault of another caller."""
    async for stub in vault_of(platform, OPERATOR):
        yield stub


async def test_a_service_opens_its_own_and_no_other_service_does(
    vault: "VaultServiceAsyncStub", others: "VaultServiceAsyncStub", tenant: Tenant
) -> None:
    with acting_for(tenant.tenant_id):
        sealed = await vault.Seal(vault_pb2.SealRequest(key="k", plaintext=b"mine", context={"a": "b"}))
        request = vault_pb2.OpenRequest(ciphertext=sealed.ciphertext, context={"a": "b"})
        assert (await vault.Open(request)).plaintext == b"mine"
        with pytest.raises(KeyNotFound):
            await others.Open(request)
        with pytest.raises(CiphertextInvalid):
            await vault.Open(vault_pb2.OpenRequest(ciphertext=sealed.ciphertext))


async def test_another_tenant_opens_nothing(
    vault: "VaultServiceAsyncStub", tenant: Tenant, other_tenant: Tenant
) -> None:
    with acting_for(tenant.tenant_id):
        sealed = await vault.Seal(vault_pb2.SealRequest(key="k", plaintext=b"mine"))
    with acting_for(other_tenant.tenant_id), pytest.raises(CiphertextInvalid):
        await vault.Open(vault_pb2.OpenRequest(ciphertext=sealed.ciphertext))


async def test_a_service_that_does_not_declare_it_is_not_let_in(platform: Platform, tenant: Tenant) -> None:
    with acting_for(tenant.tenant_id):
        async for vault in vault_of(platform, "backend-api"):
            with pytest.raises(CallerNotAllowed):
                await vault.Seal(vault_pb2.SealRequest(key="k", plaintext=b"x"))


async def test_a_key_wanted_by_many_at_once_is_made_once(vault: "VaultServiceAsyncStub", tenant: Tenant) -> None:
    request = vault_pb2.EnsureKeyRequest(key="signing", algorithm=pb.KEY_ALGORITHM_ES256)
    with acting_for(tenant.tenant_id):
        answers = await asyncio.gather(*(vault.EnsureKey(request) for _ in range(20)))
        assert len({answer.key.key_id for answer in answers}) == 1
        with pytest.raises(AlgorithmUnsuitable):
            await vault.EnsureKey(vault_pb2.EnsureKeyRequest(key="signing", algorithm=pb.KEY_ALGORITHM_ED25519))
        signed = await vault.SignMessage(vault_pb2.SignMessageRequest(key="signing", message=b"m"))
        for message, valid in ((b"m", True), (b"n", False)):
            verified = await vault.VerifySignature(
                vault_pb2.VerifySignatureRequest(key="signing", message=message, signature=signed.signature)
            )
            assert verified.valid is valid


async def test_what_was_sealed_before_a_rotation_opens_and_can_be_resealed(
    vault: "VaultServiceAsyncStub", tenant: Tenant
) -> None:
    with acting_for(tenant.tenant_id):
        sealed = await vault.Seal(vault_pb2.SealRequest(key="k", plaintext=b"mine"))
        rotated = await vault.RotateOwnKey(vault_pb2.RotateOwnKeyRequest(key="k", request_id="r"))
        assert rotated.key.primary_version == 2
        assert (await vault.Open(vault_pb2.OpenRequest(ciphertext=sealed.ciphertext))).key_version == 1
        fresh = await vault.Reseal(vault_pb2.ResealRequest(ciphertext=sealed.ciphertext))
        opened = await vault.Open(vault_pb2.OpenRequest(ciphertext=fresh.ciphertext))
        assert (opened.plaintext, opened.key_version) == (b"mine", 2)


async def test_a_key_that_a_service_seals_with_rotates_by_itself(
    platform: Platform, vault: "VaultServiceAsyncStub"
) -> None:
    sealed = (await vault.Seal(vault_pb2.SealRequest(key="k", plaintext=b"mine"))).ciphertext
    await vault.IssueDataKey(vault_pb2.IssueDataKeyRequest(key="fields", subject="ann"))

    async def key(name: str, subject: str = "") -> pb.Key:
        request = vault_pb2.EnsureKeyRequest(key=name, subject=subject, algorithm=pb.KEY_ALGORITHM_AES_256_GCM)
        return (await vault.EnsureKey(request)).key

    for made in (await key("k"), await key("fields", "ann")):
        assert made.rotation_period.ToTimedelta() == timedelta(days=90)
        assert timedelta(days=89) < moment(made.next_rotation_time) - now() < timedelta(days=91)
    assert not (await key("kept")).HasField("rotation_period"), "a service that makes its key says how often"
    await change(platform, "UPDATE key_service.keys SET next_rotation_time = now() WHERE key_id = $1", made.key_id)
    deadline = now() + timedelta(seconds=20)
    while (await key("fields", "ann")).primary_version == 1:
        assert now() < deadline
        await asyncio.sleep(0.25)
    assert (await vault.Open(vault_pb2.OpenRequest(ciphertext=sealed))).plaintext == b"mine"


async def test_a_shredded_subject_is_lost_to_every_service_and_gets_no_key_again(
    vault: "VaultServiceAsyncStub", others: "VaultServiceAsyncStub", tenant: Tenant, platform: Platform
) -> None:
    ann, bob = new_id(), new_id()
    with acting_for(tenant.tenant_id):
        lost = [await vault.Seal(vault_pb2.SealRequest(key=key, subject=ann, plaintext=b"x")) for key in ("one", "two")]
        kept = await vault.Seal(vault_pb2.SealRequest(key="one", subject=bob, plaintext=b"bob's"))
        for destroyed in (2, 0):
            shredded = await others.ShredSubject(vault_pb2.ShredSubjectRequest(subject=ann))
            assert shredded.destroyed_keys == destroyed
        for sealed in lost:
            with pytest.raises(KeyNotUsable):
                await vault.Open(vault_pb2.OpenRequest(ciphertext=sealed.ciphertext))
        with pytest.raises(SubjectShredded):
            await vault.Seal(vault_pb2.SealRequest(key="three", subject=ann, plaintext=b"x"))
        assert (await vault.Open(vault_pb2.OpenRequest(ciphertext=kept.ciphertext))).plaintext == b"bob's"
    admin = await platform.admin()
    try:
        material = await admin.fetch(
            "SELECT v.wrapped FROM key_service.key_versions v JOIN key_service.keys k USING (tenant_id, key_id) "
            "WHERE k.subject = $1",
            ann,
        )
    finally:
        await admin.close()
    assert material == [(None,), (None,)]


async def test_a_key_made_while_its_subject_is_shredded_does_not_survive(
    vault: "VaultServiceAsyncStub", tenant: Tenant, platform: Platform
) -> None:
    subject = new_id()

    async def seal(name: str) -> None:
        try:
            await vault.Seal(vault_pb2.SealRequest(key=name, subject=subject, plaintext=b"x"))
        except (SubjectShredded, KeyNotUsable):
            return

    with acting_for(tenant.tenant_id):
        shred = vault.ShredSubject(vault_pb2.ShredSubjectRequest(subject=subject))
        await asyncio.gather(*(seal(f"k{n}") for n in range(20)), shred, *(seal(f"l{n}") for n in range(20)))
    admin = await platform.admin()
    try:
        alive = await admin.fetchval(
            "SELECT count(*) FROM key_service.keys WHERE subject = $1 AND state <> 'destroyed'", subject
        )
    finally:
        await admin.close()
    assert alive == 0


async def test_people_neither_use_nor_destroy_the_keys_of_services(
    vault: "VaultServiceAsyncStub", tenant: Tenant, http: httpx.AsyncClient
) -> None:
    with acting_for(tenant.tenant_id):
        key = (await vault.EnsureKey(vault_pb2.EnsureKeyRequest(key="k", algorithm=pb.KEY_ALGORITHM_AES_256_GCM))).key
        sealed = await vault.Seal(vault_pb2.SealRequest(key="k", plaintext=b"mine"))
    owner = await tenant.sign_in("owner")
    for verb in ("encrypt", "disable", "schedule-destruction", "generate-data-key"):
        refused = await http.post(f"/api/v1/keys/{key.key_id}:{verb}", headers=owner.headers, json={})
        assert refused.json()["details"][0]["reason"] == "KEY_OF_SERVICE"
    abandon = {"minimumVersion": 1, "abandonOlder": True}
    refused = await http.post(f"/api/v1/keys/{key.key_id}:set-minimum-version", headers=owner.headers, json=abandon)
    assert refused.json()["details"][0]["reason"] == "KEY_OF_SERVICE"
    body = {"ciphertext": base64.b64encode(sealed.ciphertext).decode()}
    refused = await http.post("/api/v1/keys:decrypt", headers=owner.headers, json=body)
    assert refused.json()["details"][0]["reason"] == "KEY_OF_SERVICE"
    rotated = await http.post(f"/api/v1/keys/{key.key_id}:rotate", headers=owner.headers, json={})
    assert rotated.json()["key"]["primaryVersion"] == 2
