"""An order, or a cart on its way there, as the content of an invoice: so that both always come to the same."""

from dataclasses import dataclass

from google.protobuf import json_format

from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import Address
from nexus.finance.invoice_gen.v1.invoice_pb2 import (
    TAX_CATEGORY_STANDARD,
    TAX_CATEGORY_ZERO_RATED,
    Customer,
    InvoiceContent,
    InvoiceLine,
    PostalAddress,
    Tax,
)
from services.chassis.table import Row
from services.commerce.puabo_nuki_order_processor.order import Draft

_LONGEST_DESCRIPTION = 500


@dataclass(frozen=True)
class Addresses:
    """Where an order goes to, and its bill."""

    shipping: Address
    billing: Address | None

    @property
    def bill_to(self) -> Address:
        return self.billing if self.billing is not None else self.shipping


def addresses_of(row: Row) -> Addresses:
    """Of an order or a cart."""
    billing = row["billing_address"]
    return Addresses(
        shipping=json_format.Parse(row["shipping_address"] or "{}", Address()),
        billing=json_format.Parse(billing, Address()) if billing else None,
    )


def invoice_content(order: Draft, addresses: Addresses) -> InvoiceContent:
    """Each line is a line of the invoice, at the same place; the delivery is the last one."""
    bill_to = addresses.bill_to
    content = InvoiceContent(
        customer=Customer(
            customer_id=order.customer_id,
            name=bill_to.name or bill_to.company or "-",
            address=_postal(bill_to),
            email=bill_to.email,
        ),
        currency=order.currency,
        lines=[
            InvoiceLine(
                description=" · ".join(filter(None, (line.title, line.variant_title)))[:_LONGEST_DESCRIPTION] or "-",
                item_id=line.sku,
                quantity=str(line.quantity),
                unit_price=line.unit_price,
                tax=_tax(line.tax_basis_points),
            )
            for line in order.lines
        ],
        prices_include_tax=order.tax_included,
    )
    if order.delivery is not None:
        content.lines.add(
            description=f"{order.delivery.service} ({order.delivery.carrier})",
            quantity="1",
            unit_price=order.delivery.price,
            tax=_tax(order.shipping_tax_basis_points),
        )
    if addresses.billing is not None:
        content.delivery_address.CopyFrom(_postal(addresses.shipping))
    return content


def _tax(basis_points: int) -> Tax:
    category = TAX_CATEGORY_STANDARD if basis_points else TAX_CATEGORY_ZERO_RATED
    return Tax(category=category, rate_basis_points=basis_points)


def _postal(address: Address) -> PostalAddress:
    return PostalAddress(
        lines=address.lines,
        postcode=address.postcode,
        city=address.city,
        region=address.region,
        country=address.country,
    )
