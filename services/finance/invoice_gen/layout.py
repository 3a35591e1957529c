"""The document as a letter: DIN 5008 form B, in the seller's colour, over as many pages as it takes.

Lengths are millimetres, sizes of type points. The same invoice gives the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from io import BytesIO
from itertools import pairwise
from typing import Literal

import segno
from fpdf import FPDF
from fpdf.enums import XPos, YPos
from segno import helpers

from nexus.finance.invoice_gen.v1.invoice_pb2 import (
    INVOICE_KIND_CREDIT_NOTE,
    INVOICE_STATE_FINALIZED,
    Invoice,
    PostalAddress,
)
from services.finance.invoice_gen.calculation import line_amount
from services.finance.invoice_gen.einvoice import FILE_NAME, moment_of, xml_of, xmp_of
from services.finance.invoice_gen.wording import Wording

LEFT, RIGHT, TOP, BOTTOM = 22.0, 192.0, 28.0, 265.0
"""The frame of the text. Below it is the foot of the letter."""
INK, GREY, HAIRLINE, PALE = "#1d1f24", "#6b7280", "#d9dce1", "#f5f6f8"
COLOUR = "#24324a"
_FONTS = {"": "Regular", "B": "Medium", "I": "Light"}
_TABULAR = {"kern": True, "liga": True, "tnum": True}
_PAGES = "\ue000" * 4
"""Stands for the number of pages until it is known: a character that nobody uses."""

Align = Literal["L", "R", "C"]


@dataclass(frozen=True)
class Column:
    """A column of the table, from `left` to `right`."""

    word: str
    left: float
    right: float
    align: Align


COLUMNS = (
    Column("position", LEFT, LEFT + 8, "L"),
    Column("description", LEFT + 8, 110, "L"),
    Column("quantity", 112, 133, "R"),
    Column("unit_price", 133, 157, "R"),
    Column("vat", 157, 169, "R"),
    Column("amount", 169, RIGHT, "R"),
)
_DESCRIPTION = COLUMNS[1]


def render(invoice: Invoice, locale: str = "") -> bytes:
    """The PDF: of a finalized document PDF/A-3 with its XML, of a draft a plain one that says so.

    `locale` is another language than the document's own.
    """
    wording = Wording(locale or invoice.content.locale or invoice.seller.locale, invoice.content.currency)
    letter = Letter(invoice, wording)
    letter.compose()
    return letter.finish()


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
        folder = files("fontpkg_fira_sans") / "files"
        for style, name in _FONTS.items():
            self.add_font("fira", style, str(folder / f"FiraSans-{name}.ttf"))
        self.set_text_shaping(True, features=_TABULAR)
        self.set_auto_page_break(False)
        self.set_margins(0, 0, 0)
        self.c_margin = 0
        self.set_title(self.heading)
        self.set_lang(wording.name)
        self.alias_nb_pages(_PAGES)
        self.in_table = False
        self.y_now = TOP

    # the parts, from the top

    def compose(self) -> None:
        self._page()
        self._letterhead()
        self._recipient()
        self._particulars()
        self.y_now = 97
        self._title()
        self._table()
        self._totals()
        self._closing()

    def finish(self) -> bytes:
        if self.is_final:
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
        return bytes(self.output())

    def _letterhead(self) -> None:
        seller = self.invoice.seller
        if seller.logo:
            self.image(BytesIO(seller.logo), LEFT, 13, 62, 20, keep_aspect_ratio=True)
        else:
            self._write(LEFT, 17, seller.name, 17, "B", self.colour)
        contact = [_street(seller.address), _town(seller.address), seller.phone, seller.email, seller.website]
        y = 14.0
        for text in filter(None, contact):
            self._write(RIGHT, y, text, 8, "", GREY, "R")
            y += 3.8

    def _recipient(self) -> None:
        seller, customer = self.invoice.seller, self.content.customer
        back = " · ".join(filter(None, (seller.name, _street(seller.address), _town(seller.address))))
        self._write(LEFT, 46.5, self._fit(back, 6.5, 83), 6.5, "", GREY)
        y = 52.0
        for text in [customer.name, *self._address(customer.address)]:
            for line in self._wrap(text, 10.5, 83):
                self._write(LEFT, y, line, 10.5)
                y += 5

    def _particulars(self) -> None:
        content, invoice, wording = self.content, self.invoice, self.wording
        rows = [
            ("number", invoice.number),
            ("issue_date", invoice.issue_date and wording.date(invoice.issue_date)),
            ("for_invoice", invoice.credited_number),
            ("delivery_date", content.delivery_date and wording.date(content.delivery_date)),
            ("due_date", invoice.due_date and not self.is_credit and wording.date(invoice.due_date)),
            ("customer_id", content.customer.customer_id),
            ("order_reference", content.order_reference),
            ("buyer_reference", content.customer.buyer_reference),
            ("customer_vat_id", content.customer.vat_id),
        ]
        y = 48.0
        for word, value in rows:
            if value:
                self._write(126, y, wording[word], 8.5, "", GREY)
                self._write(RIGHT, y, self._fit(str(value), 8.5, 40), 8.5, "B", INK, "R")
                y += 4.9

    def _title(self) -> None:
        self._write(LEFT, self.y_now, self.kind, 19, "I", self.colour)
        self._write(LEFT + self._width(self.kind, 19, "I") + 3, self.y_now, self.invoice.number, 19, "B", self.colour)
        self.y_now += 12
        if self.content.HasField("delivery_address"):
            where = ", ".join(self._address(self.content.delivery_address))
            self._paragraph(f"{self.wording['delivered_to']}: {where}", 9)
        self._paragraph(self.content.introduction, 9.5)
        self.y_now += 2

    def _table(self) -> None:
        self._table_head()
        self.in_table = True
        nets = self.invoice.totals.line_nets
        for at, line in enumerate(self.content.lines):
            price = self.wording.amount(line.unit_price)
            if line.price_base_quantity > 1:
                per = self.wording.quantity(str(line.price_base_quantity), line.unit)
                price = f"{price} / {per}"
            amount = line_amount(line) if self.content.prices_include_tax else nets[at]
            values = (
                str(at + 1),
                "",
                self.wording.quantity(line.quantity, line.unit),
                price,
                self.wording.percent(line.tax.rate_basis_points),
                self.wording.amount(amount),
            )
            small = [f"{self.wording['item_id']} {line.item_id}"] if line.item_id else []
            if line.period_start or line.period_end:
                small.append(" – ".join(self.wording.date(day) for day in (line.period_start, line.period_end) if day))
            if line.discount:
                small.append(f"{self.wording['discount']} {self.wording.amount(-line.discount)}")
            self._row(values, line.description, [line.details, " · ".join(small)])
        self.in_table = False

    def _table_head(self) -> None:
        for column in COLUMNS:
            x = column.left if column.align == "L" else column.right
            word = self.wording[column.word]
            if column.word == "amount":
                word += f" {self.content.currency}"
            self._write(x, self.y_now, word, 7.5, "B", self.colour, column.align)
        self.y_now += 5
        self._line(self.y_now, self.colour, 0.35)
        self.y_now += 2.2

    def _row(self, values: Sequence[str], description: str, small: Sequence[str]) -> None:
        """A row of the table. What does not fit on the page goes on, line by line, on the next one."""
        width = _DESCRIPTION.right - _DESCRIPTION.left
        lines = [(text, 9.5, "B", INK, 4.7) for text in self._wrap(description, 9.5, width, "B")]
        lines += [(text, 8, "", GREY, 3.9) for part in small for text in self._wrap(part, 8, width)]
        self._room(min(sum(line[4] for line in lines) + 3, 40))
        for column, value in zip(COLUMNS, values, strict=True):
            x = column.left if column.align == "L" else column.right
            colour = GREY if column.word in ("position", "vat") else INK
            self._write(x, self.y_now, value, 9.5, "", colour, column.align)
        for text, size, style, colour, height in lines:
            self._room(height)
            self._write(_DESCRIPTION.left, self.y_now, text, size, style, colour)
            self.y_now += height
        self.y_now += 1.4
        self._line(self.y_now, HAIRLINE, 0.15)
        self.y_now += 2.2

    def _totals(self) -> None:
        wording, content, totals = self.wording, self.content, self.invoice.totals
        gross = content.prices_include_tax
        rows: list[tuple[str, str, bool]] = []
        if content.adjustments:
            subtotal = totals.lines
            if gross:
                subtotal = totals.total - sum(adjustment.amount for adjustment in content.adjustments)
            rows.append((wording["subtotal"], wording.amount(subtotal), False))
            for adjustment, net in zip(content.adjustments, totals.adjustment_nets, strict=True):
                rate = wording.percent(adjustment.tax.rate_basis_points)
                label = adjustment.reason if gross else f"{adjustment.reason} ({rate})"
                rows.append((label, wording.amount(adjustment.amount if gross else net), False))
        taxes = []
        for row in totals.taxes:
            rate, taxable = wording.percent(row.tax.rate_basis_points), wording.amount(row.taxable)
            if gross:
                taxes.append((wording.say("net_in", rate=rate), taxable, False))
                taxes.append((wording.say("vat_in", rate=rate), wording.amount(row.amount), False))
            else:
                taxes.append((wording.say("vat_on", rate=rate, taxable=taxable), wording.amount(row.amount), False))
        if not gross:
            rows += [(wording["net"], wording.amount(totals.net), True), *taxes]
            if totals.rounding:
                rows.append((wording["rounding"], wording.amount(totals.rounding), False))
        left = 108.0
        folded = [(self._wrap(label, 9, RIGHT - left - 27), value, bold) for label, value, bold in rows]
        self._room(sum(4.9 * len(parts) for parts, *_ in folded) + 14 + (4.4 * len(taxes) if gross else 0))
        self.y_now += 1
        for parts, value, bold in folded:
            for text in parts:
                self._write(left, self.y_now, text, 9, "B" if bold else "", INK if bold else GREY)
                self.y_now += 4.9
            self._write(RIGHT, self.y_now - 4.9, value, 9, "B" if bold else "", INK, "R")
        if content.prepaid:
            self._write(left, self.y_now, wording["total"], 9, "B")
            self._write(RIGHT, self.y_now, wording.money(totals.total), 9, "B", INK, "R")
            self._write(left, self.y_now + 4.9, wording["prepaid"], 9, "", GREY)
            self._write(RIGHT, self.y_now + 4.9, wording.money(-content.prepaid), 9, "", INK, "R")
            self.y_now += 9.8
        self.y_now += 1
        word = "credited" if self.is_credit else "payable" if content.prepaid else "total"
        self._line(self.y_now, self.colour, 0.5, left)
        self.y_now += 2.8
        self._write(left, self.y_now, wording[word], 12.5, "B", self.colour)
        self._write(RIGHT, self.y_now, wording.money(totals.payable), 12.5, "B", self.colour, "R")
        self.y_now += 8.4
        if gross:
            for label, value, _ in taxes:
                self._write(left, self.y_now, label, 8, "", GREY)
                self._write(RIGHT, self.y_now, value, 8, "", GREY, "R")
                self.y_now += 4.1
        self.y_now += 4

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
        wording, seller, payable = self.wording, self.invoice.seller, self.invoice.totals.payable
        text = wording.say(
            "pay_by",
            amount=wording.money(payable),
            date=wording.date(self.invoice.due_date),
            number=self.invoice.number,
        )
        if not seller.iban:
            self._paragraph(text, 9.5)
            return
        code = self._bank_code()
        height = 31.0 if code else 20.0
        self._room(height)
        top = self.y_now
        self._fill(LEFT, top, RIGHT - LEFT, height, PALE)
        y = top + 5
        for line in self._wrap(text, 9.5, 118):
            self._write(LEFT + 5, y, line, 9.5)
            y += 4.8
        y += 1.2
        facts = [seller.name, f"IBAN {_spaced(seller.iban)}", " · ".join(filter(None, (seller.bic, seller.bank_name)))]
        for at, line in enumerate(filter(None, facts)):
            self._write(LEFT + 5, y, line, 9, "B" if at == 1 else "", INK if at == 1 else GREY)
            y += 4.6
        if code:
            self._draw_code(code, RIGHT - 4, top + 3.5)
            self._write(RIGHT - 32, top + 24.6, wording["scan_to_pay"], 7.5, "", GREY, "R")
        self.y_now = top + height + 5

    def _bank_code(self) -> segno.QRCode | None:
        seller, payable = self.invoice.seller, self.invoice.totals.payable
        if self.content.currency != "EUR" or not 1 <= payable <= 99_999_999_999:
            return None
        return helpers.make_epc_qr(
            name=seller.name[:70],
            iban=seller.iban,
            bic=seller.bic or None,
            amount=Decimal(payable).scaleb(-2),
            text=self.invoice.number,
        )

    def _draw_code(self, code: segno.QRCode, right: float, top: float) -> None:
        matrix = [bytes(row) for row in code.matrix]
        module = 24.0 / len(matrix)
        left = right - module * len(matrix)
        self.set_fill_color(INK)
        for row, cells in enumerate(matrix):
            # Runs of dark modules are drawn as one: no hairlines between them.
            edges = [at for at in range(len(cells) + 1) if _dark(cells, at) != _dark(cells, at - 1)]
            for start, end in list(pairwise(edges))[::2]:
                self.rect(left + start * module, top + row * module, (end - start) * module, module, style="F")

    def _page(self) -> None:
        """A new page with what stands on every one."""
        self.add_page()
        seller, wording = self.invoice.seller, self.wording
        if not self.is_final:
            with self.rotation(52, 105, 160):
                self._pick(110, "B")
                self.set_text_color("#eceef1")
                self.text(105 - self.get_string_width(wording["draft"]) / 2, 175, wording["draft"])
        self._fill(0, 0, 210, 3, self.colour)
        if self.page > 1:
            self._write(LEFT, 13, seller.name, 9, "B", self.colour)
            self._write(RIGHT, 13, self.heading, 9, "", GREY, "R")
        self.y_now = TOP
        self._line(268, HAIRLINE, 0.2)
        columns = (
            [seller.name, _street(seller.address), _town(seller.address)],
            [seller.phone, seller.email, seller.website],
            [seller.bank_name, seller.iban and f"IBAN {_spaced(seller.iban)}", seller.bic and f"BIC {seller.bic}"],
            [
                seller.register_entry,
                seller.vat_id and f"{wording['vat_id']} {seller.vat_id}",
                seller.tax_number and f"{wording['tax_number']} {seller.tax_number}",
            ],
        )
        for x, width, texts in zip((LEFT, 68, 103, 153), (43, 33, 48, 39), columns, strict=True):
            for row, text in enumerate(filter(None, texts)):
                self._write(x, 271 + 3.5 * row, self._fit(text, 6.8, width), 6.8, "", GREY)
        pages = wording.say("page", page=str(self.page), pages=_PAGES)
        self._write(172, 285, pages, 7.5, "", GREY)

    # the tools

    def _paragraph(self, text: str, size: float, style: str = "") -> None:
        for line in self._wrap(text, size, RIGHT - LEFT - 10, style):
            self._room(size * 0.5)
            self._write(LEFT, self.y_now, line, size, style)
            self.y_now += size * 0.5
        self.y_now += 2.5 if text else 0

    def _room(self, height: float) -> None:
        """Go to the next page if there is no room for this on the page."""
        if self.y_now + height > BOTTOM:
            self._page()
            if self.in_table:
                self._table_head()

    def _write(
        self, x: float, y: float, text: str, size: float, style: str = "", colour: str = INK, align: Align = "L"
    ) -> None:
        """One line; `x` is its left or right end, `y` the top of its letters."""
        if not text:
            return
        self._pick(size, style)
        self.set_text_color(colour)
        width = self.get_string_width(_plain(text))
        self.set_xy(x - width if align == "R" else x, y)
        self.cell(width + 0.1, size * 0.3528, _plain(text), new_x=XPos.LEFT, new_y=YPos.TOP)

    def _wrap(self, text: str, size: float, width: float, style: str = "") -> list[str]:
        """The text in lines of at most this width."""
        if not text.strip():
            return []
        self._pick(size, style)
        lines = self.multi_cell(width, 5, _plain(text), dry_run=True, output="LINES", align="L")
        assert isinstance(lines, list), "that is the output asked for"
        return [str(line).rstrip() for line in lines]

    def _fit(self, text: str, size: float, width: float) -> str:
        """The text, cut off where it would be wider."""
        self._pick(size, "")
        if self.get_string_width(_plain(text)) <= width:
            return text
        while text and self.get_string_width(_plain(text) + "…") > width:
            text = text[:-1]
        return text + "…"

    def _width(self, text: str, size: float, style: str) -> float:
        self._pick(size, style)
        return float(self.get_string_width(_plain(text)))

    def _pick(self, size: float, style: str) -> None:
        self.set_font("fira", style, size)

    def _fill(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.set_fill_color(colour)
        self.rect(x, y, width, height, style="F")

    def _line(self, y: float, colour: str, thickness: float, left: float = LEFT) -> None:
        self.set_draw_color(colour)
        self.set_line_width(thickness)
        self.line(left, y, RIGHT, y)

    def _address(self, address: PostalAddress) -> list[str]:
        """Its lines, as a letter from the seller's country is addressed."""
        lines = [*address.lines, _town(address), address.region]
        if address.country != self.invoice.seller.address.country:
            lines.append(self.wording.country(address.country))
        return [line for line in lines if line]


def _street(address: PostalAddress) -> str:
    return ", ".join(line for line in address.lines if line)


def _town(address: PostalAddress) -> str:
    return f"{address.postcode} {address.city}".strip()


def _spaced(iban: str) -> str:
    return " ".join(iban[at : at + 4] for at in range(0, len(iban), 4))


def _dark(cells: bytes, at: int) -> bool:
    return 0 <= at < len(cells) and bool(cells[at] & 1)


def _plain(text: str) -> str:
    """The font has no narrow no-break space, which French writes in numbers."""
    return text.replace("\u202f", "\u00a0").replace("\t", " ")
