"""EasyPost's protocol, with a server that speaks it: a label is charged once, whatever gets lost on the way."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from nexus.commerce.puabo_nuki_shipping_service.v1.faults import CarrierRefused, CarrierUnavailable
from nexus.type.v1.money_pb2 import Money
from services.commerce.puabo_nuki_shipping_service.carriers import EasyPost
from tests.commerce.easypost import KEY, LABEL, Books, easypost
from tests.commerce.test_shipping_rules import shipment

GROUND = shipment(service="Ground")


@pytest.fixture
def books() -> Iterator[Books]:
    with easypost() as books:
        yield books


def client(books: Books, key: str = KEY) -> EasyPost:
    return EasyPost(books.url, key, timedelta(seconds=5))


async def test_a_label_is_bought_at_the_best_rate_of_its_service(books: Books) -> None:
    carrier = client(books)
    reference = await carrier.prepare(GROUND)
    assert books.charges == 0
    bought = await carrier.buy(reference, GROUND)
    assert (bought.tracking_number, bought.cost) == ("EZ0000000001", Money(currency="USD", minor_units=607))
    assert await carrier.label(reference, GROUND) == LABEL
    asked = books.shipments[reference]
    assert asked["reference"] == GROUND.shipment_id
    assert asked["parcel"]["weight"] == 43.53  # 1234 g in ounces
    assert asked["to_address"]["zip"] == "50667"


async def test_when_the_answer_is_lost_the_label_is_not_bought_again(books: Books) -> None:
    carrier = client(books)
    reference = await carrier.prepare(GROUND)
    books.lose_answers.append("/buy")
    with pytest.raises(CarrierUnavailable):
        await carrier.buy(reference, GROUND)
    assert books.charges == 1
    first = await carrier.buy(reference, GROUND)
    assert first == await carrier.buy(reference, GROUND)
    assert books.charges == 1


async def test_a_twin_that_was_faster_is_no_failure(books: Books) -> None:
    """Between our look and our purchase somebody else bought it."""
    carrier = client(books)
    reference = await carrier.prepare(GROUND)
    hidden = books.shipments[reference]
    await carrier.buy(reference, GROUND)

    class Behind(EasyPost):
        looks = 0

        async def _call(self, verb: str, path: str, body: object = None) -> object:
            answer = await super()._call(verb, path, body)
            if verb == "GET" and self.looks == 0:
                self.looks += 1
                return {**answer, "postage_label": None}
            return answer

    behind = Behind(books.url, KEY, timedelta(seconds=5))
    assert (await behind.buy(reference, GROUND)).tracking_number == hidden["tracking_code"]
    assert books.charges == 1


async def test_a_label_is_given_back_once_and_only_if_there_is_one(books: Books) -> None:
    carrier = client(books)
    reference = await carrier.prepare(GROUND)
    await carrier.void(reference)
    assert books.refunds == 0
    await carrier.buy(reference, GROUND)
    for _ in range(2):
        await carrier.void(reference)
    assert books.refunds == 1


async def test_a_no_is_told_with_its_reason(books: Books) -> None:
    nowhere = shipment(service="Ground", to={"name": "Nobody", "country": "DE"})
    with pytest.raises(CarrierRefused, match=r"ADDRESS\.VERIFY\.FAILURE"):
        await client(books).prepare(nowhere)
    with pytest.raises(CarrierRefused, match=r"APIKEY\.INACTIVE"):
        await client(books, "wrong").prepare(GROUND)
    reference = await client(books).prepare(GROUND)
    with pytest.raises(CarrierRefused, match="does not offer Express"):
        await client(books).buy(reference, shipment())


async def test_a_carrier_that_is_away_is_unavailable() -> None:
    away = EasyPost("http://127.0.0.1:9", KEY, timedelta(seconds=1))
    with pytest.raises(CarrierUnavailable):
        await away.prepare(GROUND)
