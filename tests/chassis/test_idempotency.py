"""A keyed call happens once, however often it arrives; through the edge, at user-auth's Register."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest

from nexus.finance.billing_service.v1.payments_pb2 import VoidRequest
from nexus.type.v1.faults import IdempotencyKeyReused
from services.chassis.config import Settings
from services.chassis.context import acting_for
from services.chassis.database import Database
from services.chassis.idempotency import RequestKey
from services.chassis.ids import new_id
from services.chassis.sealing import Sealer
from services.chassis.spec import discover
from services.chassis.table import Table
from tests.chassis.calls import call_of
from tests.platforms import PASSWORD, Platform, Tenant

PATH = "/api/v1/auth/register"


@pytest.fixture
async def admin(platform: Platform) -> AsyncIterator[asyncpg.Connection]:
    connection = await platform.admin()
    yield connection
    await connection.close()


async def register(
    http: httpx.AsyncClient, tenant: Tenant, email: str, key: str = "", header: str = "", password: str = PASSWORD
) -> httpx.Response:
    body = {"email": email, "password": password} | ({"requestId": key} if key else {})
    headers = tenant.headers | ({"idempotency-key": header} if header else {})
    return await http.post(PATH, headers=headers, json=body)


def reason(answer: httpx.Response) -> Any:
    return answer.json()["details"][0]["reason"]


def mails_to(platform: Platform, email: str) -> int:
    outbox = platform.settings.home / "outbox"
    return sum(f"To: {email}".encode() in path.read_bytes() for path in outbox.glob("*.eml"))


async def count(admin: asyncpg.Connection, table: str, tenant: Tenant) -> int:
    found: int = await admin.fetchval(f"SELECT count(*) FROM {table} WHERE tenant_id = $1", tenant.tenant_id)
    return found


def address() -> str:
    return f"{new_id()}@example.com"


async def test_the_same_key_and_body_get_the_identical_answer(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, admin: asyncpg.Connection
) -> None:
    email, key = address(), new_id()
    first = await register(http, tenant, email, key)
    second = await register(http, tenant, email, key)
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert await count(admin, "user_auth.users", tenant) == 1
    assert mails_to(platform, email) == 1


async def test_without_a_key_a_repeat_is_a_call_of_its_own(tenant: Tenant, http: httpx.AsyncClient) -> None:
    email = address()
    assert (await register(http, tenant, email)).status_code == 200
    assert reason(await register(http, tenant, email)) == "EMAIL_TAKEN"


async def test_the_same_key_with_another_body_is_refused(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, admin: asyncpg.Connection
) -> None:
    key, other = new_id(), address()
    await register(http, tenant, address(), key)
    refused = await register(http, tenant, other, key)
    assert reason(refused) == "IDEMPOTENCY_KEY_REUSED"
    assert await count(admin, "user_auth.users", tenant) == 1
    assert mails_to(platform, other) == 0


async def test_twenty_twins_run_once(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, admin: asyncpg.Connection
) -> None:
    email, key = address(), new_id()
    answers = await asyncio.gather(*(register(http, tenant, email, key) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    assert len({answer.content for answer in answers}) == 1
    assert await count(admin, "user_auth.users", tenant) == 1
    assert await count(admin, "user_auth.verification_codes", tenant) == 1
    assert await count(admin, "user_auth.idempotency_keys", tenant) == 1
    assert mails_to(platform, email) == 1


async def test_of_twins_with_different_bodies_one_wins_and_the_others_are_told(
    tenant: Tenant, http: httpx.AsyncClient, admin: asyncpg.Connection
) -> None:
    key = new_id()
    answers = await asyncio.gather(*(register(http, tenant, address(), key) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers)[0] == 200
    refused = [reason(answer) for answer in answers if answer.status_code != 200]
    assert refused == ["IDEMPOTENCY_KEY_REUSED"] * 5
    assert await count(admin, "user_auth.users", tenant) == 1


async def test_a_failed_attempt_leaves_no_key_and_the_next_one_is_the_first(
    tenant: Tenant, http: httpx.AsyncClient, admin: asyncpg.Connection
) -> None:
    email, key = address(), new_id()
    await tenant.provision(email=email)
    assert reason(await register(http, tenant, email, key)) == "EMAIL_TAKEN"
    assert await count(admin, "user_auth.idempotency_keys", tenant) == 0
    await admin.execute("DELETE FROM user_auth.users WHERE tenant_id = $1", tenant.tenant_id)
    assert (await register(http, tenant, email, key)).status_code == 200


async def test_a_key_belongs_to_its_tenant(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient, admin: asyncpg.Connection
) -> None:
    email, key = address(), new_id()
    ours = await register(http, tenant, email, key)
    theirs = await register(http, other_tenant, email, key)
    assert ours.status_code == theirs.status_code == 200
    assert ours.json()["user"]["userId"] != theirs.json()["user"]["userId"]
    assert await count(admin, "user_auth.users", other_tenant) == 1


async def test_the_header_works_like_the_field(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, admin: asyncpg.Connection
) -> None:
    email, key = address(), new_id()
    first = await register(http, tenant, email, header=key)
    second = await register(http, tenant, email, header=key)
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert mails_to(platform, email) == 1
    assert reason(await register(http, tenant, address(), header=key)) == "IDEMPOTENCY_KEY_REUSED"
    assert await count(admin, "user_auth.users", tenant) == 1


async def test_the_field_counts_where_both_are_given(tenant: Tenant, http: httpx.AsyncClient) -> None:
    email, key = address(), new_id()
    first = await register(http, tenant, email, key, header=new_id())
    second = await register(http, tenant, email, key, header=new_id())
    assert first.status_code == 200
    assert first.content == second.content


async def test_stored_answers_are_sealed_and_the_password_is_kept_nowhere(
    tenant: Tenant, http: httpx.AsyncClient, admin: asyncpg.Connection
) -> None:
    email, key = address(), new_id()
    await register(http, tenant, email, key)
    row = await admin.fetchrow(
        "SELECT request_hash, response FROM user_auth.idempotency_keys WHERE tenant_id = $1", tenant.tenant_id
    )
    for secret in (email.encode(), PASSWORD.encode()):
        assert secret not in row["response"]
        assert secret not in row["request_hash"]


async def test_a_request_finds_what_it_made_and_nobody_else_does(settings: Settings, tenant: Tenant) -> None:
    database = Database(settings, discover()["billing-service"])
    customers = Table(database, "customers", key="customer_id")
    methods = Table(database, "payment_methods", key="payment_method_id")
    columns = ("provider", "provider_token", "provider_customer", "brand", "last_digits", "expiry")
    method, customer_id = dict.fromkeys(columns, "-"), new_id()

    def key_of(payment_id: str, caller: str = "a-service") -> RequestKey:
        call = call_of("/nexus.finance.billing_service.v1.PaymentService/Void", tenant.tenant_id, caller=caller)
        return RequestKey.of(VoidRequest(payment_id=payment_id, request_id="k"), call, Sealer(bytes(32), "test"))

    await database.start()
    with acting_for(tenant.tenant_id):
        await customers.insert(customer_id=customer_id)
        key = key_of("1")
        assert await key.earlier(methods) is None
        made = await methods.insert_new(payment_method_id=new_id(), customer_id=customer_id, **method, **key._asdict())
        assert made is not None
        assert await key.earlier(methods) == made
        assert await key_of("1").earlier(methods) == made
        assert await key_of("1", caller="another").earlier(methods) is None
        with pytest.raises(IdempotencyKeyReused):
            await key_of("2").earlier(methods)
    await database.stop()
