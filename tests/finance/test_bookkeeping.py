"""The people who keep a tenant's books, over HTTP: what they may do, what they may not, and what they can prove."""

import base64
import hashlib
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from nexus.finance.ledger_mgr.v1.events_pb2 import Change
from services.chassis.ids import new_id
from tests.edge.wire import reason
from tests.finance.ledgers import ALICE, BOB, WORLD, ledger_of, problems, transfer
from tests.platforms import Platform, SignedIn, Tenant

MODULE = "/api/v1/modules/puabo-nuki:enable"


class Bookkeeper:
    """The API as one user with every permission of the tenant."""

    def __init__(self, http: httpx.AsyncClient, user: SignedIn) -> None:
        self._http, self._user = http, user

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self._http.get(f"/api/v1/ledger{path}", headers=self._user.headers, params=query)

    async def post(self, path: str, /, **body: Any) -> httpx.Response:
        return await self._http.post(f"/api/v1/ledger{path}", headers=self._user.headers, json=body)

    async def patch(self, path: str, /, **body: Any) -> httpx.Response:
        return await self._http.patch(f"/api/v1/ledger{path}", headers=self._user.headers, json=body)

    async def transfer(self, source: str, target: str, amount: int, key: str = "", **more: Any) -> httpx.Response:
        money = {"currency": "EUR", "minorUnits": str(amount)}
        legs = [
            {"account": source, "side": "SIDE_DEBIT", "amount": money},
            {"account": target, "side": "SIDE_CREDIT", "amount": money},
        ]
        return await self.post("/transactions", idempotencyKey=key or new_id(), transaction={"legs": legs, **more})

    async def log(self, **query: Any) -> list[dict[str, Any]]:
        """The log as it is streamed: an entry a line."""
        answer = await self.get("/log", **query)
        assert answer.status_code == 200, answer.text
        return [json.loads(line)["entry"] for line in answer.text.splitlines()]

    async def verify(self) -> dict[str, Any]:
        return dict(good(await self.post("/log:verify")))


def good(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


async def owner_of(http: httpx.AsyncClient, tenant: Tenant) -> SignedIn:
    """Someone with every permission; the ledger's come with a module."""
    owner = await tenant.sign_in("owner")
    good(await http.post(MODULE, headers=owner.headers, json={}))
    return await tenant.sign_in(email=owner.email)


@pytest.fixture
async def books(platform: Platform, tenant: Tenant, http: httpx.AsyncClient) -> Bookkeeper:
    """The books of a tenant in which Alice has 10 EUR."""
    async with ledger_of(platform, tenant) as ledger:
        await ledger.open_usual(alice=1000)
    return Bookkeeper(http, await owner_of(http, tenant))


async def test_operators_open_post_and_read(books: Bookkeeper) -> None:
    account = {"name": "petty:cash", "type": "ACCOUNT_TYPE_ASSET", "metadata": {"place": "till"}}
    good(await books.post("/accounts", **account))
    posted = good(await books.transfer("petty:cash", ALICE, 250, key="k", reference="found"))["transaction"]
    assert good(await books.transfer("petty:cash", ALICE, 250, key="k", reference="found"))["transaction"] == posted
    assert reason(await books.transfer("petty:cash", ALICE, 251, key="k"), 400) == "IDEMPOTENCY_KEY_REUSED"

    found = good(await books.get(f"/accounts/{quote('petty:cash', safe='')}"))
    assert found["account"]["metadata"] == {"place": "till"}
    assert [balance["balance"] for balance in found["balances"]] == ["250"]
    entries = good(await books.get(f"/accounts/{quote(ALICE, safe='')}/entries"))["entries"]
    assert [entry["balanceAfter"] for entry in entries] == ["1250", "1000"]
    listed = good(await books.get("/transactions", **{"filter.account": "petty"}))["transactions"]
    assert [transaction["transactionId"] for transaction in listed] == [posted["transactionId"]]
    names = [account["name"] for account in good(await books.get("/accounts", metadata_key="place"))["accounts"]]
    assert names == ["petty:cash"]
    reverted = good(await books.post(f"/transactions/{posted['transactionId']}:revert", idempotencyKey="r"))
    assert reverted["transaction"]["reverts"] == posted["transactionId"]
    [total] = good(await books.get("/trial-balance"))["totals"]
    assert total["debits"] == total["credits"] == "1500"


async def test_an_account_is_changed_closed_and_reopened(books: Bookkeeper) -> None:
    path = f"/accounts/{quote(BOB, safe='')}"
    overdraft = {"allowOverdraft": True, "overdraftLimit": "5", "updateMask": "allowOverdraft,overdraftLimit"}
    first = good(await books.patch(path, **overdraft))
    stale = await books.patch(path, metadata={"a": "b"}, updateMask="metadata", etag="0")
    assert reason(stale, 409) == "ETAG_STALE"
    changed = await books.patch(path, metadata={"a": "b"}, updateMask="metadata", etag=first["account"]["etag"])
    assert good(changed)["account"]["allowOverdraft"] is True
    good(await books.transfer(BOB, ALICE, 5))
    assert reason(await books.transfer(BOB, ALICE, 1), 400) == "INSUFFICIENT_FUNDS"
    assert reason(await books.post(f"{path}:close"), 400) == "ACCOUNT_NOT_EMPTY"
    good(await books.transfer(ALICE, BOB, 5))
    assert good(await books.post(f"{path}:close"))["account"]["state"] == "ACCOUNT_STATE_CLOSED"
    assert reason(await books.transfer(ALICE, BOB, 1), 400) == "ACCOUNT_CLOSED"
    good(await books.post(f"{path}:reopen"))
    good(await books.transfer(ALICE, BOB, 1))


async def test_users_without_the_permission_are_refused(
    books: Bookkeeper, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    plain = Bookkeeper(http, await tenant.sign_in())
    assert reason(await plain.get("/accounts"), 403) == "PERMISSION_MISSING"
    assert reason(await plain.transfer(ALICE, BOB, 1), 403) == "PERMISSION_MISSING"


async def test_operators_have_no_say_over_the_platforms_share(
    books: Bookkeeper, platform: Platform, tenant: Tenant
) -> None:
    async with ledger_of(platform, tenant) as ledger:
        settled = await ledger.settle(ALICE, BOB)
    assert settled.platform_minor_units == 200
    assert reason(await books.transfer("platform:share", BOB, 1), 403) == "ACCOUNT_RESERVED"
    taken_back = await books.post(f"/transactions/{settled.transaction.transaction_id}:revert", idempotencyKey="r")
    assert reason(taken_back, 403) == "ACCOUNT_RESERVED"
    mine = {"name": "platform:mine", "type": "ACCOUNT_TYPE_LIABILITY"}
    assert reason(await books.post("/accounts", **mine), 403) == "ACCOUNT_RESERVED"
    closed = await books.post(f"/accounts/{quote('platform:share', safe='')}:close")
    assert reason(closed, 403) == "ACCOUNT_RESERVED"


async def test_only_the_platform_agrees_on_terms_and_the_ledger_keeps_to_them(
    books: Bookkeeper, platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    path = f"/api/v1/tenants/{tenant.tenant_id}/settlement-terms"
    tenants_owner = await tenant.sign_in("owner")
    assert reason(await http.put(path, headers=tenants_owner.headers, json={"platformBasisPoints": 0}), 403)
    root = await owner_of(http, Tenant(platform, platform.settings.platform_tenant))
    agreed = good(await http.put(path, headers=root.headers, json={"platformBasisPoints": 1250}))
    assert agreed["terms"]["platformBasisPoints"] == 1250
    unknown = path.replace(tenant.tenant_id, "nobody")
    assert reason(await http.put(unknown, headers=root.headers, json={}), 404) == "TENANT_UNKNOWN"

    async with ledger_of(platform, tenant) as ledger:
        assert (await ledger.settle(ALICE, BOB, minor_units=1000)).platform_minor_units == 125
        good(await http.put(path, headers=root.headers, json={}))
        await ledger.post(transfer(WORLD, ALICE, 1000))
        assert (await ledger.settle(ALICE, BOB)).platform_minor_units == 200
    terms = good(await books.get("/settlement-terms"))["terms"]
    assert (terms["platformBasisPoints"], terms["agreed"]) == (2000, False)


async def test_an_exported_log_proves_itself(books: Bookkeeper, tenant: Tenant) -> None:
    """With nothing but the contract's words: hashes follow from what the entries say."""
    good(await books.transfer(ALICE, BOB, 1))
    exported = await books.log()
    previous = b""
    for number, entry in enumerate(exported, 1):
        parts = [
            tenant.tenant_id.encode(),
            str(number).encode(),
            str(micros(entry["createTime"])).encode(),
            entry["actor"].encode(),
            entry.get("idempotencyKey", "").encode(),
            base64.b64decode(entry.get("requestHash", "")),
            base64.b64decode(entry["change"]),
        ]
        digest = hashlib.sha256(previous + b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
        assert base64.b64decode(entry["hash"]) == digest
        previous = digest
    verified = await books.verify()
    assert verified["entries"] == str(len(exported))
    assert base64.b64decode(verified["headHash"]) == previous
    assert verified["brokenAt"] == "0"
    assert await books.log(from_position=len(exported)) == exported[-1:]


def micros(text: str) -> int:
    stamp = Timestamp()
    stamp.FromJsonString(text)
    return stamp.ToMicroseconds()


@pytest.mark.parametrize(
    ("tampering", "broken_at"),
    [
        ("UPDATE ledger_mgr.log SET actor = 'somebody' WHERE tenant_id = $1 AND position = 2", "2"),
        ("DELETE FROM ledger_mgr.log WHERE tenant_id = $1 AND position = 3", "3"),
        ("DELETE FROM ledger_mgr.log WHERE tenant_id = $1 AND position = 5", "5"),
    ],
)
async def test_whoever_tampers_with_the_log_is_found_out(
    books: Bookkeeper, platform: Platform, tenant: Tenant, tampering: str, broken_at: str
) -> None:
    good(await books.transfer(ALICE, BOB, 1))
    assert (await books.verify())["entries"] == "5"
    admin = await platform.admin()
    try:
        await admin.execute(tampering, tenant.tenant_id)
    finally:
        await admin.close()
    assert (await books.verify())["brokenAt"] == broken_at


async def test_a_balance_that_does_not_follow_from_the_log_is_named(
    books: Bookkeeper, platform: Platform, tenant: Tenant
) -> None:
    admin = await platform.admin()
    try:
        await admin.execute(
            "UPDATE ledger_mgr.balances SET credits = credits + 1 WHERE tenant_id = $1 AND account = $2",
            tenant.tenant_id,
            ALICE,
        )
    finally:
        await admin.close()
    assert (await books.verify())["differingAccounts"] == [ALICE]
    assert {problem["problem"] for problem in await problems(platform, tenant)} == {
        "a currency does not sum to zero",
        "a balance is not the sum of its legs",
    }


async def test_every_kind_of_change_is_in_the_balances_that_verify(
    books: Bookkeeper, platform: Platform, tenant: Tenant
) -> None:
    async with ledger_of(platform, tenant) as ledger:
        kept = await ledger.hold(ALICE, BOB, 100)
        await ledger.capture(kept.hold_id, 40, keep_rest=True)
        await ledger.void((await ledger.hold(ALICE, BOB, 5)).hold_id)
        posted = await ledger.capture((await ledger.hold(ALICE, BOB, 7)).hold_id, 3)
        await ledger.revert(posted.transaction_id)
        await ledger.settle(BOB, ALICE)
    verified = await books.verify()
    assert (verified["brokenAt"], verified["differingAccounts"]) == ("0", [])
    kinds = {Change.FromString(base64.b64decode(entry["change"])).WhichOneof("kind") for entry in await books.log()}
    assert kinds == {"account_changed", "transaction_posted", "hold_placed", "hold_released"}
    holds = good(await books.get("/holds", state="HOLD_STATE_PENDING"))["holds"]
    assert [hold["capturedMinorUnits"] for hold in holds] == ["40"]
