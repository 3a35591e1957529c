"""Whatever customers do with subscriptions: they agree with a model that a child could follow, and nobody is owed more
than they have paid."""

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.chassis.clients import Clients
from services.chassis.context import OPERATOR
from services.chassis.ids import new_id
from tests.finance.billing import Billing
from tests.finance.test_subscriptions import end_of
from tests.platforms import Platform, Tenant

FEES = (0, 1_000, 2_599, 9_999)
COUPONS: dict[str, dict[str, Any]] = {
    "HALF": {"basisPoints": 5_001, "bills": 1},
    "FREE": {"basisPoints": 10_000},
    "SEVEN": {"amount": {"currency": "EUR", "minorUnits": "700"}, "bills": 2},
}
CENTS = 3
"""By so much a change may differ: a minute has gone by since the period began, and parts are rounded."""


@dataclass
class Model:
    """One customer's subscription. Time stands still within a period: a change gives all of a fee back, or charges all
    of it."""

    fee: int = 0
    """What the period has been charged at."""
    taken_off: int = 0
    waiting: int = 0
    credit: int = 0
    charged: int = 0
    coupon: str = ""
    coupon_left: int = 0
    changes: int = 0

    def begin(self, fee: int) -> None:
        """A period, with its bill."""
        self.taken_off = self.reduction(fee) if self.coupon_left else 0
        self.coupon_left -= bool(self.taken_off)
        self.fee = fee - self.taken_off
        self.waiting += self.fee
        self.bill()

    def reduction(self, fee: int) -> int:
        terms = COUPONS[self.coupon]
        return fee * terms["basisPoints"] // 10_000 if "basisPoints" in terms else min(fee, 700)

    def change(self, fee: int) -> None:
        if self.taken_off:
            terms = COUPONS[self.coupon]
            fee -= self.reduction(fee) if "basisPoints" in terms else min(fee, self.taken_off)
        self.waiting += fee - self.fee
        self.fee = fee
        self.changes += 1

    def end(self) -> None:
        self.waiting -= self.fee
        self.changes += 1
        self.bill()

    def bill(self) -> None:
        used = min(self.waiting, self.credit)
        self.credit -= used
        self.charged += self.waiting - used
        self.waiting = 0


class SubscriptionMachine(RuleBasedStateMachine):
    """A customer with one subscription at a time, through the edge; the operator lets periods end."""

    run: Any
    billing: Billing
    prices: dict[int, dict[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.customer = new_id()
        self.model = Model()
        self.subscription: dict[str, Any] = {}

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        made: dict[str, Any] = self.run(self.billing.ok(path, **body))
        return made

    def read(self, path: str, **query: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.run(self.billing.read(path, **query))
        return found

    @property
    def path(self) -> str:
        return f"/subscriptions/{self.subscription['subscriptionId']}"

    @initialize()
    def have_a_card(self) -> None:
        self.run(self.billing.card(customerId=self.customer))

    @rule(fee=st.sampled_from(FEES), quantity=st.integers(1, 3), coupon=st.sampled_from(["", *COUPONS]))
    @precondition(lambda self: not self.subscription)
    def subscribe(self, fee: int, quantity: int, coupon: str) -> None:
        made = self.post(
            "/subscriptions",
            priceId=self.prices[fee]["priceId"],
            quantity=quantity,
            couponCode=coupon,
            customerId=self.customer,
            requestId=new_id(),
        )
        self.subscription = made["subscription"]
        self.model.coupon = coupon
        self.model.coupon_left = COUPONS[coupon].get("bills", 1_000_000) if coupon else 0
        self.model.begin(fee * quantity)

    @rule(fee=st.sampled_from(FEES), quantity=st.integers(1, 3), at_once=st.booleans())
    @precondition(lambda self: self.subscription)
    def change(self, fee: int, quantity: int, at_once: bool) -> None:
        proration = "PRORATION_BILL_NOW" if at_once else "PRORATION_ON_NEXT_BILL"
        terms = {"priceId": self.prices[fee]["priceId"], "quantity": quantity, "proration": proration}
        self.post(f"{self.path}:change", **terms)
        self.model.change(fee * quantity)
        if at_once:
            self.model.bill()
            self.pay()

    @rule()
    @precondition(lambda self: self.subscription)
    def the_period_ends(self) -> None:
        known = self.read(self.path)["subscription"]
        self.run(self.billing.run_billing(end_of(known)))
        fee = next(fee for fee, price in self.prices.items() if price["priceId"] == known["priceId"])
        self.model.begin(fee * int(known["quantity"]))

    @rule()
    @precondition(lambda self: self.subscription)
    def cancel(self) -> None:
        self.post(f"{self.path}:cancel", now=True, prorate=True)
        self.model.end()
        self.pay()
        self.subscription = {}

    def pay(self) -> None:
        for bill in self.read("/bills", customerId=self.customer)["bills"]:
            if bill["state"] == "BILL_STATE_OPEN":
                self.post(f"/bills/{bill['billId']}:pay", requestId=new_id())

    @invariant()
    def money_in_is_what_was_billed_and_what_is_owed(self) -> None:
        def of(money: dict[str, Any]) -> int:
            return int(money.get("minorUnits", 0))

        payments = self.read("/payments", customerId=self.customer).get("payments", [])
        bills = self.read("/bills", customerId=self.customer).get("bills", [])
        taken = sum(of(payment["captured"]) for payment in payments)
        found = self.read("/customer", customerId=self.customer)["customer"].get("credits", [])
        credit = sum(map(of, found))
        lines = [line for bill in bills for line in bill["lines"]]
        assert {bill["state"] for bill in bills} <= {"BILL_STATE_PAID"}
        assert taken == sum(of(bill["total"]) for bill in bills) == sum(of(line["amount"]) for line in lines)
        sold = sum(of(line["amount"]) for line in lines if line["kind"] != "LINE_KIND_CREDIT")
        assert taken == sold + credit
        assert 0 <= credit <= taken
        allowed = CENTS * self.model.changes
        assert abs(taken - self.model.charged) <= allowed
        assert abs(credit - self.model.credit) <= allowed

    def teardown(self) -> None:
        if self.subscription:
            self.post(f"{self.path}:cancel", now=True)  # the next one's periods end without it


def test_subscriptions_agree_with_the_model(platform: Platform, tenant: Tenant) -> None:
    with asyncio.Runner() as runner:
        http = httpx.AsyncClient(base_url=platform.http_url, timeout=20)
        clients = Clients(platform.settings, OPERATOR, None)
        billing = runner.run(Billing.of(tenant, http, clients))
        prices = {fee: runner.run(billing.price(fee)) for fee in FEES}
        for code, terms in COUPONS.items():
            runner.run(billing.ok("/coupons", code=code, **terms))
        shared = {"run": staticmethod(runner.run), "billing": billing, "prices": prices}
        try:
            run_state_machine_as_test(
                type("Machine", (SubscriptionMachine,), shared),
                settings=settings(
                    max_examples=8, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
                ),
            )
        finally:
            runner.run(clients.stop())
            runner.run(http.aclose())
