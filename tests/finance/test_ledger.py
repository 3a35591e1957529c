"""The ledger: what is posted adds up, nobody is overdrawn, and what happened once stays."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from nexus.finance.ledger_mgr.v1 import books_pb2 as pb
from nexus.finance.ledger_mgr.v1 import faults, ledger_pb2
from nexus.type.v1.faults import IdempotencyKeyReused, InvalidRequest
from services.chassis.clock import moment, now, timestamp
from tests.finance.ledgers import ALICE, BOB, WORLD, C, D, Ledger, ledger_of, leg, problems, transfer
from tests.platforms import Platform, Tenant

LARGEST = 2**63 - 1


@pytest.fixture
async def ledger(platform: Platform, tenant: Tenant) -> AsyncIterator[Ledger]:
    """At the end of every test, the books add up."""
    async with ledger_of(platform, tenant) as ledger:
        yield ledger
        assert await problems(platform, tenant) == []


async def test_a_transaction_moves_money(ledger: Ledger) -> None:
    await ledger.open_usual(alice=1000)
    posted = await ledger.post(transfer(ALICE, BOB, 300, reference="rent", metadata={"month": "5"}))

    assert (await ledger.balance(ALICE)).available == 700
    assert (await ledger.balance(BOB)).available == 300
    assert posted.reference == "rent"
    assert dict(posted.metadata) == {"month": "5"}
    assert posted.actor == "operator"
    found = await ledger.call("GetTransaction", ledger_pb2.GetTransactionRequest(reference="rent"))
    assert found.transaction == posted


async def test_many_legs_in_many_currencies_each_add_up(ledger: Ledger) -> None:
    await ledger.open_usual()
    await ledger.open("cash", kind=pb.ACCOUNT_TYPE_ASSET)
    await ledger.post(
        pb.NewTransaction(
            legs=[
                leg("cash", D, 100),
                leg(ALICE, C, 60),
                leg(BOB, C, 40),
                leg("cash", D, 7, "JPY"),
                leg(WORLD, C, 7, "JPY"),
            ]
        )
    )

    assert (await ledger.balance("cash")).balance == 100
    assert (await ledger.balance("cash", "JPY")).balance == 7
    assert (await ledger.balance(BOB)).balance == 40


async def test_a_transaction_that_does_not_add_up_is_refused(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    with pytest.raises(faults.TransactionUnbalanced):
        await ledger.post(pb.NewTransaction(legs=[leg(ALICE, D, 10), leg(BOB, C, 9)]))
    with pytest.raises(faults.TransactionUnbalanced):
        await ledger.post(pb.NewTransaction(legs=[leg(ALICE, D, 10), leg(BOB, C, 10, "USD")]))
    for amount in (0, -5, -(2**63)):
        with pytest.raises(faults.AmountInvalid):
            await ledger.post(transfer(ALICE, BOB, amount))


async def test_nobody_spends_what_they_do_not_have(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    with pytest.raises(faults.InsufficientFunds) as refused:
        await ledger.post(transfer(ALICE, BOB, 101))
    assert refused.value.metadata == {"account": ALICE, "currency": "EUR", "available": "100", "needed": "101"}
    with pytest.raises(faults.InsufficientFunds):
        await ledger.post(transfer(ALICE, BOB, 1, "USD"))


async def test_an_overdraft_ends_at_its_limit(ledger: Ledger) -> None:
    await ledger.open_usual()
    await ledger.open("credit:1", allow_overdraft=True, overdraft_limit=50)
    await ledger.post(transfer("credit:1", BOB, 50))
    with pytest.raises(faults.InsufficientFunds):
        await ledger.post(transfer("credit:1", BOB, 1))


async def test_an_asset_is_not_spent_below_zero(ledger: Ledger) -> None:
    await ledger.open_usual()
    await ledger.open("cash", kind=pb.ACCOUNT_TYPE_ASSET)
    await ledger.post(transfer("cash", ALICE, 10))  # a deposit: the cash grows with what is owed to Alice
    with pytest.raises(faults.InsufficientFunds):
        await ledger.post(transfer(WORLD, "cash", 11))


async def test_the_same_key_happens_once(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    first = await ledger.post(transfer(ALICE, BOB, 60), key="once")
    assert await ledger.post(transfer(ALICE, BOB, 60), key="once") == first
    with pytest.raises(IdempotencyKeyReused):
        await ledger.post(transfer(ALICE, BOB, 61), key="once")
    assert (await ledger.balance(BOB)).available == 60


async def test_a_key_of_one_method_is_none_of_another(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    hold = await ledger.hold(ALICE, BOB, 10)
    await ledger.void(hold.hold_id, key="either")
    with pytest.raises(IdempotencyKeyReused):  # whose requests have the same bytes
        await ledger.capture(hold.hold_id, key="either")


async def test_a_refusal_leaves_its_key_free(ledger: Ledger) -> None:
    await ledger.open_usual()
    with pytest.raises(faults.InsufficientFunds):
        await ledger.post(transfer(ALICE, BOB, 5), key="later")
    await ledger.post(transfer(WORLD, ALICE, 5))
    await ledger.post(transfer(ALICE, BOB, 5), key="later")


async def test_a_reference_is_unique_in_its_tenant(ledger: Ledger, platform: Platform, other_tenant: Tenant) -> None:
    await ledger.open_usual(alice=100)
    posted = await ledger.post(transfer(ALICE, BOB, 1, reference="invoice 7"))
    with pytest.raises(faults.ReferenceTaken) as refused:
        await ledger.post(transfer(ALICE, BOB, 1, reference="invoice 7"))
    assert posted.transaction_id in refused.value.metadata["owner"]
    async with ledger_of(platform, other_tenant) as other:
        await other.open_usual(alice=100)
        await other.post(transfer(ALICE, BOB, 1, reference="invoice 7"))


async def test_one_tenant_sees_nothing_of_another(ledger: Ledger, platform: Platform, other_tenant: Tenant) -> None:
    await ledger.open_usual(alice=100)
    posted = await ledger.post(transfer(ALICE, BOB, 1), key="mine")
    hold = await ledger.hold(ALICE, BOB, 1)
    async with ledger_of(platform, other_tenant) as other:
        with pytest.raises(faults.AccountNotFound):
            await other.balance(ALICE)
        with pytest.raises(faults.AccountNotFound):
            await other.post(transfer(ALICE, BOB, 1), key="mine")
        with pytest.raises(faults.TransactionNotFound):
            await other.revert(posted.transaction_id)
        with pytest.raises(faults.HoldNotFound):
            await other.capture(hold.hold_id)
        with pytest.raises(faults.HoldNotFound):
            await other.get_hold(hold.hold_id)
        listed = await other.call("ListTransactions", ledger_pb2.ListTransactionsRequest())
        assert not listed.transactions


async def test_totals_beyond_64_bits_are_refused(ledger: Ledger) -> None:
    await ledger.open_usual(alice=LARGEST)
    with pytest.raises(faults.AmountTooLarge):
        await ledger.post(transfer(WORLD, BOB, 1))
    await ledger.open("second", kind=pb.ACCOUNT_TYPE_EQUITY, allow_overdraft=True)
    with pytest.raises(faults.AmountTooLarge):
        await ledger.post(transfer("second", ALICE, 1))
    await ledger.post(transfer(ALICE, BOB, LARGEST))
    with pytest.raises(faults.AmountTooLarge):
        await ledger.hold(BOB, ALICE, LARGEST)
    assert (await ledger.balance(BOB)).balance == LARGEST


async def test_a_hold_sets_aside_and_a_capture_takes(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    hold = await ledger.hold(ALICE, BOB, 70, reference="order 9")
    balance = await ledger.balance(ALICE)
    assert (balance.balance, balance.available, balance.held_debits) == (100, 30, 70)
    with pytest.raises(faults.InsufficientFunds):
        await ledger.post(transfer(ALICE, BOB, 31))

    posted = await ledger.capture(hold.hold_id, 50)
    assert (posted.kind, posted.hold_id) == (pb.TRANSACTION_KIND_CAPTURE, hold.hold_id)
    balance = await ledger.balance(ALICE)
    assert (balance.balance, balance.available, balance.held_debits) == (50, 50, 0)
    with pytest.raises(faults.HoldResolved):
        await ledger.capture(hold.hold_id)
    found = await ledger.call("GetHold", ledger_pb2.GetHoldRequest(reference="order 9"))
    assert (found.hold.state, found.hold.captured_minor_units) == (pb.HOLD_STATE_CAPTURED, 50)


async def test_a_hold_can_be_captured_bit_by_bit(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    hold = await ledger.hold(ALICE, BOB, 100)
    await ledger.capture(hold.hold_id, 30, keep_rest=True)
    assert (await ledger.balance(ALICE)).held_debits == 70
    with pytest.raises(faults.CaptureTooLarge):
        await ledger.capture(hold.hold_id, 71)
    await ledger.capture(hold.hold_id, 70, keep_rest=True)
    assert (await ledger.get_hold(hold.hold_id)).state == pb.HOLD_STATE_CAPTURED
    assert (await ledger.balance(BOB)).balance == 100


async def test_a_voided_hold_frees_everything(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    hold = await ledger.hold(ALICE, BOB, 100)
    await ledger.void(hold.hold_id)
    assert (await ledger.balance(ALICE)).available == 100
    with pytest.raises(faults.HoldResolved):
        await ledger.void(hold.hold_id)


async def test_a_hold_expires_by_itself(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    hold = await ledger.hold(ALICE, BOB, 100, expire_time=timestamp(now() + timedelta(seconds=1)))
    with pytest.raises(faults.InsufficientFunds):
        await ledger.hold(ALICE, BOB, 1)
    async with asyncio.timeout(20):
        while (found := await ledger.get_hold(hold.hold_id)).state == pb.HOLD_STATE_PENDING:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert found.state == pb.HOLD_STATE_EXPIRED
    with pytest.raises(faults.HoldResolved):
        await ledger.capture(hold.hold_id)
    assert (await ledger.balance(ALICE)).available == 100


async def test_a_reversal_takes_back_once(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    posted = await ledger.post(transfer(ALICE, BOB, 100))
    reversal = await ledger.revert(posted.transaction_id)
    assert (await ledger.balance(ALICE)).balance == 100
    assert reversal.reverts == posted.transaction_id
    with pytest.raises(faults.TransactionNotRevertible):
        await ledger.revert(posted.transaction_id)
    with pytest.raises(faults.TransactionNotRevertible):
        await ledger.revert(reversal.transaction_id)
    found = await ledger.call("GetTransaction", ledger_pb2.GetTransactionRequest(transaction_id=posted.transaction_id))
    assert found.transaction.reverted_by == reversal.transaction_id


async def test_what_has_been_spent_cannot_be_reverted(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    posted = await ledger.post(transfer(ALICE, BOB, 100))
    await ledger.post(transfer(BOB, WORLD, 1))
    with pytest.raises(faults.InsufficientFunds):
        await ledger.revert(posted.transaction_id)


async def test_the_past_can_be_asked_for_as_it_was_and_as_it_was_known(ledger: Ledger) -> None:
    await ledger.open_usual()
    monday, tuesday = datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC)
    first = await ledger.post(transfer(WORLD, ALICE, 100, effective_time=timestamp(monday)))
    late = await ledger.post(transfer(WORLD, ALICE, 50, effective_time=timestamp(monday)))
    await ledger.post(transfer(ALICE, BOB, 30, effective_time=timestamp(tuesday)))

    assert (await ledger.balance(ALICE)).balance == 120
    assert (await ledger.balance(ALICE, as_of=monday)).balance == 150
    assert (await ledger.balance(ALICE, as_of=monday - timedelta(microseconds=1))).balance == 0
    assert late.create_time.ToMicroseconds() > first.create_time.ToMicroseconds()
    assert (await ledger.balance(ALICE, as_of=monday, known=moment(first.create_time))).balance == 100
    with pytest.raises(faults.EffectiveTimeInvalid):
        await ledger.post(transfer(WORLD, ALICE, 1, effective_time=timestamp(now() + timedelta(hours=1))))


async def test_a_reversal_as_of_its_time_undoes_the_past(ledger: Ledger) -> None:
    await ledger.open_usual()
    monday = datetime(2026, 3, 2, tzinfo=UTC)
    wrong = await ledger.post(transfer(WORLD, ALICE, 100, effective_time=timestamp(monday)))
    await ledger.revert(wrong.transaction_id, at_effective_time=True)
    assert (await ledger.balance(ALICE, as_of=monday)).balance == 0


async def test_accounts_open_with_the_transaction_that_needs_them(ledger: Ledger) -> None:
    await ledger.open(WORLD, kind=pb.ACCOUNT_TYPE_EQUITY, allow_overdraft=True)
    wanted = pb.NewAccount(name="users:new", type=pb.ACCOUNT_TYPE_LIABILITY)
    for _ in range(2):
        await ledger.post(transfer(WORLD, "users:new", 5, open_accounts=[wanted]))
    assert (await ledger.balance("users:new")).balance == 10
    different = pb.NewAccount(name="users:new", type=pb.ACCOUNT_TYPE_INCOME)
    with pytest.raises(faults.AccountDiffers):
        await ledger.post(transfer(WORLD, "users:new", 5, open_accounts=[different]))
    # The overdraft is the tenant's to change: whoever opened the account with another one goes on with it.
    lenient = pb.NewAccount(name="users:new", type=pb.ACCOUNT_TYPE_LIABILITY, allow_overdraft=True)
    await ledger.post(transfer(WORLD, "users:new", 5, open_accounts=[lenient]))
    with pytest.raises(faults.InsufficientFunds):
        await ledger.post(transfer("users:new", WORLD, 16, open_accounts=[lenient]))
    other = pb.NewAccount(name="users:other", type=pb.ACCOUNT_TYPE_LIABILITY)
    with pytest.raises(faults.InsufficientFunds):
        await ledger.post(transfer("users:other", WORLD, 5, open_accounts=[other]))
    with pytest.raises(faults.AccountNotFound):  # what is refused leaves no account behind
        await ledger.balance("users:other")


@pytest.mark.parametrize("name", ["", ":a", "a:", "a::b", "a b", "a:é", "x" * 65, ":".join("abcdefghijk")])
async def test_names_are_segments_between_colons(ledger: Ledger, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await ledger.open(name)


async def test_a_linked_batch_is_posted_whole_or_not_at_all(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)

    async def post(mode: int, *amounts: int) -> list[str]:
        items = [
            ledger_pb2.PostTransactionRequest(idempotency_key=f"{mode} {n}", transaction=transfer(ALICE, BOB, amount))
            for n, amount in enumerate(amounts)
        ]
        request = ledger_pb2.PostTransactionsRequest(mode=mode, items=items)  # type: ignore[arg-type]
        results = (await ledger.call("PostTransactions", request)).results
        return [result.WhichOneof("outcome") for result in results]

    assert await post(ledger_pb2.BATCH_MODE_LINKED, 60, 60, 1) == ["error"] * 3
    assert (await ledger.balance(BOB)).balance == 0
    assert await post(ledger_pb2.BATCH_MODE_INDEPENDENT, 60, 60, 1) == ["transaction", "error", "transaction"]
    assert (await ledger.balance(BOB)).balance == 61
    assert await post(ledger_pb2.BATCH_MODE_LINKED, 30, 9) == ["transaction"] * 2
    assert (await ledger.balance(BOB)).balance == 100
    assert await post(ledger_pb2.BATCH_MODE_LINKED, 30, 9) == ["transaction"] * 2  # a repeat, from the log
    assert (await ledger.balance(BOB)).balance == 100


async def test_poison_fails_alone(ledger: Ledger) -> None:
    """What only the database refuses, the character NUL in a reference, takes nobody else along."""
    await ledger.open_usual(alice=100)
    posts = [ledger.post(transfer(ALICE, BOB, 1, reference="a\0b" if n == 5 else "")) for n in range(20)]
    outcomes = await asyncio.gather(*posts, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == [InvalidRequest]
    assert (await ledger.balance(BOB)).balance == 19


async def test_history_pages_backwards_with_the_balance_after_each(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    for amount in (10, 20, 30):
        await ledger.post(transfer(ALICE, BOB, amount))
    seen, token = [], ""
    while True:
        page = await ledger.call(
            "ListEntries", ledger_pb2.ListEntriesRequest(account=ALICE, page_size=3, page_token=token)
        )
        seen += [(entry.side, entry.amount.minor_units, entry.balance_after) for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert seen == [(D, 30, 40), (D, 20, 70), (D, 10, 90), (C, 100, 100)]


async def test_transactions_are_found_by_account_metadata_kind_and_time(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    posted = await ledger.post(transfer(ALICE, BOB, 10, metadata={"order": "7", "shop": "x"}))
    reversal = await ledger.revert(posted.transaction_id)
    await ledger.post(transfer(WORLD, BOB, 1))

    async def found(**wanted: object) -> list[str]:
        wanted_filter = pb.TransactionFilter(**wanted)  # type: ignore[arg-type]
        answer = await ledger.call("ListTransactions", ledger_pb2.ListTransactionsRequest(filter=wanted_filter))
        return [transaction.transaction_id for transaction in answer.transactions]

    both = [reversal.transaction_id, posted.transaction_id]
    assert (await found(account="users:alice"))[:2] == both
    assert len(await found(account="users")) == 4
    assert await found(account="user") == []
    assert await found(metadata={"order": "7"}) == both
    assert await found(metadata={"order": "7", "shop": "y"}) == []
    assert await found(kind=pb.TRANSACTION_KIND_REVERSAL) == both[:1]
    assert await found(to_time=timestamp(now() - timedelta(hours=1))) == []


async def test_a_settlement_splits_to_the_cent(ledger: Ledger) -> None:
    await ledger.open_usual()
    await ledger.open("revenue", kind=pb.ACCOUNT_TYPE_INCOME)
    await ledger.open("payable")
    for amount in (1, 2, 3, 99, 101, 12_345):
        await ledger.post(transfer(WORLD, "revenue", amount))
        settled = await ledger.settle("revenue", "payable")
        exact = amount * 2 / 10
        assert settled.platform_minor_units + settled.tenant_minor_units == amount
        assert abs(settled.platform_minor_units - exact) <= 0.5
        assert settled.transaction.platform_basis_points == 2000
    assert (await ledger.balance("revenue")).balance == 0
    with pytest.raises(faults.NothingToSettle):
        await ledger.settle("revenue", "payable")


async def test_beneficiaries_share_the_tenants_part(ledger: Ledger) -> None:
    await ledger.open_usual()
    await ledger.open("revenue", kind=pb.ACCOUNT_TYPE_INCOME)
    await ledger.open("payable", "artists:1", "artists:2")
    await ledger.post(transfer(WORLD, "revenue", 1001))
    half = [pb.Beneficiary(account=name, basis_points=3333) for name in ("artists:1", "artists:2")]
    settled = await ledger.settle("revenue", "payable", beneficiaries=half)
    assert (settled.platform_minor_units, settled.tenant_minor_units) == (200, 801)
    parts = {leg.account: leg.amount.minor_units for leg in settled.transaction.legs}
    assert parts == {"revenue": 1001, "payable": 267, "artists:1": 267, "artists:2": 267, "platform:share": 200}
    with pytest.raises(faults.SharesTooLarge):
        await ledger.settle("revenue", "payable", minor_units=1, beneficiaries=half * 2)
