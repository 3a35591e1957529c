"""The document as a letter: DIN 5008 form B, in the seller's colour, over as many pages as it takes.

Lengths are millimetres, sizes of type points. The same invoice gives the same bytes.
"""

from decimal import Decimal
from importlib.resources import files
from io import BytesIO
from typing import Literal

import segno.helpers
from fpdf import FPDF
from fpdf.enums import MethodReturnValue, XPos, YPos

from nexus.finance.invoice_gen.v1.invoice_pb2 import (
    INVOICE_KIND_CREDIT_NOTE,
    INVOICE_STATE_FINALIZED,
    Invoice,
    InvoiceLine,
    PostalAddress,
)
from services.finance.invoice_gen.calculation import line_amount
from services.finance.invoice_gen.einvoice import FILE_NAME, moment_of, xml_of, xmp_of
from services.finance.invoice_gen.wording import Wording

WIDTH, HEIGHT = 210.0, 297.0
LEFT, RIGHT, TOP, BOTTOM = 22.0, 192.0, 28.0, 265.0
"""The frame of the text. Below it is the foot of the letter."""
SUMS = 108.0
"""Where the totals begin."""
LEADING = 0.5
"""The height of a line, for each point of its type."""
INK, GREY, HAIRLINE, PALE = "#1d1f24", "#6b7280", "#d9dce1", "#f5f6f8"
COLOUR = "#24324a"
_FONTS = {"": "Regular", "B": "Medium", "I": "Light"}
_TABULAR = {"kern": True, "liga": True, "tnum": True}
_PAGES = "\ue000" * 4
"""Stands for the number of pages until it is known: a character that nobody uses."""

Align = Literal["L", "R"]
COLUMNS: dict[str, tuple[float, Align]] = {
    "position": (LEFT, "L"),
    "description": (LEFT + 8, "L"),
    "quantity": (133, "R"),
    "unit_price": (157, "R"),
    "vat": (169, "R"),
    "amount": (RIGHT, "R"),
}
"""Where the columns of the table begin, or end."""
_DESCRIPTION_LEFT, _DESCRIPTION_WIDTH = LEFT + 8, 80.0


def render(invoice: Invoice, locale: str = "") -> bytes:
    """The PDF: of a finalized document PDF/A-3 with its XML, of a draft a plain one that says so.

    `locale` is another language than the document's own.
    """
    letter = Letter(invoice, Wording.of(invoice, locale))
    letter.compose()
    return bytes(letter.output())


class Letter(FPDF):
    """One document on paper."""

    def __init__(self, invoice: Invoice, wording: Wording) -> None:
        self.is_final = invoice.state == INVOICE_STATE_FINALIZED or bool(invoice.number)
        super().__init__(format="A4", enforce_compliance="PDF/A-3B" if self.is_final else None)
        self.invoice, self.content, self.wording = invoice, invoice.content, wording
        self.colour = invoice.seller.colour or COLOUR
        self.is_credit = invoice.kind == INVOICE_KIND_CREDIT_NOTE
        self.kind = wording["credit_note" if self.is_credit else "invoice"]
        self.heading = f"{self.kind} {invoice.number or wording['draft']}"
        self.in_table = False
        folder = files("fontpkg_fira_sans") / "files"
        for style, name in _FONTS.items():
            self.add_font("fira", style, str(folder / f"FiraSans-{name}.ttf"))
        self.set_text_shaping(True, features=_TABULAR)
        self.set_margins(LEFT, TOP, WIDTH - RIGHT)
        self.set_auto_page_break(True, HEIGHT - BOTTOM)
        self.c_margin = 0
        self.set_title(self.heading)
        self.set_lang(wording.name)
        self.alias_nb_pages(_PAGES)

    def compose(self) -> None:
        self.add_page()
        self._letterhead()
        self._recipient()
        self._particulars()
        self._title()
        self._table()
        self._totals()
        self._closing()
        if self.is_final:
            self._attach()

    # on every page

    def header(self) -> None:
        if not self.is_final:
            with self.rotation(52, WIDTH / 2, 160):
                self._pick(110, "B", "#eceef1")
                self.text((WIDTH - self.get_string_width(self.wording["draft"])) / 2, 175, self.wording["draft"])
        self._fill(0, 0, WIDTH, 3, self.colour)
        if self.page > 1:
            self._write(LEFT, 12.5, self.invoice.seller.name, 9, "B", self.colour)
            self._write(RIGHT, 12.5, self.heading, 9, "", GREY, "R")
        self.set_y(TOP)
        if self.in_table:
            self._table_head()

    def footer(self) -> None:
        seller, wording = self.invoice.seller, self.wording
        columns = {
            (LEFT, 43): [seller.name, _street(seller.address), _town(seller.address)],
            (68, 33): [seller.phone, seller.email, seller.website],
            (103, 48): [
                seller.bank_name,
                seller.iban and f"IBAN {_spaced(seller.iban)}",
                seller.bic and f"BIC {seller.bic}",
            ],
            (153, 39): [
                seller.register_entry,
                seller.vat_id and f"{wording['vat_id']} {seller.vat_id}",
                seller.tax_number and f"{wording['tax_number']} {seller.tax_number}",
            ],
        }
        self._rule(268, HAIRLINE, 0.2)
        for (x, width), texts in columns.items():
            for row, text in enumerate(filter(None, texts)):
                self._write(x, 270.5 + 3.5 * row, text, 6.8, "", GREY, most=width)
        self._write(153, 284.5, wording.say("page", page=str(self.page), pages=_PAGES), 7.5, "", GREY)

    def normalize_text(self, text: str) -> str:
        """The font has no narrow no-break space, which French writes in numbers."""
        return str(super().normalize_text(text.replace("\u202f", "\u00a0").replace("\t", " ")))

    # the parts, from the top

    def _letterhead(self) -> None:
        seller = self.invoice.seller
        if seller.logo:
            self.image(BytesIO(seller.logo), LEFT, 13, 62, 20, keep_aspect_ratio=True)
        else:
            self._write(LEFT, 15.7, seller.name, 17, "B", self.colour)
        contact = [_street(seller.address), _town(seller.address), seller.phone, seller.email, seller.website]
        for row, text in enumerate(filter(None, contact)):
            self._write(RIGHT, 13.4 + 3.8 * row, text, 8, "", GREY, "R")

    def _recipient(self) -> None:
        seller, customer = self.invoice.seller, self.content.customer
        back = " · ".join(filter(None, (seller.name, _street(seller.address), _town(seller.address))))
        self._write(LEFT, 46, back, 6.5, "", GREY, most=83)
        self.set_y(51.3)
        for text in [customer.name, *self._address(customer.address)]:
            self._block(LEFT, 83, text, 10.5)

    def _particulars(self) -> None:
        content, invoice, wording = self.content, self.invoice, self.wording
        rows = {
            "number": invoice.number,
            "issue_date": invoice.issue_date and wording.date(invoice.issue_date),
            "for_invoice": invoice.credited_number,
            "delivery_date": content.delivery_date and wording.date(content.delivery_date),
            "due_date": "" if self.is_credit or not invoice.due_date else wording.date(invoice.due_date),
            "customer_id": content.customer.customer_id,
            "order_reference": content.order_reference,
            "buyer_reference": content.customer.buyer_reference,
            "customer_vat_id": content.customer.vat_id,
        }
        said = {word: value for word, value in rows.items() if value}
        for row, (word, value) in enumerate(said.items()):
            self._write(126, 47.4 + 4.9 * row, wording[word], 8.5, "", GREY)
            self._write(RIGHT, 47.4 + 4.9 * row, value, 8.5, "B", INK, "R", most=40)

    def _title(self) -> None:
        self._write(LEFT, 95.6, self.kind, 19, "I", self.colour)
        self._write(self.x + 3, 95.6, self.invoice.number, 19, "B", self.colour)
        self.set_y(109)
        if self.content.HasField("delivery_address"):
            where = ", ".join(self._address(self.content.delivery_address))
            self._paragraph(f"{self.wording['delivered_to']}: {where}", 9)
        self._paragraph(self.content.introduction, 9.5)
        self.ln(2)

    def _table(self) -> None:
        self._room(20)
        self._table_head()
        self.in_table = True
        for at, line in enumerate(self.content.lines):
            self._row(at, line)
        self.in_table = False

    def _table_head(self) -> None:
        for word, (x, align) in COLUMNS.items():
            currency = f" {self.content.currency}" if word == "amount" else ""
            self._write(x, self.y, self.wording[word] + currency, 7.5, "B", self.colour, align)
        self.ln(5.4)
        self._rule(self.y, self.colour, 0.35)
        self.ln(1.6)

    def _row(self, at: int, line: InvoiceLine) -> None:
        """What does not fit on the page goes on, line by line, on the next one."""
        wording = self.wording
        price = wording.amount(line.unit_price)
        if line.price_base_quantity > 1:
            price = f"{price} / {wording.quantity(str(line.price_base_quantity), line.unit)}"
        small = [
            f"{wording['item_id']} {line.item_id}" if line.item_id else "",
            " – ".join(wording.date(day) for day in (line.period_start, line.period_end) if day),
            f"{wording['discount']} {wording.amount(-line.discount)}" if line.discount else "",
        ]
        gross = self.content.prices_include_tax
        values = {
            "position": str(at + 1),
            "quantity": wording.quantity(line.quantity, line.unit),
            "unit_price": price,
            "vat": wording.percent(line.tax.rate_basis_points),
            "amount": wording.amount(line_amount(line) if gross else self.invoice.totals.line_nets[at]),
        }
        texts = [(line.description, 9.5, "B", INK), (line.details, 8, "", GREY)]
        texts.append((" · ".join(filter(None, small)), 8, "", GREY))
        self._room(min(3 + sum(self._height(text, size, style) for text, size, style, _ in texts), 40))
        for word, value in values.items():
            x, align = COLUMNS[word]
            self._write(x, self.y, value, 9.5, "", GREY if word in ("position", "vat") else INK, align)
        for text, size, style, colour in texts:
            self._block(_DESCRIPTION_LEFT, _DESCRIPTION_WIDTH, text, size, style, colour)
        self.ln(1.4)
        self._rule(self.y, HAIRLINE, 0.15)
        self.ln(1.6)

    def _totals(self) -> None:
        wording, content, totals = self.wording, self.content, self.invoice.totals
        gross = content.prices_include_tax
        self._room(14 + 4.9 * (len(content.adjustments) + len(totals.taxes) + 3))
        self.ln(1)
        if content.adjustments:
            off = sum(adjustment.amount for adjustment in content.adjustments)
            self._sum(wording["subtotal"], wording.amount(totals.total - off if gross else totals.lines))
        for adjustment, net in zip(content.adjustments, totals.adjustment_nets, strict=True):
            rate = "" if gross else f" ({wording.percent(adjustment.tax.rate_basis_points)})"
            self._sum(adjustment.reason + rate, wording.amount(adjustment.amount if gross else net))
        if not gross:
            self._sum(wording["net"], wording.amount(totals.net), bold=True)
            for row in totals.taxes:
                rate, taxable = wording.percent(row.tax.rate_basis_points), wording.amount(row.taxable)
                self._sum(wording.say("vat_on", rate=rate, taxable=taxable), wording.amount(row.amount))
            if totals.rounding:
                self._sum(wording["rounding"], wording.amount(totals.rounding))
        if content.prepaid:
            self._sum(wording["total"], wording.money(totals.total), bold=True)
            self._sum(wording["prepaid"], wording.money(-content.prepaid))
        self._room(12)
        self.ln(1)
        self._rule(self.y, self.colour, 0.5, SUMS)
        self.ln(1.9)
        word = "credited" if self.is_credit else "payable" if content.prepaid else "total"
        self._write(SUMS, self.y, wording[word], 12.5, "B", self.colour)
        self._write(RIGHT, self.y, wording.money(totals.payable), 12.5, "B", self.colour, "R")
        self.ln(8.7)
        if gross:
            for row in totals.taxes:
                rate = wording.percent(row.tax.rate_basis_points)
                self._sum(wording.say("net_in", rate=rate), wording.amount(row.taxable), 8)
                self._sum(wording.say("vat_in", rate=rate), wording.amount(row.amount), 8)
        self.ln(4)

    def _closing(self) -> None:
        wording, invoice, content = self.wording, self.invoice, self.content
        for row in invoice.totals.taxes:
            self._paragraph(wording.exemption(row.tax), 9)
        if content.prices_include_tax:
            self._paragraph(wording["prices_with_vat"], 9)
        if invoice.credit_reason:
            self._paragraph(f"{wording['credit_reason']}: {invoice.credit_reason}", 9)
        if not self.is_credit and invoice.number:
            if invoice.totals.payable:
                self._payment()
            else:
                self._paragraph(wording["paid"], 9.5, "B")
        self._paragraph(content.note, 9)
        self._paragraph(invoice.seller.note, 8.5)

    def _payment(self) -> None:
        """How to pay, with a code for banking apps where SEPA has one (EPC069-12)."""
        wording, invoice, seller = self.wording, self.invoice, self.invoice.seller
        amount, date = wording.money(invoice.totals.payable), wording.date(invoice.due_date)
        text = wording.say("pay_by", amount=amount, date=date, number=invoice.number)
        if not seller.iban:
            self._paragraph(text, 9.5)
            return
        has_code = self.content.currency == "EUR" and 1 <= invoice.totals.payable <= 99_999_999_999
        height = 31.0 if has_code else 20.0
        self._room(height)
        top = self.y
        self._fill(LEFT, top, RIGHT - LEFT, height, PALE)
        self.set_y(top + 4.3)
        self._block(LEFT + 5, 124, text, 9.5)
        self.ln(1.2)
        self._block(LEFT + 5, 124, seller.name, 9, "", GREY)
        self._block(LEFT + 5, 124, f"IBAN {_spaced(seller.iban)}", 9, "B")
        self._block(LEFT + 5, 124, " · ".join(filter(None, (seller.bic, seller.bank_name))), 9, "", GREY)
        if has_code:
            code = segno.helpers.make_epc_qr(
                name=seller.name[:70],
                iban=seller.iban,
                bic=seller.bic or None,
                amount=Decimal(invoice.totals.payable).scaleb(-2),
                text=invoice.number,
            )
            picture = BytesIO()
            code.save(picture, kind="png", scale=8, border=0)
            self.image(picture, RIGHT - 28, top + 3.5, 24, 24)
            self._write(RIGHT - 32, top + 24, wording["scan_to_pay"], 7.5, "", GREY, "R")
        self.set_y(top + height + 5)

    def _attach(self) -> None:
        """What a machine reads."""
        moment = moment_of(self.invoice)
        self.set_creation_date(moment)
        self.set_xmp_metadata(xmp_of(self.invoice, f"{self.invoice.seller.name}: {self.heading}"))
        self.embed_file(
            bytes=xml_of(self.invoice, self.wording),
            basename=FILE_NAME,
            mime_type="text/xml",
            modification_date=moment,
            creation_date=moment,
            associated_file_relationship="Alternative",
            desc="Factur-X",
            compress=True,
            checksum=True,
        )

    # the tools

    def _paragraph(self, text: str, size: float, style: str = "") -> None:
        if text:
            self._block(LEFT, RIGHT - LEFT - 10, text, size, style)
            self.ln(2.5)

    def _sum(self, label: str, value: str, size: float = 9, *, bold: bool = False) -> None:
        """A row of the totals."""
        style = "B" if bold else ""
        self._block(SUMS, RIGHT - SUMS - 27, label, size, style, INK if bold else GREY)
        self._write(RIGHT, self.y - size * LEADING, value, size, style, INK if size == 9 else GREY, "R")

    def _block(self, x: float, width: float, text: str, size: float, style: str = "", colour: str = INK) -> None:
        """Text in lines of at most this width; the next one begins below it."""
        if text.strip():
            self._pick(size, style, colour)
            self.set_x(x)
            self.multi_cell(width, size * LEADING, text.strip("\n"), align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)

    def _height(self, text: str, size: float, style: str) -> float:
        """Of a block in the column of descriptions."""
        if not text.strip():
            return 0
        self._pick(size, style)
        as_lines = MethodReturnValue.LINES
        lines = self.multi_cell(_DESCRIPTION_WIDTH, size * LEADING, text, dry_run=True, output=as_lines)
        assert isinstance(lines, list)
        return len(lines) * size * LEADING

    def _room(self, height: float) -> None:
        """Go to the next page if there is no room for this on the page."""
        if self.will_page_break(height):
            self.add_page()

    def _write(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        style: str = "",
        colour: str = INK,
        align: Align = "L",
        *,
        most: float = WIDTH,
    ) -> None:
        """One line from or to `x`, cut off where it would be wider than `most`. It leaves `y` where it was."""
        if not text:
            return
        self._pick(size, style, colour)
        if self.get_string_width(text) > most:
            while self.get_string_width(text + "…") > most:
                text = text[:-1]
            text += "…"
        width, below = self.get_string_width(text), self.y
        self.set_xy(x - width if align == "R" else x, y)
        self.cell(width, size * LEADING, text, new_x=XPos.END, new_y=YPos.TOP)
        self.y = below

    def _pick(self, size: float, style: str, colour: str = INK) -> None:
        self.set_font("fira", style, size)
        self.set_text_color(colour)

    def _fill(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.set_fill_color(colour)
        self.rect(x, y, width, height, style="F")

    def _rule(self, y: float, colour: str, thickness: float, left: float = LEFT) -> None:
        self.set_draw_color(colour)
        self.set_line_width(thickness)
        self.line(left, y, RIGHT, y)

    def _address(self, address: PostalAddress) -> list[str]:
        """Its lines, as a letter from the seller's country is addressed."""
        abroad = address.country != self.invoice.seller.address.country
        lines = [
            *address.lines,
            _town(address),
            address.region,
            self.wording.country(address.country) if abroad else "",
        ]
        return [line for line in lines if line]


def _street(address: PostalAddress) -> str:
    return ", ".join(line for line in address.lines if line)


def _town(address: PostalAddress) -> str:
    return f"{address.postcode} {address.city}".strip()


def _spaced(iban: str) -> str:
    return " ".join(iban[at : at + 4] for at in range(0, len(iban), 4))
