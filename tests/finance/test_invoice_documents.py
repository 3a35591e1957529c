"""The documents: XML by the rules of EN 16931, PDF/A-3 that carries it and says the same, the same bytes every time."""

import re
from collections.abc import Iterator
from decimal import Decimal
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import facturx  # type: ignore[import-untyped]
import pypdf
import pypdfium2  # type: ignore[import-untyped]
import pytest
import zxingcpp
from lxml import etree  # type: ignore[import-untyped]
from PIL import Image
from saxonche import PySaxonProcessor, PyXsltExecutable  # type: ignore[import-not-found]

from nexus.finance.invoice_gen.v1.invoice_pb2 import INVOICE_KIND_CREDIT_NOTE, INVOICE_STATE_DRAFT, Invoice
from services.finance.invoice_gen.einvoice import xml_of
from services.finance.invoice_gen.layout import render
from services.finance.invoice_gen.wording import _TEXTS, Wording
from tests.finance.invoices import CUSTOMER, IBAN, REDUCED, SCHEMATRON, SELLER, STANDARD, final_invoice, line

CII = {
    "ram": "urn:un:unece:uncefact:data:standard:ReusableAggregateBusinessInformationEntity:100",
    "rsm": "urn:un:unece:uncefact:data:standard:CrossIndustryInvoice:100",
}
BUYER = {**CUSTOMER, "vatId": "FR40303265045"}
COUPON = {"reason": "Gutschein WINTER10", "amount": -1000, "tax": STANDARD}
SHIPPING = {"reason": "Versand", "amount": 690, "tax": STANDARD}
LONG = "Ein langer Satz über Leinen, der erklärt, was an diesem Kleid besonders ist. "


def untaxed(category: str, **more: str) -> dict[str, Any]:
    return {"tax": {"category": f"TAX_CATEGORY_{category}", "rateBasisPoints": 0, **more}}


def credit_note() -> Invoice:
    note = final_invoice(line())
    note.kind, note.number = INVOICE_KIND_CREDIT_NOTE, "CN-2026-00001"
    note.credited_number, note.credit_reason = "INV-2026-00017", "Rücksendung"
    return note


CASES: dict[str, Invoice] = {
    "one line": final_invoice(),
    "all at once": final_invoice(
        line(14_900, itemId="NL-1", details="GOTS", periodStart="2026-11-01", periodEnd="2026-11-30"),
        line(35, "123456", priceBaseQuantity=1000),
        line(38_950, "2", discount=3895, tax=REDUCED),
        line(9_500, "3.5", unit="HUR"),
        adjustments=[COUPON, SHIPPING],
        prepaid=500,
        orderReference="PO-7781",
        introduction="Vielen Dank.",
        note="Danke.",
        deliveryAddress={"lines": ["Kai 1"], "postcode": "20457", "city": "Hamburg", "country": "DE"},
    ),
    "prices with tax": final_invoice(
        line(999, "3"), line(101, tax=REDUCED), adjustments=[COUPON, SHIPPING], pricesIncludeTax=True
    ),
    "a rounding": final_invoice(line(3), pricesIncludeTax=True),
    "zero rate": final_invoice(line(**untaxed("ZERO_RATED"))),
    "exempt": final_invoice(line(**untaxed("EXEMPT", exemptionReason="§ 4 Nr. 21 UStG"))),
    "reverse charge": final_invoice(line(**untaxed("REVERSE_CHARGE")), customer=BUYER),
    "within the Union": final_invoice(line(**untaxed("INTRA_COMMUNITY")), customer=BUYER),
    "export": final_invoice(line(**untaxed("EXPORT"))),
    "out of scope": final_invoice(line(**untaxed("OUT_OF_SCOPE"))),
    "no bank": final_invoice(seller={**SELLER, "iban": "", "bic": "", "bankName": ""}),
    "only a tax number": final_invoice(seller={**SELLER, "vatId": "", "taxNumber": "12/345/67890"}),
    "yen": final_invoice(line(1999), currency="JPY"),
    "nothing to pay": final_invoice(line(10_000), prepaid=11_900),
    "credit note": credit_note(),
}
EVERY_CASE = pytest.mark.parametrize("invoice", CASES.values(), ids=list(CASES))


@pytest.fixture(scope="module")
def rules() -> Iterator[PyXsltExecutable]:
    """The Schematron of Factur-X's profile EN 16931."""
    with PySaxonProcessor(license=False) as processor:
        yield processor.new_xslt30_processor().compile_stylesheet(stylesheet_file=str(SCHEMATRON))


def broken(rules: PyXsltExecutable, xml: bytes, folder: Path) -> list[str]:
    source = folder / "invoice.xml"
    source.write_bytes(xml)
    report = rules.transform_to_string(source_file=str(source))
    assert report.count("fired-rule") > 20, "the rules looked at the invoice"
    return re.findall(r"failed-assert.*?<svrl:text>(.*?)</svrl:text>", report, re.DOTALL)


def xml(invoice: Invoice) -> bytes:
    return xml_of(invoice, Wording(invoice.content.locale or invoice.seller.locale, invoice.content.currency))


def text(pdf: bytes) -> str:
    pages = pypdf.PdfReader(BytesIO(pdf)).pages
    return "\n".join(page.extract_text() for page in pages).replace("\u00a0", " ")


def picture(pdf: bytes, page: int = 0) -> Image.Image:
    with pypdfium2.PdfDocument(pdf) as document:
        return document[page].render(scale=3).to_pil()


@EVERY_CASE
def test_the_xml_keeps_the_schema_and_the_rules_of_en_16931(
    invoice: Invoice, rules: PyXsltExecutable, tmp_path: Path
) -> None:
    document = xml(invoice)
    assert facturx.xml_check_xsd(document, flavor="factur-x", level="en16931")
    assert broken(rules, document, tmp_path) == []


def test_the_rules_notice_a_total_that_is_wrong(rules: PyXsltExecutable, tmp_path: Path) -> None:
    wrong = xml(CASES["one line"]).replace(b"<ram:GrandTotalAmount>119.00", b"<ram:GrandTotalAmount>119.01")
    assert broken(rules, wrong, tmp_path)


def test_the_xml_says_what_the_invoice_says() -> None:
    invoice = CASES["all at once"]
    root = etree.fromstring(xml(invoice))

    def said(path: str) -> list[str]:
        return [element.text for element in root.iterfind(f".//{path}", CII)]

    assert said("rsm:ExchangedDocument/ram:ID") == [invoice.number]
    assert said("ram:DuePayableAmount") == [f"{invoice.totals.payable / 100:.2f}"]
    assert said("ram:IBANID") == [IBAN]
    assert said("ram:BasisQuantity") == ["1000"]
    assert len(said("ram:LineID")) == 4


@EVERY_CASE
def test_the_pdf_carries_the_xml_and_is_the_same_every_time(invoice: Invoice) -> None:
    pdf = render(invoice)
    assert pdf == render(invoice)
    name, inside = facturx.get_facturx_xml_from_pdf(BytesIO(pdf), check_xsd=True)
    assert (name, inside) == ("factur-x.xml", xml(invoice))


def test_the_pdf_declares_itself_pdf_a_3_and_factur_x() -> None:
    root: Any = pypdf.PdfReader(BytesIO(render(CASES["one line"]))).root_object
    metadata = root["/Metadata"].get_object().get_data().decode()
    for said in ("<pdfaid:part>3<", "<pdfaid:conformance>B<", "<fx:ConformanceLevel>EN 16931<", "factur-x.xml"):
        assert said in metadata
    assert root["/OutputIntents"]
    [attached] = root["/AF"]
    assert attached.get_object()["/AFRelationship"] == "/Alternative"
    assert root["/Lang"] == "de-DE"


@pytest.mark.parametrize(
    ("locale", "words"),
    [
        ("de-DE", ["Rechnung", "Zu zahlen", "1.234,56", "23.11.2026", "Umsatzsteuer", "FRANKREICH"]),
        ("en-GB", ["Invoice", "Amount due", "1,234.56", "23 Nov 2026", "include VAT", "FRANCE"]),
        ("fr-FR", ["Facture", "Net à payer", "1 234,56", "23 nov. 2026", "TTC", "FRANCE"]),
        ("es-ES", ["Factura", "Importe a pagar", "1.234,56", "23 nov 2026", "IVA", "FRANCIA"]),
    ],
)
def test_a_document_speaks_the_language_it_is_asked_for(locale: str, words: list[str]) -> None:
    said = text(render(final_invoice(line(124_456), prepaid=1000, pricesIncludeTax=True), locale))
    for word in words:
        assert word in said, f"{word!r} not in {said!r}"


def test_every_word_is_there_in_every_language() -> None:
    for word, said in (*_TEXTS["words"].items(), *_TEXTS["exemptions"].items()):
        assert len(said) == 4, word
        assert all(said), word
        slots = {frozenset(re.findall(r"\{(\w+)\}", one)) for one in said}
        assert len(slots) == 1, f"{word} leaves something out in a language"


def test_two_hundred_lines_go_over_pages_with_their_heads_and_numbers() -> None:
    lines = [line(100 * at, description=f"Artikel Nr. {at}", details=LONG) for at in range(1, 201)]
    pdf = render(final_invoice(*lines))
    pages = [page.extract_text().replace("\u00a0", " ") for page in pypdf.PdfReader(BytesIO(pdf)).pages]
    assert len(pages) > 5
    for number, page in enumerate(pages, start=1):
        assert f"Seite {number} von {len(pages)}" in page
        assert "INV-2026-00017" in page
        assert "Beschreibung" in page or number == len(pages)
    for at in range(1, 201):
        assert sum(f"Artikel Nr. {at}\n" in page for page in pages) == 1


def test_long_texts_are_all_there() -> None:
    words = [f"Wort{number}" for number in range(400)]
    pdf = render(final_invoice(line(details="\n".join(words)), note=LONG * 50, introduction=LONG * 50))
    said = text(pdf)
    assert [word for word in words if word not in said] == []
    assert " ".join(said.split()).count(" ".join(LONG.split())) >= 90, "save for sentences that a page breaks"


@pytest.mark.parametrize("part", ["introduction", "adjustments"])
def test_what_grows_line_by_line_takes_another_page_at_a_time(part: str) -> None:
    def pages(count: int) -> int:
        many: dict[str, Any] = {"introduction": "Guten Tag\n" * (6 + 2 * count)}
        if part == "adjustments":
            many = {part: [{**SHIPPING, "reason": "Versand und Zoll " * 11}] * count}
        return len(pypdf.PdfReader(BytesIO(render(final_invoice(line(), **many)))).pages)

    counts = [pages(count) for count in range(1, 16)]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    assert all(after - before <= 1 for before, after in pairwise(counts)), counts


@pytest.mark.parametrize("case", ["one line", "all at once"])
def test_the_code_for_banking_apps_can_be_scanned(case: str) -> None:
    pdf = render(CASES[case])
    with pypdfium2.PdfDocument(pdf) as document:
        pages = range(len(document))
    [code] = [code for page in pages for code in zxingcpp.read_barcodes(picture(pdf, page))]
    lines = code.text.splitlines()
    assert (lines[0], lines[3]) == ("BCD", "SCT")
    assert IBAN in lines
    [amount] = [one for one in lines if one.startswith("EUR")]
    assert Decimal(amount.removeprefix("EUR")) * 100 == CASES[case].totals.payable


def test_nothing_runs_out_of_the_frame() -> None:
    lines = [line(10**8, "99999", description="W" * 500, itemId="X" * 64) for _ in range(2)]
    customer = {**CUSTOMER, "name": "N" * 200, "customerId": "C" * 128}
    paper = picture(render(final_invoice(*lines, customer=customer, orderReference="O" * 100)))
    millimetre = paper.width / 210
    for box in ((0, 4, 20, 297), (194, 4, 210, 297)):  # margins, below the bar at the top
        margin = paper.crop(tuple(round(edge * millimetre) for edge in box)).convert("L")  # type: ignore[arg-type]
        darkest: Any = margin.getextrema()[0]
        assert darkest > 200, f"something is written in the margin {box}"


def test_a_logo_stands_in_the_letterhead() -> None:
    buffer = BytesIO()
    Image.new("RGB", (600, 200), "#e11d48").save(buffer, "PNG")
    invoice = final_invoice()
    invoice.seller.logo = buffer.getvalue()
    corner = picture(render(invoice)).crop((int(22 / 210 * 1786), 115, 560, 270))
    assert (225, 29, 72) in {colour for _, colour in corner.getcolors(1 << 20)}  # type: ignore[union-attr]


def test_a_draft_says_that_it_is_one_and_carries_nothing() -> None:
    draft = final_invoice()
    draft.state, draft.number, draft.issue_date, draft.due_date = INVOICE_STATE_DRAFT, "", "", ""
    pdf = render(draft)
    assert "ENTWURF" in text(pdf)
    assert "/AF" not in pypdf.PdfReader(BytesIO(pdf)).root_object


@pytest.mark.parametrize("name", ["Łukasz Żółć", "Ωμέγα", "Иван Петров", "日本 太郎 🎉"])
def test_names_of_the_world_do_not_break_it(name: str) -> None:
    pdf = render(final_invoice(customer={**CUSTOMER, "name": name}))
    if name.isascii() or "日" not in name:
        assert name in text(pdf)
