-- Whom invoices are addressed to, a BillingDetails in protobuf's JSON.
ALTER TABLE customers ADD COLUMN billing_details jsonb;

CREATE TABLE invoicing_policies (
    tenant_id text NOT NULL PRIMARY KEY,
    -- An InvoicingPolicy in protobuf's JSON.
    policy    jsonb NOT NULL
);
SELECT nexus.guard_tenant_rows('invoicing_policies');

ALTER TABLE bills
    -- By which it is taxed, as it was when it was made. Without a country it gets no invoice.
    ADD COLUMN tax_country text NOT NULL DEFAULT '',
    ADD COLUMN tax_basis_points integer NOT NULL DEFAULT 0,
    -- Of the total, the tax, and the platform's part of the rest. Set when the sale has been booked.
    ADD COLUMN tax bigint,
    ADD COLUMN platform_share bigint;
CREATE INDEX bills_to_invoice ON bills (tenant_id, bill_id)
    WHERE state = 'PAID' AND total > 0 AND tax_country <> '' AND invoice_id = '';
