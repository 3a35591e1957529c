from services.chassis.spec import ServiceSpec

SERVICE = ServiceSpec(
    id="invoice-gen",
    port=3021,
    # Its own, to mail them: see subscribers.py.
    subscribes=[
        "nexus.finance.invoice_gen.v1.InvoiceFinalized",
        "nexus.finance.invoice_gen.v1.CreditNoteIssued",
    ],
    sends_mail=True,
)
