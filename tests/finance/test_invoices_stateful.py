"""Whatever is done with invoices, in whichever order: they agree with a model that a child could follow."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from services.chassis.ids import new_id
from tests.finance.invoices import SELLER, STANDARD, Invoices, content, line
from tests.platforms import Platform, SignedIn, Tenant

UNIT = 1_190
"""What one unit comes to, with its tax."""


@dataclass
class Model:
    """A finalized invoice of so many units."""

    invoice_id: str
    number: int
    units: int
    left: int
    paid: int = 0
    payments: dict[str, int] = field(default_factory=dict)

    @property
    def due(self) -> int:
        return max(0, self.left * UNIT - self.paid)


class InvoiceMachine(RuleBasedStateMachine):
    """Alone in its tenant, save for the examples before it; everything goes through the edge."""

    base_url: str
    user: SignedIn

    drafts: Bundle[tuple[str, int]] = Bundle("drafts")
    finals: Bundle[Model] = Bundle("finals")

    def __init__(self) -> None:
        super().__init__()
        self.client = httpx.Client(base_url=self.base_url, headers=self.user.headers, timeout=15)
        self.year = str(datetime.now(ZoneInfo(SELLER["timeZone"])).year)
        self.numbers = self.verified()["lastNumber"]
        self.all: list[Model] = []

    def teardown(self) -> None:
        for model in self.all:
            found = self.call("GET", f"/invoices/{model.invoice_id}")["invoice"]
            state = "INVOICE_STATE_FINALIZED" if model.left else "INVOICE_STATE_VOID"
            assert (found["seriesNumber"], found["state"]) == (model.number, state)
            assert int(found["amountCredited"]["minorUnits"]) == (model.units - model.left) * UNIT
            assert int(found["amountPaid"]["minorUnits"]) == model.paid
            assert int(found["amountDue"]["minorUnits"]) == model.due
        self.client.close()

    def call(self, verb: str, path: str, refused: str = "", **body: Any) -> Any:
        answer = self.client.request(verb, f"/api/v1{path}", json=body if verb != "GET" else None)
        if refused:
            assert answer.json()["details"][0]["reason"] == refused, answer.text
        else:
            assert answer.status_code == 200, answer.text
        return answer.json()

    def verified(self) -> Any:
        return self.call("GET", f"/invoicing/series/invoices:verify?year={self.year}")

    @rule(target=drafts, units=st.integers(1, 5))
    def draft(self, units: int) -> tuple[str, int]:
        body = content(line(1_000, str(units), tax=STANDARD))
        made = self.call("POST", "/invoices", content=body, requestId=new_id())["invoice"]
        return made["invoiceId"], units

    @rule(target=drafts, draft=consumes(drafts), units=st.integers(1, 5))
    def change(self, draft: tuple[str, int], units: int) -> tuple[str, int]:
        body = content(line(1_000, str(units), tax=STANDARD))
        self.call("PUT", f"/invoices/{draft[0]}", content=body)
        return draft[0], units

    @rule(draft=consumes(drafts))
    def give_up(self, draft: tuple[str, int]) -> None:
        self.call("POST", f"/invoices/{draft[0]}:void")
        self.call("POST", f"/invoices/{draft[0]}:finalize", refused="INVOICE_VOID")

    @rule(target=finals, draft=consumes(drafts), again=st.booleans())
    def finalize(self, draft: tuple[str, int], again: bool) -> Model:
        self.numbers += 1
        for _ in range(2 if again else 1):
            final = self.call("POST", f"/invoices/{draft[0]}:finalize")["invoice"]
            assert final["seriesNumber"] == self.numbers
        self.all.append(Model(draft[0], self.numbers, draft[1], draft[1]))
        return self.all[-1]

    @rule(final=finals)
    def change_in_vain(self, final: Model) -> None:
        self.call("PUT", f"/invoices/{final.invoice_id}", refused="INVOICE_NOT_DRAFT", content=content(line(1)))

    @rule(final=finals, units=st.integers(1, 6))
    def credit(self, final: Model, units: int) -> None:
        refused = ""
        if not final.left:
            refused = "INVOICE_NOT_FINALIZED"
        elif units > final.left:
            refused = "CREDIT_TOO_HIGH"
        body = {"lines": [{"line": 0, "quantity": str(units)}], "reason": "back", "requestId": new_id()}
        answer = self.call("POST", f"/invoices/{final.invoice_id}/credit-notes", refused=refused, **body)
        if not refused:
            assert int(answer["creditNote"]["totals"]["total"]) == units * UNIT
            final.left -= units

    @rule(final=finals)
    def void(self, final: Model) -> None:
        answer = self.call("POST", f"/invoices/{final.invoice_id}:void", reason="back")
        if final.left:
            assert int(answer["creditNote"]["totals"]["total"]) == final.left * UNIT
        else:
            assert "creditNote" not in answer
        final.left = 0

    @rule(final=finals, reference=st.sampled_from("abc"), amount=st.integers(1, 4_000))
    def pay(self, final: Model, reference: str, amount: int) -> None:
        known = final.payments.get(reference)
        refused = "PAYMENT_DIFFERS" if known not in (None, amount) else ""
        money = {"currency": "EUR", "minorUnits": amount}
        path = f"/invoices/{final.invoice_id}/payments"
        self.call("POST", path, refused=refused, paymentReference=reference, amount=money)
        if known is None:
            final.payments[reference] = amount
            final.paid += amount

    @invariant()
    def no_number_is_missing(self) -> None:
        assert self.verified() == {"documents": self.numbers, "lastNumber": self.numbers, "missing": []}


@pytest.fixture
async def owner(tenant: Tenant, http: httpx.AsyncClient) -> SignedIn:
    user = await tenant.sign_in("owner")
    await Invoices(http, user).set_seller()
    return user


def test_invoices_agree_with_the_model(platform: Platform, owner: SignedIn) -> None:
    machine = type("Machine", (InvoiceMachine,), {"base_url": platform.http_url, "user": owner})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
