-- Who sells: a Seller in protobuf's JSON, without its logo.
CREATE TABLE sellers (
    tenant_id   text PRIMARY KEY,
    seller      jsonb NOT NULL,
    logo_digest bytea
);
SELECT nexus.guard_tenant_rows('sellers');

-- Logos by their SHA-256: documents name the one that they were made with.
CREATE TABLE logos (
    tenant_id text NOT NULL,
    digest    bytea NOT NULL,
    image     bytea NOT NULL,
    PRIMARY KEY (tenant_id, digest)
);
SELECT nexus.guard_tenant_rows('logos');

-- Whoever takes a number locks the row of its series until the document has it.
CREATE TABLE series (
    tenant_id text NOT NULL,
    series    text NOT NULL,
    kind      text NOT NULL CHECK (kind IN ('INVOICE', 'CREDIT_NOTE')),
    pattern   text NOT NULL,
    -- The pattern as far as it decides whether two series can write the same number.
    shape     text NOT NULL,
    PRIMARY KEY (tenant_id, series),
    CONSTRAINT series_shape UNIQUE (tenant_id, shape)
);
SELECT nexus.guard_tenant_rows('series');

-- The last number of each series, and of each year in it (0 for a series that does not count by years).
CREATE TABLE last_numbers (
    tenant_id   text NOT NULL,
    series      text NOT NULL,
    series_year integer NOT NULL,
    last_number integer NOT NULL CHECK (last_number > 0),
    PRIMARY KEY (tenant_id, series, series_year),
    FOREIGN KEY (tenant_id, series) REFERENCES series
);
SELECT nexus.guard_tenant_rows('last_numbers');

CREATE TABLE invoices (
    tenant_id           text NOT NULL,
    invoice_id          uuid NOT NULL,
    kind                text NOT NULL CHECK (kind IN ('INVOICE', 'CREDIT_NOTE')),
    state               text NOT NULL DEFAULT 'DRAFT' CHECK (state IN ('DRAFT', 'FINALIZED', 'VOID')),
    version             integer NOT NULL DEFAULT 1,
    -- InvoiceContent and InvoiceTotals in protobuf's JSON; what is asked for stands in columns as well.
    content             jsonb NOT NULL,
    totals              jsonb NOT NULL,
    customer_id         text NOT NULL,
    currency            text NOT NULL,
    total               bigint NOT NULL,
    source              text NOT NULL DEFAULT '',
    reference           text NOT NULL DEFAULT '',
    credited_invoice_id uuid,
    credit_reason       text NOT NULL DEFAULT '',
    -- Set when it is finalized.
    number              text,
    series              text,
    series_year         integer,
    series_number       integer,
    issue_date          date,
    due_date            date,
    seller              jsonb,
    logo_digest         bytea,
    create_time         timestamptz NOT NULL DEFAULT now(),
    finalize_time       timestamptz,
    PRIMARY KEY (tenant_id, invoice_id),
    CHECK ((state = 'FINALIZED') = (number IS NOT NULL)),
    CHECK (state <> 'FINALIZED' OR num_nulls(series, series_year, series_number, issue_date, due_date, seller,
                                             finalize_time) = 0),
    CHECK ((kind = 'CREDIT_NOTE') = (credited_invoice_id IS NOT NULL)),
    FOREIGN KEY (tenant_id, credited_invoice_id) REFERENCES invoices,
    FOREIGN KEY (tenant_id, series) REFERENCES series,
    FOREIGN KEY (tenant_id, logo_digest) REFERENCES logos
);
-- No number twice, whatever else goes wrong.
CREATE UNIQUE INDEX invoices_number ON invoices (tenant_id, number) WHERE number IS NOT NULL;
CREATE UNIQUE INDEX invoices_series ON invoices (tenant_id, series, series_year, series_number)
    WHERE number IS NOT NULL;
-- What a service issues once is there once.
CREATE UNIQUE INDEX invoices_reference ON invoices (tenant_id, source, reference) WHERE reference <> '';
CREATE INDEX invoices_customer ON invoices (tenant_id, customer_id, invoice_id);
CREATE INDEX invoices_credited ON invoices (tenant_id, credited_invoice_id) WHERE credited_invoice_id IS NOT NULL;
CREATE INDEX invoices_issued ON invoices (tenant_id, issue_date) WHERE issue_date IS NOT NULL;
CREATE INDEX invoices_prefix ON invoices (tenant_id, number text_pattern_ops) WHERE number IS NOT NULL;
SELECT nexus.guard_tenant_rows('invoices');

-- A draft becomes final or void, and then it stays as it is.
CREATE FUNCTION invoices_are_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND nexus.is_erased(OLD.tenant_id) THEN
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.state = 'DRAFT'
       AND (NEW.tenant_id, NEW.invoice_id, NEW.kind) = (OLD.tenant_id, OLD.invoice_id, OLD.kind) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the document % is final', OLD.invoice_id;
END
$$;
CREATE TRIGGER invoices_are_final BEFORE UPDATE OR DELETE ON invoices
    FOR EACH ROW EXECUTE FUNCTION invoices_are_final();

-- The last number goes up by one, and never back.
CREATE FUNCTION numbers_only_rise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND nexus.is_erased(OLD.tenant_id) THEN
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.last_number = OLD.last_number + 1
       AND (NEW.tenant_id, NEW.series, NEW.series_year) = (OLD.tenant_id, OLD.series, OLD.series_year) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the series % leaves out no number', OLD.series;
END
$$;
CREATE TRIGGER numbers_only_rise BEFORE UPDATE OR DELETE ON last_numbers
    FOR EACH ROW EXECUTE FUNCTION numbers_only_rise();

-- What became of a finalized invoice. Whoever credits or settles it locks its row.
CREATE TABLE balances (
    tenant_id  text NOT NULL,
    invoice_id uuid NOT NULL,
    total      bigint NOT NULL,
    credited   bigint NOT NULL DEFAULT 0 CHECK (credited BETWEEN 0 AND total),
    paid       bigint NOT NULL CHECK (paid >= 0),
    -- Nothing of the invoice is left.
    void       boolean NOT NULL DEFAULT false CHECK (NOT void OR credited = total),
    due_date   date NOT NULL,
    PRIMARY KEY (tenant_id, invoice_id),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoices
);
CREATE INDEX balances_due ON balances (tenant_id, due_date) WHERE total - credited - paid > 0;
SELECT nexus.guard_tenant_rows('balances');

-- How many units of which line of an invoice a credit note takes back.
CREATE TABLE credited_lines (
    tenant_id      text NOT NULL,
    credit_note_id uuid NOT NULL,
    invoice_id     uuid NOT NULL,
    line           integer NOT NULL,
    quantity       numeric NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (tenant_id, credit_note_id, line),
    FOREIGN KEY (tenant_id, credit_note_id) REFERENCES invoices,
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoices
);
CREATE INDEX credited_lines_invoice ON credited_lines (tenant_id, invoice_id);
SELECT nexus.guard_tenant_rows('credited_lines');

CREATE TABLE payments (
    tenant_id         text NOT NULL,
    invoice_id        uuid NOT NULL,
    payment_reference text NOT NULL,
    amount            bigint NOT NULL CHECK (amount > 0),
    create_time       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, invoice_id, payment_reference),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoices
);
SELECT nexus.guard_tenant_rows('payments');

-- Finalized documents as they were first rendered, in each language.
CREATE TABLE documents (
    tenant_id   text NOT NULL,
    invoice_id  uuid NOT NULL,
    locale      text NOT NULL,
    pdf         bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, invoice_id, locale),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoices
);
SELECT nexus.guard_tenant_rows('documents');

CREATE TABLE sendings (
    tenant_id  text NOT NULL,
    sending_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    send_time  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, sending_id),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoices
);
CREATE INDEX sendings_invoice ON sendings (tenant_id, invoice_id);
SELECT nexus.guard_tenant_rows('sendings');

REVOKE UPDATE, DELETE ON credited_lines, payments, documents, sendings, logos FROM nexus_invoice_gen;
REVOKE DELETE ON invoices, last_numbers, balances FROM nexus_invoice_gen;
