"""Stripe's own mock knows its whole API: it refuses a request with a parameter that Stripe would refuse.

It is a Go program of `mesh/tools`; where it is not built, the requests are proven by
tests/finance/test_payment_providers.py alone.
"""

import socket
import subprocess
from collections.abc import Iterator

import pytest

from nexus.finance.billing_service.v1.customers_pb2 import StripeAccount
from services.finance.billing_service.providers.interface import Charge
from services.finance.billing_service.providers.stripe import StripeProvider
from tests.platforms import eventually
from tests.tools import tool

pytestmark = [
    # The SDK hands httpx a form as text.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


@pytest.fixture
def url() -> Iterator[str]:
    program, ports = tool("stripe-mock"), [_free_port(), _free_port()]
    process = subprocess.Popen(
        [program, "-http-port", str(ports[0]), "-https-port", str(ports[1])], stdout=subprocess.DEVNULL
    )
    eventually(lambda: _listens(ports[0]))
    yield f"http://127.0.0.1:{ports[0]}"
    process.terminate()
    process.wait(10)


async def test_stripe_accepts_every_request_that_we_make(url: str) -> None:
    provider = StripeProvider(StripeAccount(api_key="sk_test_123"), url, 10)
    await provider.check()
    card = await provider.attach("pm_card_visa", "customer", "key")
    assert (card.brand, card.last_digits) == ("visa", "4242")
    charge = Charge("p", "o", "c", card.provider_token, card.provider_customer, "EUR", 1000, False, True, "An order")
    payment = (await provider.authorize(charge)).provider_payment_id
    assert payment.startswith("pi_")
    await provider.capture(payment, 500, "EUR", False, "k1")
    await provider.refund(payment, 100, "EUR", "k2")
    await provider.void(payment, "k3")
    await provider.confirm(payment, "", "k4")
    await provider.answer_dispute(payment, "dp_1", "evidence")
    assert await provider.find(charge) is not None
    await provider.detach(card.provider_token)
    await provider.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
