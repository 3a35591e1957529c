-- Settings in protobuf's JSON.
CREATE TABLE settings (
    tenant_id text PRIMARY KEY,
    settings  jsonb NOT NULL
);
SELECT nexus.guard_tenant_rows('settings');

-- What a tenant defines: a Zone, RateTable or Box in protobuf's JSON.
CREATE TABLE definitions (
    tenant_id     text NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('zone', 'rate table', 'box')),
    definition_id text NOT NULL,
    body          jsonb NOT NULL,
    PRIMARY KEY (tenant_id, kind, definition_id)
);
SELECT nexus.guard_tenant_rows('definitions');

-- Keys for carriers and for their reports, sealed.
CREATE TABLE carrier_accounts (
    tenant_id text NOT NULL,
    carrier   text NOT NULL,
    sealed    bytea NOT NULL,
    PRIMARY KEY (tenant_id, carrier)
);
SELECT nexus.guard_tenant_rows('carrier_accounts');

-- A Quote in protobuf's JSON, and what it was given for.
CREATE TABLE quotes (
    tenant_id   text NOT NULL,
    quote_id    uuid NOT NULL,
    quote       jsonb NOT NULL,
    country     text NOT NULL,
    postcode    text NOT NULL,
    -- The heaviest of the parcels.
    most_grams  integer NOT NULL,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, quote_id)
);
CREATE INDEX ON quotes (expire_time);
SELECT nexus.guard_tenant_rows('quotes');

CREATE TABLE manifests (
    tenant_id   text NOT NULL,
    manifest_id uuid NOT NULL,
    carrier     text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, manifest_id)
);
SELECT nexus.guard_tenant_rows('manifests');

-- A DeliveryRun in protobuf's JSON.
CREATE TABLE delivery_runs (
    tenant_id       text NOT NULL,
    delivery_run_id uuid NOT NULL,
    run             jsonb NOT NULL,
    create_time     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, delivery_run_id)
);
SELECT nexus.guard_tenant_rows('delivery_runs');

CREATE TABLE shipments (
    tenant_id         text NOT NULL,
    shipment_id       uuid NOT NULL,
    key               text NOT NULL,
    order_id          text NOT NULL,
    state             text NOT NULL CHECK (state IN ('BUYING', 'LABEL_BOUGHT', 'IN_TRANSIT', 'OUT_FOR_DELIVERY',
                                                     'DELIVERED', 'RETURNED', 'VOIDING', 'VOIDED', 'REFUSED')),
    -- A LabelOrder and the Address of the sender, in protobuf's JSON.
    label_order       jsonb NOT NULL,
    origin            jsonb NOT NULL,
    carrier           text NOT NULL,
    service           text NOT NULL,
    weight_grams      integer NOT NULL,
    -- What the carrier knows it by, before it has sold anything.
    carrier_reference text NOT NULL DEFAULT '',
    tracking_number   text,
    cost              bigint,
    cost_currency     text,
    price             bigint,
    price_currency    text,
    max_days          integer NOT NULL DEFAULT 0,
    refusal           text NOT NULL DEFAULT '',
    manifest_id       uuid,
    delivery_run_id   uuid,
    create_time       timestamptz NOT NULL DEFAULT now(),
    update_time       timestamptz NOT NULL DEFAULT now(),
    deliver_time      timestamptz,
    PRIMARY KEY (tenant_id, shipment_id),
    -- One label per key.
    UNIQUE (tenant_id, key),
    UNIQUE (tenant_id, carrier, tracking_number),
    FOREIGN KEY (tenant_id, manifest_id) REFERENCES manifests,
    FOREIGN KEY (tenant_id, delivery_run_id) REFERENCES delivery_runs
);
CREATE INDEX shipments_order ON shipments (tenant_id, order_id, shipment_id);
CREATE INDEX shipments_tracking ON shipments (tenant_id, tracking_number);
CREATE INDEX shipments_manifest ON shipments (tenant_id, manifest_id) WHERE manifest_id IS NOT NULL;
CREATE INDEX shipments_to_manifest ON shipments (tenant_id, carrier) WHERE manifest_id IS NULL;
CREATE INDEX shipments_hanging ON shipments (update_time) WHERE state IN ('BUYING', 'VOIDING');
SELECT nexus.guard_tenant_rows('shipments');

-- Keys that nothing may be bought for any more.
CREATE TABLE cancelled_keys (
    tenant_id   text NOT NULL,
    key         text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key)
);
SELECT nexus.guard_tenant_rows('cancelled_keys');

-- Labels as they were first made or fetched.
CREATE TABLE labels (
    tenant_id   text NOT NULL,
    shipment_id uuid NOT NULL,
    pdf         bytea NOT NULL,
    PRIMARY KEY (tenant_id, shipment_id),
    FOREIGN KEY (tenant_id, shipment_id) REFERENCES shipments
);
SELECT nexus.guard_tenant_rows('labels');

CREATE TABLE scans (
    tenant_id    text NOT NULL,
    shipment_id  uuid NOT NULL,
    scan_id      text NOT NULL,
    status       text NOT NULL,
    scan_time    timestamptz NOT NULL,
    place        text NOT NULL,
    message      text NOT NULL,
    receive_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, shipment_id, scan_id),
    FOREIGN KEY (tenant_id, shipment_id) REFERENCES shipments
);
SELECT nexus.guard_tenant_rows('scans');

-- The sandbox carrier's own books.
CREATE TABLE sandbox_labels (
    tenant_id       text NOT NULL,
    reference       text NOT NULL,
    tracking_number text NOT NULL,
    cost            bigint NOT NULL,
    -- How often it was asked to sell it; it has been sold once.
    requests        integer NOT NULL DEFAULT 1,
    refunded        boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, reference)
);
SELECT nexus.guard_tenant_rows('sandbox_labels');

REVOKE UPDATE, DELETE ON scans, labels, manifests, cancelled_keys FROM nexus_puabo_nuki_shipping_service;
