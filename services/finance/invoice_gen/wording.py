"""The words of a document in the language that it is written for, and how that language writes dates and money."""

import tomllib
from datetime import date
from decimal import Decimal
from pathlib import Path

from babel import Locale, dates, numbers

from nexus.finance.invoice_gen.v1.invoice_pb2 import INVOICE_KIND_CREDIT_NOTE, Invoice, Tax, TaxCategory
from services.chassis.messages import text_of
from services.finance.invoice_gen.content import exponent

DEFAULT_LOCALE = "en-GB"

_LANGUAGES = ("en", "de", "fr", "es")
_TEXTS = tomllib.loads((Path(__file__).parent / "words.toml").read_text("utf-8"))


class Wording:
    """Words, dates and amounts for one document."""

    def __init__(self, locale: str, currency: str) -> None:
        """A language that there are no words for gets English ones, with its own dates and numbers."""
        self.name = locale or DEFAULT_LOCALE
        self.locale = Locale.parse(self.name, sep="-")
        self._at = _LANGUAGES.index(self.locale.language) if self.locale.language in _LANGUAGES else 0
        self._currency, self._places = currency, exponent(currency)

    @classmethod
    def of(cls, invoice: Invoice, locale: str = "") -> "Wording":
        """In another language than the document's own, if it is given."""
        return cls(locale or invoice.content.locale or invoice.seller.locale, invoice.content.currency)

    def __getitem__(self, word: str) -> str:
        text: str = _TEXTS["words"][word][self._at]
        return text

    def say(self, word: str, **values: str) -> str:
        return self[word].format(**values)

    def money(self, minor_units: int) -> str:
        amount = Decimal(minor_units).scaleb(-self._places)
        return numbers.format_currency(amount, self._currency, locale=self.locale).replace("-", "\u2212")

    def amount(self, minor_units: int) -> str:
        """Without the currency, for a table."""
        pattern = "#,##0" + ("." + "0" * self._places if self._places else "")
        number = numbers.format_decimal(Decimal(minor_units).scaleb(-self._places), pattern, locale=self.locale)
        return number.replace("-", "\u2212")

    def quantity(self, quantity: str, unit: str) -> str:
        number = numbers.format_decimal(Decimal(quantity), "#,##0.######", locale=self.locale)
        name = _TEXTS["units"][unit][self._at] if unit in _TEXTS["units"] else unit
        return f"{number}\u00a0{name}".strip("\u00a0")

    def percent(self, basis_points: int) -> str:
        return numbers.format_decimal(Decimal(basis_points) / 100, "0.##", locale=self.locale) + "\u00a0%"

    def date(self, day: str) -> str:
        return dates.format_date(date.fromisoformat(day), "medium", locale=self.locale)

    def country(self, code: str) -> str:
        return str(self.locale.territories.get(code, code)).upper()

    def mail(self, invoice: Invoice) -> tuple[str, str]:
        """The subject and the text of the mail that brings it."""
        values = {
            "kind": self["credit_note" if invoice.kind == INVOICE_KIND_CREDIT_NOTE else "invoice"],
            "number": invoice.number,
            "date": self.date(invoice.issue_date),
            "total": self.money(invoice.totals.total),
            "seller": invoice.seller.name,
            "customer": invoice.content.customer.name,
        }
        parts = [self.say(word, **values) for word in ("mail_greeting", "mail_text", "mail_close")]
        return self.say("mail_subject", **values), "\n\n".join(parts) + f"\n{invoice.seller.name}\n"

    def exemption(self, tax: Tax) -> str:
        """Why nothing is taxed; empty where something is."""
        legal = _TEXTS["exemptions"].get(text_of(TaxCategory, tax.category))
        return tax.exemption_reason or (legal[self._at] if legal else "")
