"""Orders, from the search to the invoice, through the edge."""

import asyncio
from collections import Counter
from urllib.parse import quote

import pytest

from services.chassis.ids import new_id
from tests.commerce.buyers import ADDRESS, PRICE, SHIPPING, Buyer, all_is_well, furnish, put_right, stocked
from tests.commerce.shops import Json, Shop, reason
from tests.platforms import PASSWORD

HAPPY = [
    "CheckedOut",
    "StockReserved",
    "OrderPlaced",
    "PaymentAuthorized",
    "LabelsBought",
    "PaymentCaptured",
    "StockCommitted",
    "InvoiceIssued",
    "SaleBooked",
    "OrderConfirmed",
]


@pytest.fixture
async def open_shop(shop: Shop) -> Shop:
    return await furnish(shop)


async def test_from_the_search_to_the_invoice(open_shop: Shop) -> None:
    shop = open_shop
    variant = await stocked(shop, "Linen dress", 5)
    # A guest searches and fills a cart.
    found = (await shop.search("linen"))["results"]
    assert [result["title"] for result in found] == ["Linen dress"]
    guest = (await shop.http.post("/api/v1/carts", json={"currency": "EUR"}, headers=shop.tenant.headers)).json()
    opener = {"cartSecret": guest["cartSecret"]}
    filled = await shop.http.post(
        f"/api/v1/carts/{guest['cart']['cartId']}:setLines",
        json={"lines": [{"variantId": variant, "quantity": 2}], **opener},
        headers=shop.tenant.headers,
    )
    assert filled.json()["cart"]["totals"]["goods"]["minorUnits"] == str(2 * PRICE)
    # Signed in, the cart comes along.
    buyer = await Buyer.of(shop)
    taken = await buyer.post(
        "/api/v1/my/cart", currency="EUR", guestCartId=guest["cart"]["cartId"], guestCartSecret=guest["cartSecret"]
    )
    cart_id, opener = taken["cart"]["cartId"], {"cartSecret": taken["cartSecret"]}
    assert [line["quantity"] for line in taken["cart"]["lines"]] == [2]
    await buyer.post(f"/api/v1/carts/{cart_id}:setAddress", shippingAddress=ADDRESS, **opener)
    options = (await buyer.post(f"/api/v1/carts/{cart_id}:shippingOptions", **opener))["options"]
    cart = (await buyer.post(f"/api/v1/carts/{cart_id}:chooseShipping", quoteId=options[0]["quoteId"], **opener))[
        "cart"
    ]
    total = 2 * PRICE + SHIPPING
    assert cart["totals"]["total"] == {"currency": "EUR", "minorUnits": str(total)}
    # Checkout freezes and reserves.
    order = (
        await buyer.post(
            "/api/v1/orders",
            cartId=cart_id,
            cartEtag=cart["etag"],
            expectedTotal=cart["totals"]["total"],
            requestId=new_id(),
            **opener,
        )
    )["order"]
    assert order["state"] == "ORDER_STATE_OPEN"
    assert await shop.level(variant) == (5, 2)
    placed = await buyer.place(order)
    assert placed["state"] == "ORDER_STATE_CONFIRMED", placed
    assert placed["captured"]["minorUnits"] == str(total)
    assert placed["parcels"][0]["trackingNumber"]
    assert await shop.level(variant) == (3, 0)
    assert await buyer.timeline(order["orderId"]) == HAPPY
    # The invoice says the same.
    pdf = await buyer.ask("GET", f"/api/v1/my/invoices/{placed['invoiceId']}/pdf")
    assert pdf.status_code == 200
    assert pdf.content.startswith(b"%PDF")
    invoice = (await shop.get(f"/api/v1/invoices/{placed['invoiceId']}"))["invoice"]
    assert invoice["totals"]["total"] == str(total)
    assert invoice["amountDue"]["minorUnits"] == "0"
    assert invoice["totals"]["tax"] == placed["totals"]["tax"]["minorUnits"]
    assert reason(await buyer.ask("POST", f"/api/v1/carts/{cart_id}:read", opener)) == "CART_NOT_FOUND"
    assert await all_is_well(shop) == []


async def test_a_guests_cart_is_kept_while_the_customers_own_is_being_checked_out(open_shop: Shop) -> None:
    shop = open_shop
    variant = await stocked(shop, "Linen dress", 5)
    buyer = await Buyer.of(shop)
    own, _ = await buyer.cart({variant: 1}, ship=False)
    _, guest = await buyer.guest_cart({variant: 2})
    # A checkout holds the cart for the blink in which it reserves; here somebody died in it.
    handed_over = "UPDATE puabo_nuki_order_processor.carts SET order_id = $1 WHERE cart_id = $2"
    admin = await shop.tenant.platform.admin()
    await admin.execute(handed_over, new_id(), own["cartId"])
    taking = {"currency": "EUR", "guestCartId": guest["cartId"], "guestCartSecret": guest["cartSecret"]}
    refused = await buyer.ask("POST", "/api/v1/my/cart", taking)
    assert reason(refused) == "CART_NOT_FOUND"
    await admin.execute(handed_over, None, own["cartId"])
    await admin.close()
    taken = (await buyer.post("/api/v1/my/cart", **taking))["cart"]
    assert [line["quantity"] for line in taken["lines"]] == [3]


async def test_a_hundred_buyers_of_the_last_ten_get_ten(open_shop: Shop) -> None:
    shop = open_shop
    variant = await stocked(shop, "Last scarf", 10)
    # One user with a hundred carts would share one: each buyer is a guest's cart checked out by one of ten users.
    buyers = await asyncio.gather(*(Buyer.of(shop) for _ in range(10)))

    async def buy(number: int) -> str:
        buyer = buyers[number % len(buyers)]
        _, opener = await buyer.guest_cart({variant: 1})
        answer = await buyer.ask("POST", "/api/v1/orders", {**opener, "requestId": new_id()})
        if answer.status_code != 200:
            return str(reason(answer))
        order = await buyer.place(answer.json()["order"])
        return str((await buyer.settled(order["orderId"]))["state"])

    outcomes = Counter(await asyncio.gather(*(buy(number) for number in range(100))))
    assert outcomes == {"ORDER_STATE_CONFIRMED": 10, "OUT_OF_STOCK": 90}
    assert await shop.level(variant) == (0, 0)
    assert await all_is_well(shop) == []


@pytest.mark.parametrize(
    ("card", "cause"),
    [
        ("card_declined", "CARD_DECLINED"),
        ("card_insufficient_funds", "INSUFFICIENT_FUNDS"),
        ("card_stolen", "FRAUD_SUSPECTED"),
    ],
)
async def test_a_declined_order_keeps_its_stock_and_is_paid_with_another_card(
    open_shop: Shop, card: str, cause: str
) -> None:
    shop = open_shop
    variant = await stocked(shop, "Shirt", 1)
    buyer = await Buyer.of(shop, card)
    order = await buyer.buy({variant: 1})
    assert (order["state"], order["cause"]) == ("ORDER_STATE_PAYMENT_DECLINED", cause)
    assert await shop.level(variant) == (1, 1)
    paid = await buyer.place(order, "pay", await buyer.add_card("card_ok"))
    assert paid["state"] == "ORDER_STATE_CONFIRMED"
    assert await all_is_well(shop) == []


async def test_a_customer_who_gives_up_after_a_decline_gets_nothing_and_pays_nothing(open_shop: Shop) -> None:
    shop = open_shop
    variant = await stocked(shop, "Shirt", 1)
    buyer = await Buyer.of(shop, "card_declined")
    order = await buyer.buy({variant: 1})
    cancelled = (await buyer.post(f"/api/v1/orders/{order['orderId']}:cancel"))["order"]
    assert cancelled["state"] == "ORDER_STATE_CANCELLED"
    assert await shop.level(variant) == (1, 0)
    assert await all_is_well(shop) == []


@pytest.mark.parametrize(("answer", "state"), [("approve", "CONFIRMED"), ("deny", "PAYMENT_DECLINED")])
async def test_an_order_waits_for_3d_secure_and_goes_on_by_itself(open_shop: Shop, answer: str, state: str) -> None:
    shop = open_shop
    variant = await stocked(shop, "Coat", 1)
    buyer = await Buyer.of(shop, "card_3ds")
    order = await buyer.buy({variant: 1})
    assert order["state"] == "ORDER_STATE_ACTION_REQUIRED"
    assert order["actionUrl"]
    assert order["expireTime"]
    await buyer.post(f"/api/v1/billing/payments/{order['paymentId']}:confirm", answer=answer)
    after = await buyer.settled(order["orderId"], "CONFIRMED", "PAYMENT_DECLINED")
    assert after["state"] == f"ORDER_STATE_{state}"
    assert await all_is_well(shop) == []


@pytest.mark.parametrize("state", ["OPEN", "ACTION_REQUIRED", "PAYMENT_DECLINED"])
async def test_an_order_that_waits_too_long_is_cancelled(open_shop: Shop, state: str) -> None:
    shop = open_shop
    variant = await stocked(shop, "Coat", 1)
    buyer = await Buyer.of(
        shop, {"ACTION_REQUIRED": "card_3ds", "PAYMENT_DECLINED": "card_declined"}.get(state, "card_ok")
    )
    order = (await buyer.checkout({variant: 1})).json()["order"]
    if state != "OPEN":
        order = await buyer.place(order)
    assert order["state"] == f"ORDER_STATE_{state}"
    await put_right(shop, order["orderId"])
    cancelled = await buyer.settled(order["orderId"], "CANCELLED")
    assert cancelled["cause"] == "EXPIRED"
    assert await shop.level(variant) == (1, 0)
    assert await all_is_well(shop) == []


@pytest.mark.parametrize("card", ["card_timeout", "card_unreachable", "card_hang"])
async def test_a_payment_whose_answer_is_lost_is_made_once(open_shop: Shop, card: str) -> None:
    shop = open_shop
    variant = await stocked(shop, "Hat", 1)
    buyer = await Buyer.of(shop, card)
    order = await buyer.buy({variant: 1})
    order = await buyer.settled(order["orderId"], "CONFIRMED", seconds=60)
    assert order["captured"]["minorUnits"] == str(PRICE + SHIPPING)
    assert await all_is_well(shop) == []


async def test_the_same_checkout_and_the_same_payment_twice_at_once_happen_once(open_shop: Shop) -> None:
    shop = open_shop
    variant = await stocked(shop, "Belt", 5)
    buyer = await Buyer.of(shop)
    _, opener = await buyer.cart({variant: 1})
    body = {**opener, "requestId": new_id()}

    async def until_it_answers(path: str, body: dict[str, str]) -> dict[str, str]:
        for _ in range(100):
            answer = await buyer.ask("POST", path, body)
            if answer.status_code == 200:
                result: dict[str, str] = answer.json()["order"]
                return result
            assert reason(answer) in ("CONFLICT", "CART_CHANGED", "CART_NOT_FOUND"), answer.text
            await asyncio.sleep(0.05)
        raise AssertionError(answer.text)

    orders = await asyncio.gather(*(until_it_answers("/api/v1/orders", body) for _ in range(5)))
    assert len({order["orderId"] for order in orders}) == 1
    path = f"/api/v1/orders/{orders[0]['orderId']}:place"
    placing = {"paymentMethodId": buyer.card, "requestId": new_id()}
    await asyncio.gather(*(until_it_answers(path, placing) for _ in range(5)))
    order = await buyer.settled(orders[0]["orderId"], "CONFIRMED")
    assert (await buyer.timeline(order["orderId"])) == HAPPY
    again = await buyer.ask("POST", "/api/v1/orders", {**body, "cartEtag": "7"})
    assert reason(again) == "IDEMPOTENCY_KEY_REUSED"
    assert await all_is_well(shop) == []


async def test_a_confirmed_order_that_is_cancelled_is_undone_labels_first_and_then_the_last_step_first(
    open_shop: Shop,
) -> None:
    shop = open_shop
    variant = await stocked(shop, "Boots", 3)
    buyer = await Buyer.of(shop)
    order = await buyer.buy({variant: 2})
    cancelled = (await buyer.post(f"/api/v1/orders/{order['orderId']}:cancel", reason="too small"))["order"]
    assert cancelled["state"] == "ORDER_STATE_CANCELLED"
    assert cancelled["refunded"] == cancelled["captured"] == order["totals"]["total"]
    undone = (await buyer.timeline(order["orderId"]))[len(HAPPY) :]
    assert undone == [
        "CancellationBegun",
        "LabelsVoided",
        "SaleReverted",
        "InvoiceCredited",
        "StockRestocked",
        "PaymentReturned",
        "PaymentVoided",
        "StockReleased",
        "OrderCancelled",
    ]
    assert await shop.level(variant) == (3, 0)
    assert await all_is_well(shop) == []
    again = (await buyer.post(f"/api/v1/orders/{order['orderId']}:cancel"))["order"]
    assert again["state"] == "ORDER_STATE_CANCELLED"


async def test_what_the_carrier_has_is_not_cancelled(open_shop: Shop) -> None:
    """Not even before the order has heard of the scan: the carrier is asked before anything is given back."""
    shop = open_shop
    variant = await stocked(shop, "Boots", 2)
    buyer = await Buyer.of(shop)
    unheard, heard = await buyer.buy({variant: 1}), await buyer.buy({variant: 1})
    paths = [f"/api/v1/orders/{order['orderId']}" for order in (unheard, heard)]
    await put_right(
        shop,
        unheard["orderId"],
        "UPDATE puabo_nuki_shipping_service.shipments SET state = 'DELIVERED' WHERE tenant_id = $1 AND order_id = $2",
    )
    assert reason(await buyer.ask("POST", f"{paths[0]}:cancel", {})) == "ORDER_STATE_CONFLICT"
    assert (await buyer.timeline(unheard["orderId"]))[len(HAPPY) :] == ["CancellationBegun", "CancellationRefused"]
    scan = {"scanId": new_id(), "status": "SCAN_STATUS_ACCEPTED", "scanTime": heard["placeTime"], "place": "Paris"}
    await shop.post(f"/api/v1/shipping/shipments/{heard['parcels'][0]['shipmentId']}/scans", scan)
    async with asyncio.timeout(20):
        while (await buyer.timeline(heard["orderId"]))[-1] != "ParcelMoved":  # noqa: ASYNC110  an event brings it
            await asyncio.sleep(0.1)
    for path in (*paths, *paths):
        assert reason(await buyer.ask("POST", f"{path}:cancel", {})) == "ORDER_STATE_CONFLICT"
    for order in (unheard, heard):
        assert (await buyer.order(order["orderId"]))["state"] == "ORDER_STATE_CONFIRMED"
    assert len(await buyer.timeline(heard["orderId"])) == len(HAPPY) + 1
    assert await shop.level(variant) == (0, 0)
    assert (await buyer.get("/api/v1/billing/payments"))["payments"][0]["refunded"]["minorUnits"] == "0"
    # Goods that come back are refunded as a return.
    desk = f"/api/v1/order-desk/orders/{heard['orderId']}"
    await shop.post(f"{desk}:refund", {"reason": "never arrived", "requestId": new_id()})
    await refunded(buyer, heard["orderId"], 1)


async def test_an_order_whose_payment_the_bank_has_taken_back_is_cancelled_without_paying_twice(
    open_shop: Shop,
) -> None:
    shop = open_shop
    variant = await stocked(shop, "Boots", 1)
    buyer = await Buyer.of(shop, "card_disputed")
    order = await buyer.buy({variant: 1})
    cancelled = (await buyer.post(f"/api/v1/orders/{order['orderId']}:cancel"))["order"]
    assert cancelled["state"] == "ORDER_STATE_CANCELLED"
    assert cancelled["refunded"]["minorUnits"] == "0"
    assert await shop.level(variant) == (1, 0)
    (payment,) = (await buyer.get("/api/v1/billing/payments"))["payments"]
    assert payment["disputed"] == payment["captured"]
    assert payment["refunded"]["minorUnits"] == "0"


async def test_a_dispute_that_is_won_after_its_order_was_cancelled_is_paid_back(open_shop: Shop) -> None:
    shop = open_shop
    variant = await stocked(shop, "Boots", 1)
    buyer = await Buyer.of(shop, "card_disputed")
    order = await buyer.buy({variant: 1})
    await buyer.post(f"/api/v1/orders/{order['orderId']}:cancel")
    (dispute,) = (await shop.get("/api/v1/billing/disputes"))["disputes"]
    await shop.post(f"/api/v1/billing/disputes/{dispute['disputeId']}:answer", {"evidence": "winning"})
    async with asyncio.timeout(30):
        final = await buyer.order(order["orderId"])
        while final["refunded"]["minorUnits"] == "0":
            final = await buyer.order(order["orderId"])
            await asyncio.sleep(0.1)
    assert final["refunded"] == final["captured"] == order["captured"]
    assert await all_is_well(shop) == []


async def test_a_label_that_cannot_be_bought_releases_what_was_reserved_on_the_card(open_shop: Shop) -> None:
    """The rate table's carrier has no account: the quote is given, the label refused. Nothing has been taken yet."""
    shop = open_shop
    tables = (await shop.get("/api/v1/shipping/rate-tables"))["rateTables"]
    table = {name: value for name, value in tables[0].items() if name != "rateTableId"}
    await shop.put("/api/v1/shipping/rate-tables/standard", {**table, "carrier": "easypost"})
    variant = await stocked(shop, "Jacket", 1)
    buyer = await Buyer.of(shop)
    placed = await buyer.buy({variant: 1})
    assert (placed["state"], placed["cause"]) == ("ORDER_STATE_CANCELLED", "FAILED")
    assert placed["captured"]["minorUnits"] == "0"
    (payment,) = (await buyer.get("/api/v1/billing/payments"))["payments"]
    assert (payment["state"], payment["captured"]["minorUnits"]) == ("PAYMENT_STATE_VOIDED", "0")
    assert await shop.level(variant) == (1, 0)
    assert await all_is_well(shop) == []


async def test_parts_are_handed_over_come_back_and_are_refunded(open_shop: Shop) -> None:
    shop = open_shop
    dress, hat = await stocked(shop, "Dress", 3), await stocked(shop, "Hat", 2, 1_500)
    buyer = await Buyer.of(shop)
    order = await buyer.buy({dress: 3, hat: 1})
    path, desk = f"/api/v1/orders/{order['orderId']}", f"/api/v1/order-desk/orders/{order['orderId']}"
    too_early = {"lines": [{"line": 0, "quantity": 1}], "requestId": new_id()}
    assert reason(await buyer.ask("POST", f"{path}/returns", too_early)) == "ORDER_STATE_CONFLICT"
    sent = await shop.post(f"{desk}:fulfil", {"lines": [{"line": 0, "quantity": 2}], "requestId": new_id()})
    assert sent["order"]["state"] == "ORDER_STATE_PARTIALLY_FULFILLED"
    assert reason(await buyer.ask("POST", f"{path}:cancel", {})) == "ORDER_STATE_CONFLICT"
    too_many = {"lines": [{"line": 0, "quantity": 2}], "requestId": new_id()}
    assert reason(await shop.ask("POST", f"{desk}:fulfil", too_many)) == "QUANTITY_EXCEEDED"
    sent = await shop.post(f"{desk}:fulfil", {"requestId": new_id()})
    assert sent["order"]["state"] == "ORDER_STATE_FULFILLED"
    # One dress comes back, and can be sold again.
    asked = await buyer.post(f"{path}/returns", lines=[{"line": 0, "quantity": 1}], reason="size", requestId=new_id())
    decision = {"accept": True, "restock": True, "requestId": new_id()}
    await shop.post(f"{desk}/returns/{asked['returnId']}:decide", decision)
    order = await refunded(buyer, order["orderId"], 1)
    assert order["refunded"]["minorUnits"] == str(PRICE)
    assert await shop.level(dress) == (1, 0)
    # The hat and the delivery are refunded; all the rest then, and no more.
    await shop.post(
        f"{desk}:refund",
        {"lines": [{"line": 1, "quantity": 1}], "shipping": True, "reason": "late", "requestId": new_id()},
    )
    order = await refunded(buyer, order["orderId"], 2)
    assert order["refunded"]["minorUnits"] == str(PRICE + 1_500 + SHIPPING)
    too_much = {"lines": [{"line": 0, "quantity": 3}], "reason": "all", "requestId": new_id()}
    assert reason(await shop.ask("POST", f"{desk}:refund", too_much)) == "QUANTITY_EXCEEDED"
    await shop.post(f"{desk}:refund", {"reason": "all", "requestId": new_id()})
    order = await refunded(buyer, order["orderId"], 3)
    assert order["refunded"] == order["captured"] == order["totals"]["total"]
    nothing_left = {"reason": "more", "requestId": new_id()}
    assert reason(await shop.ask("POST", f"{desk}:refund", nothing_left)) == "ORDER_STATE_CONFLICT"
    assert await all_is_well(shop) == []


async def refunded(buyer: Buyer, order_id: str, count: int) -> Json:
    async with asyncio.timeout(20):
        while True:
            order = await buyer.order(order_id)
            done = [refund for refund in order["refunds"] if refund["state"] == "REFUND_STATE_DONE"]
            if len(done) == count:
                return order
            await asyncio.sleep(0.05)


async def test_a_refund_that_the_provider_refuses_needs_attention_and_is_not_forgotten(open_shop: Shop) -> None:
    shop = open_shop
    variant = await stocked(shop, "Gloves", 1)
    buyer = await Buyer.of(shop, "card_refund_fails")
    order = await buyer.buy({variant: 1})
    assert order["state"] == "ORDER_STATE_CONFIRMED"
    cancelling = (await buyer.post(f"/api/v1/orders/{order['orderId']}:cancel"))["order"]
    assert cancelling["state"] == "ORDER_STATE_CANCELLING"
    async with asyncio.timeout(30):
        listed: list[Json] = []
        while not listed:
            await asyncio.sleep(0.1)
            listed = (await shop.get("/api/v1/order-desk/orders", needs_attention=True))["orders"]
    assert listed[0]["orderId"] == order["orderId"]
    assert "RepaymentRefused" in listed[0]["attention"]
    assert listed[0]["retryTime"]
    assert (
        "attention" not in await buyer.order(order["orderId"]) or not (await buyer.order(order["orderId"]))["attention"]
    )
    assert (await shop.get("/api/v1/order-desk/summary"))["needingAttention"] == "1"


async def test_orders_are_seen_by_their_customer_and_by_staff_only(open_shop: Shop, other_shop: Shop) -> None:
    shop = open_shop
    variant = await stocked(shop, "Socks", 2)
    buyer, stranger = await Buyer.of(shop), await Buyer.of(shop)
    order = await buyer.buy({variant: 1})
    path = f"/api/v1/orders/{order['orderId']}"
    for verb, where in (("GET", path), ("GET", f"{path}/timeline"), ("POST", f"{path}:cancel")):
        assert reason(await stranger.ask(verb, where, {} if verb == "POST" else None)) == "ORDER_NOT_FOUND"
        if verb == "GET":
            assert (await shop.ask(verb, where)).status_code == 200
            assert reason(await other_shop.ask(verb, where)) == "ORDER_NOT_FOUND"
    assert reason(await stranger.ask("POST", f"{path}:place", {"requestId": new_id()})) == "ORDER_NOT_FOUND"
    assert reason(await stranger.ask("GET", "/api/v1/order-desk/orders")) == "PERMISSION_MISSING"
    assert (await stranger.get("/api/v1/orders"))["orders"] == []
    assert [each["orderId"] for each in (await buyer.get("/api/v1/orders"))["orders"]] == [order["orderId"]]


async def test_a_cart_opens_with_its_secret_only_and_says_what_is_wrong(open_shop: Shop, other_shop: Shop) -> None:
    shop = open_shop
    variant, rare = await stocked(shop, "Tie", 5), await stocked(shop, "Rare tie", 0)
    buyer, elsewhere = await Buyer.of(shop), await Buyer.of(other_shop)
    cart, opener = await buyer.cart({variant: 1, rare: 1}, ship=False)
    path = f"/api/v1/carts/{opener['cartId']}"
    secret = opener["cartSecret"]
    assert reason(await buyer.ask("POST", f"{path}:read", {"cartSecret": secret[:-1] + "_"})) == "CART_NOT_FOUND"
    assert reason(await elsewhere.ask("POST", f"{path}:read", {"cartSecret": secret})) == "CART_NOT_FOUND"
    assert [line["problem"] for line in cart["lines"]] == ["LINE_PROBLEM_UNSPECIFIED", "LINE_PROBLEM_OUT_OF_STOCK"]
    stale = {"cartSecret": secret, "etag": "1", "lines": [{"variantId": rare, "quantity": 0}]}
    assert reason(await buyer.ask("POST", f"{path}:setLines", stale)) == "CART_CHANGED"
    assert reason(await buyer.ask("POST", "/api/v1/orders", {**opener, "requestId": new_id()})) == "CART_NOT_READY"
    unknown = {"cartSecret": secret, "quoteId": new_id()}
    assert reason(await buyer.ask("POST", f"{path}:chooseShipping", unknown)) == "SHIPPING_OPTION_UNKNOWN"
    options = (await buyer.post(f"{path}:shippingOptions", cartSecret=secret))["options"]
    await buyer.post(f"{path}:chooseShipping", quoteId=options[0]["quoteId"], cartSecret=secret)
    seen = {"expectedTotal": {"currency": "EUR", "minorUnits": "1"}}
    assert (
        reason(await buyer.ask("POST", "/api/v1/orders", {**opener, **seen, "requestId": new_id()})) == "TOTAL_CHANGED"
    )
    # What is out of stock leaves the cart as it is.
    assert reason(await buyer.ask("POST", "/api/v1/orders", {**opener, "requestId": new_id()})) == "OUT_OF_STOCK"
    fewer = {"cartSecret": secret, "lines": [{"variantId": rare, "quantity": 0}]}
    assert len((await buyer.post(f"{path}:setLines", **fewer))["cart"]["lines"]) == 1


async def test_what_the_carrier_reports_stands_in_the_timeline(open_shop: Shop) -> None:
    shop = open_shop
    variant = await stocked(shop, "Gloves", 1)
    buyer = await Buyer.of(shop)
    order = await buyer.buy({variant: 1})
    scan = {"scanId": new_id(), "status": "SCAN_STATUS_DELIVERED", "scanTime": order["placeTime"], "place": "Paris"}
    await shop.post(f"/api/v1/shipping/shipments/{order['parcels'][0]['shipmentId']}/scans", scan)
    async with asyncio.timeout(20):
        while not (await buyer.order(order["orderId"]))["parcels"][0]["delivered"]:  # noqa: ASYNC110  an event brings it
            await asyncio.sleep(0.1)
    assert (await buyer.timeline(order["orderId"]))[-1] == "ParcelDelivered"


async def test_an_operator_who_sets_an_overdraft_does_not_stop_the_sales(open_shop: Shop) -> None:
    shop = open_shop
    variant = await stocked(shop, "Gloves", 2)
    buyer = await Buyer.of(shop)
    for limit in (1, 2):
        order = await buyer.buy({variant: 1})
        assert (await buyer.settled(order["orderId"]))["state"] == "ORDER_STATE_CONFIRMED"
        for account in ("customers:prepaid", "income:sales", "tenant:earnings"):
            body = {"allowOverdraft": True, "overdraftLimit": str(limit * 1_000_000)}
            changed = await shop.ask("PATCH", f"/api/v1/ledger/accounts/{quote(account, safe='')}", body)
            assert changed.status_code == 200, changed.text
    assert await all_is_well(shop) == []


async def test_an_erased_customer_is_named_on_no_order_and_no_parcel(open_shop: Shop) -> None:
    shop = open_shop
    variant = await stocked(shop, "Gloves", 1)
    buyer = await Buyer.of(shop)
    order = await buyer.buy({variant: 1})
    path = f"/api/v1/shipping/shipments/{order['parcels'][0]['shipmentId']}"
    assert (await shop.get(path))["shipment"]["to"]["name"] == ADDRESS["name"]
    assert (await shop.ask("GET", f"{path}/label")).content.startswith(b"%PDF")
    await buyer.post("/api/v1/auth/me:erase", password=PASSWORD)
    admin = await shop.platform.admin()
    try:
        named = """
            SELECT (SELECT count(*) FROM puabo_nuki_order_processor.orders WHERE tenant_id = $1 AND shipping_address
                    IS NOT NULL)
                 + (SELECT count(*) FROM puabo_nuki_shipping_service.shipments WHERE tenant_id = $1
                    AND label_order::text ~ 'Dubois|Lilas|claire|75011|Paris')
                 + (SELECT count(*) FROM puabo_nuki_shipping_service.labels WHERE tenant_id = $1)
        """
        async with asyncio.timeout(20):
            while await admin.fetchval(named, shop.tenant.tenant_id):  # noqa: ASYNC110  events bring it
                await asyncio.sleep(0.1)
    finally:
        await admin.close()
    forgotten = (await shop.get(path))["shipment"]
    assert forgotten["to"]["country"] == ADDRESS["country"]
    assert forgotten["trackingNumber"] == order["parcels"][0]["trackingNumber"]


async def test_settings_are_not_overwritten_by_who_has_not_read_them(open_shop: Shop) -> None:
    shop = open_shop
    read = (await shop.get("/api/v1/order-desk/settings"))["settings"]
    await shop.put("/api/v1/order-desk/settings", {**read, "returnDays": 14})
    stale = await shop.ask("PUT", "/api/v1/order-desk/settings", {**read, "returnDays": 60})
    assert reason(stale) == "SETTINGS_CHANGED"
    assert (await shop.get("/api/v1/order-desk/settings"))["settings"]["returnDays"] == 14
