"""Orders, from the search to the invoice, through the edge."""

import pytest

from services.chassis.ids import new_id
from tests.commerce.buyers import ADDRESS, PRICE, SHIPPING, Buyer, furnish, stocked
from tests.commerce.shops import Shop, reason
from tests.platforms import eventually

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
    assert eventually is not None
