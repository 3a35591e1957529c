"""The words of a document in the language that it is written for, and how that language writes dates and money."""

from datetime import date
from decimal import Decimal

from babel import Locale, dates, numbers

from nexus.finance.invoice_gen.v1.invoice_pb2 import (
    INVOICE_KIND_CREDIT_NOTE,
    TAX_CATEGORY_EXPORT,
    TAX_CATEGORY_INTRA_COMMUNITY,
    TAX_CATEGORY_OUT_OF_SCOPE,
    TAX_CATEGORY_REVERSE_CHARGE,
    Invoice,
    Tax,
)
from services.finance.invoice_gen.content import exponent

DEFAULT_LOCALE = "en-GB"

_LANGUAGES = ("en", "de", "fr", "es")
_WORDS = {
    "invoice": ("Invoice", "Rechnung", "Facture", "Factura"),
    "credit_note": ("Credit note", "Gutschrift", "Avoir", "Factura rectificativa"),
    "draft": ("DRAFT", "ENTWURF", "BROUILLON", "BORRADOR"),
    "number": ("Number", "Nummer", "Numéro", "Número"),
    "issue_date": ("Date", "Datum", "Date", "Fecha"),
    "due_date": ("Due", "Fällig am", "Échéance", "Vencimiento"),
    "delivery_date": ("Supplied on", "Leistungsdatum", "Date de livraison", "Fecha de entrega"),
    "customer_id": ("Customer no.", "Kundennummer", "N° client", "N.º de cliente"),
    "order_reference": ("Your order", "Ihre Bestellung", "Votre commande", "Su pedido"),
    "buyer_reference": ("Your reference", "Ihr Zeichen", "Votre référence", "Su referencia"),
    "customer_vat_id": ("Your VAT no.", "Ihre USt-IdNr.", "Votre n° TVA", "Su NIF-IVA"),
    "for_invoice": ("For invoice", "Zu Rechnung", "Pour facture", "Para factura"),
    "credit_reason": ("Reason", "Grund", "Motif", "Motivo"),
    "delivered_to": ("Delivered to", "Lieferung an", "Livré à", "Entregado a"),
    "position": ("#", "#", "#", "#"),
    "description": ("Description", "Beschreibung", "Désignation", "Descripción"),
    "item_id": ("Item", "Artikel", "Réf.", "Ref."),
    "quantity": ("Quantity", "Menge", "Quantité", "Cantidad"),
    "unit_price": ("Price", "Preis", "Prix", "Precio"),
    "vat": ("VAT", "USt.", "TVA", "IVA"),
    "amount": ("Amount", "Betrag", "Montant", "Importe"),
    "discount": ("Discount", "Rabatt", "Remise", "Descuento"),
    "subtotal": ("Subtotal", "Zwischensumme", "Sous-total", "Subtotal"),
    "net": ("Total without VAT", "Summe netto", "Total HT", "Total sin IVA"),
    "vat_on": (
        "VAT {rate} on {taxable}",
        "USt. {rate} auf {taxable}",
        "TVA {rate} sur {taxable}",
        "IVA {rate} sobre {taxable}",
    ),
    "vat_in": ("VAT {rate} included", "darin USt. {rate}", "dont TVA {rate}", "IVA {rate} incluido"),
    "net_in": ("Net at {rate}", "Nettobetrag zu {rate}", "Montant HT à {rate}", "Base al {rate}"),
    "rounding": ("Rounding", "Rundung", "Arrondi", "Redondeo"),
    "total": ("Total", "Gesamtbetrag", "Total TTC", "Total"),
    "prepaid": ("Already paid", "Bereits bezahlt", "Déjà réglé", "Ya pagado"),
    "payable": ("Amount due", "Zu zahlen", "Net à payer", "Importe a pagar"),
    "credited": ("Amount credited", "Gutgeschrieben", "Montant crédité", "Importe abonado"),
    "prices_with_vat": (
        "All prices include VAT.",
        "Alle Preise enthalten die Umsatzsteuer.",
        "Tous les prix sont TTC.",
        "Todos los precios incluyen el IVA.",
    ),
    "pay_by": (
        "Please pay {amount} by {date}, stating {number}.",
        "Bitte zahlen Sie {amount} bis zum {date} und geben Sie {number} an.",
        "Merci de régler {amount} au plus tard le {date}, en indiquant {number}.",
        "Le rogamos abone {amount} antes del {date}, indicando {number}.",
    ),
    "paid": (
        "Paid in full. Thank you!",
        "Vollständig bezahlt. Vielen Dank!",
        "Entièrement réglé. Merci !",
        "Pagado en su totalidad. ¡Gracias!",
    ),
    "scan_to_pay": ("Scan to pay", "Mit der Bank-App zahlen", "Scannez pour payer", "Escanee para pagar"),
    "bank": ("Bank", "Bank", "Banque", "Banco"),
    "vat_id": ("VAT no.", "USt-IdNr.", "N° TVA", "NIF-IVA"),
    "tax_number": ("Tax no.", "Steuernummer", "N° fiscal", "N.º fiscal"),
    "page": (
        "Page {page} of {pages}",
        "Seite {page} von {pages}",
        "Page {page} sur {pages}",
        "Página {page} de {pages}",
    ),
    "mail_subject": (
        "{kind} {number} from {seller}",
        "{kind} {number} von {seller}",
        "{kind} {number} de {seller}",
        "{kind} {number} de {seller}",
    ),
    "mail_greeting": ("Hello {customer},", "Guten Tag {customer},", "Bonjour {customer},", "Buenos días, {customer}:"),
    "mail_text": (
        "please find attached our document {number} of {date} over {total}.",
        "anbei erhalten Sie unser Dokument {number} vom {date} über {total}.",
        "veuillez trouver ci-joint notre document {number} du {date} de {total}.",
        "adjuntamos nuestro documento {number} del {date} por {total}.",
    ),
    "mail_close": ("Kind regards", "Mit freundlichen Grüßen", "Cordialement", "Un saludo"),
    "reverse_charge": (
        "Reverse charge: the customer owes the VAT.",
        "Steuerschuldnerschaft des Leistungsempfängers.",
        "Autoliquidation : la TVA est due par le preneur.",
        "Inversión del sujeto pasivo.",
    ),
    "intra_community": (
        "Tax-free intra-Community supply.",
        "Steuerfreie innergemeinschaftliche Lieferung.",
        "Livraison intracommunautaire exonérée de TVA.",
        "Entrega intracomunitaria exenta de IVA.",
    ),
    "export": (
        "Tax-free export.",
        "Steuerfreie Ausfuhrlieferung.",
        "Exportation exonérée de TVA.",
        "Exportación exenta de IVA.",
    ),
    "out_of_scope": ("Not subject to VAT.", "Nicht steuerbar.", "Hors champ de la TVA.", "No sujeto a IVA."),
}
_UNITS = {
    "C62": ("", "", "", ""),
    "HUR": ("h", "Std.", "h", "h"),
    "DAY": ("days", "Tage", "jours", "días"),
    "MON": ("months", "Monate", "mois", "meses"),
    "ANN": ("years", "Jahre", "ans", "años"),
    "KGM": ("kg", "kg", "kg", "kg"),
    "GRM": ("g", "g", "g", "g"),
    "LTR": ("l", "l", "l", "l"),
    "MTR": ("m", "m", "m", "m"),
    "KMT": ("km", "km", "km", "km"),
    "KWH": ("kWh", "kWh", "kWh", "kWh"),
    "E34": ("GB", "GB", "Go", "GB"),
}
_LEGAL = {
    TAX_CATEGORY_REVERSE_CHARGE: "reverse_charge",
    TAX_CATEGORY_INTRA_COMMUNITY: "intra_community",
    TAX_CATEGORY_EXPORT: "export",
    TAX_CATEGORY_OUT_OF_SCOPE: "out_of_scope",
}


class Wording:
    """Words, dates and amounts for one document."""

    def __init__(self, locale: str, currency: str) -> None:
        """A language that there are no words for gets English ones, with its own dates and numbers."""
        self.name = locale or DEFAULT_LOCALE
        self.locale = Locale.parse(self.name, sep="-")
        self._at = _LANGUAGES.index(self.locale.language) if self.locale.language in _LANGUAGES else 0
        self._currency, self._places = currency, exponent(currency)

    def __getitem__(self, word: str) -> str:
        return _WORDS[word][self._at]

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
        return f"{number}\u00a0{self.unit(unit)}".strip("\u00a0")

    def unit(self, unit: str) -> str:
        return _UNITS[unit or "C62"][self._at] if (unit or "C62") in _UNITS else unit

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
        return tax.exemption_reason or (self[_LEGAL[tax.category]] if tax.category in _LEGAL else "")
