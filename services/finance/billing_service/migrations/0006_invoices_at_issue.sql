DROP INDEX bills_to_invoice;
CREATE INDEX bills_to_invoice ON bills (tenant_id, bill_id)
    WHERE state <> 'UNCOLLECTIBLE' AND total > 0 AND tax_country <> '' AND invoice_id = '';
