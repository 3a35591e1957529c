-- Customers, their payment methods, and the money that moves.

CREATE TABLE customers (
    tenant_id                 text NOT NULL,
    -- A user's customer has the user's id.
    customer_id               uuid NOT NULL,
    default_payment_method_id uuid,
    -- Use before this time has been billed: what is recorded later counts into the next bill.
    usage_closed_until        timestamptz NOT NULL DEFAULT '-infinity',
    create_time               timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, customer_id)
);
SELECT nexus.guard_tenant_rows('customers');

CREATE TABLE provider_accounts (
    tenant_id   text NOT NULL,
    provider    text NOT NULL CHECK (provider IN ('SANDBOX', 'STRIPE', 'PAYPAL')),
    -- The account message of SetProviderAccount, sealed.
    account_sealed bytea NOT NULL,
    is_default  boolean NOT NULL,
    update_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, provider)
);
CREATE UNIQUE INDEX provider_accounts_default ON provider_accounts (tenant_id) WHERE is_default;
SELECT nexus.guard_tenant_rows('provider_accounts');

CREATE TABLE payment_methods (
    tenant_id         text NOT NULL,
    payment_method_id uuid NOT NULL,
    customer_id       uuid NOT NULL,
    provider          text NOT NULL,
    -- How the provider knows the method, and its customer; neither is of use to anyone else.
    provider_token    text NOT NULL,
    provider_customer text NOT NULL,
    brand             text NOT NULL,
    last_digits       text NOT NULL,
    expiry            text NOT NULL,
    removed           boolean NOT NULL DEFAULT false,
    scope             text NOT NULL,
    request_id        text NOT NULL,
    request_hash      bytea NOT NULL,
    create_time       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, payment_method_id),
    UNIQUE (tenant_id, scope, request_id),
    FOREIGN KEY (tenant_id, customer_id) REFERENCES customers
);
CREATE INDEX payment_methods_of_customer ON payment_methods (tenant_id, customer_id, payment_method_id);
SELECT nexus.guard_tenant_rows('payment_methods');

CREATE TABLE payments (
    tenant_id           text NOT NULL,
    payment_id          uuid NOT NULL,
    customer_id         uuid NOT NULL,
    payment_method_id   uuid NOT NULL,
    provider            text NOT NULL,
    provider_payment_id text NOT NULL DEFAULT '',
    state               text NOT NULL DEFAULT 'PENDING'
        CHECK (state IN ('PENDING', 'REQUIRES_ACTION', 'AUTHORIZED', 'CAPTURED', 'VOIDED', 'FAILED')),
    currency            text NOT NULL,
    amount              bigint NOT NULL CHECK (amount > 0),
    captured            bigint NOT NULL DEFAULT 0,
    refunded            bigint NOT NULL DEFAULT 0,
    disputed            bigint NOT NULL DEFAULT 0,
    reference           text NOT NULL,
    description         text NOT NULL,
    capture             boolean NOT NULL,
    off_session         boolean NOT NULL,
    -- The bill that it pays, if it does.
    bill_id             uuid,
    failure             text NOT NULL DEFAULT '',
    failure_reason      text NOT NULL DEFAULT '',
    action_url          text NOT NULL DEFAULT '',
    client_token        text NOT NULL DEFAULT '',
    create_time         timestamptz NOT NULL DEFAULT now(),
    update_time         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, payment_id),
    CHECK (captured BETWEEN 0 AND amount),
    CHECK (refunded BETWEEN 0 AND captured),
    CHECK ((failure = '') = (state <> 'FAILED')),
    FOREIGN KEY (tenant_id, customer_id) REFERENCES customers,
    FOREIGN KEY (tenant_id, payment_method_id) REFERENCES payment_methods
);
CREATE UNIQUE INDEX payments_at_provider ON payments (tenant_id, provider, provider_payment_id)
    WHERE provider_payment_id <> '';
CREATE INDEX payments_of_customer ON payments (tenant_id, customer_id, payment_id);
CREATE INDEX payments_waiting ON payments (update_time) WHERE state = 'REQUIRES_ACTION';
SELECT nexus.guard_tenant_rows('payments');

-- What is asked of a provider, committed before it is asked: nothing that moves money happens without a row here.
CREATE TABLE payment_operations (
    tenant_id             text NOT NULL,
    operation_id          uuid NOT NULL,
    payment_id            uuid NOT NULL,
    kind                  text NOT NULL CHECK (kind IN ('AUTHORIZE', 'CAPTURE', 'VOID', 'REFUND')),
    state                 text NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'SUCCEEDED', 'FAILED')),
    amount                bigint NOT NULL,
    keep_rest             boolean NOT NULL DEFAULT false,
    reason                text NOT NULL DEFAULT '',
    -- Who asked, with which key and for what; NULL for what a provider did by itself.
    scope                 text,
    request_id            text,
    request_hash          bytea,
    provider_operation_id text NOT NULL DEFAULT '',
    failure               text NOT NULL DEFAULT '',
    failure_reason        text NOT NULL DEFAULT '',
    attempts              integer NOT NULL DEFAULT 0,
    -- One process asks at a time; after a crash another may when the lease is over.
    lease_until           timestamptz NOT NULL DEFAULT '-infinity',
    next_attempt_time     timestamptz NOT NULL DEFAULT now(),
    create_time           timestamptz NOT NULL DEFAULT now(),
    settle_time           timestamptz,
    PRIMARY KEY (tenant_id, operation_id),
    UNIQUE (tenant_id, scope, request_id),
    CHECK ((state = 'PENDING') = (settle_time IS NULL)),
    FOREIGN KEY (tenant_id, payment_id) REFERENCES payments
);
CREATE INDEX payment_operations_of_payment ON payment_operations (tenant_id, payment_id, operation_id);
CREATE UNIQUE INDEX payment_operations_at_provider
    ON payment_operations (tenant_id, payment_id, kind, provider_operation_id) WHERE provider_operation_id <> '';
CREATE INDEX payment_operations_in_doubt ON payment_operations (next_attempt_time) WHERE state = 'PENDING';
SELECT nexus.guard_tenant_rows('payment_operations');

CREATE TABLE disputes (
    tenant_id           text NOT NULL,
    dispute_id          uuid NOT NULL,
    payment_id          uuid NOT NULL,
    provider_dispute_id text NOT NULL,
    state               text NOT NULL CHECK (state IN ('NEEDS_ANSWER', 'UNDER_REVIEW', 'WON', 'LOST')),
    amount              bigint NOT NULL,
    reason              text NOT NULL,
    answer_due_time     timestamptz,
    create_time         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, dispute_id),
    UNIQUE (tenant_id, payment_id, provider_dispute_id),
    FOREIGN KEY (tenant_id, payment_id) REFERENCES payments
);
SELECT nexus.guard_tenant_rows('disputes');

-- The notices of providers that have been worked off.
CREATE TABLE provider_notices (
    tenant_id   text NOT NULL,
    provider    text NOT NULL,
    notice_id   text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, provider, notice_id)
);
CREATE INDEX ON provider_notices (create_time);
SELECT nexus.guard_tenant_rows('provider_notices');

-- Money that moved stays written down.
REVOKE DELETE ON payments, payment_operations, disputes FROM nexus_billing_service;

-- The sandbox provider's own books. It stands for something outside: nothing else reads or writes them.
CREATE TABLE sandbox_charges (
    tenant_id   text NOT NULL,
    charge_id   text NOT NULL,
    token       text NOT NULL,
    currency    text NOT NULL,
    amount      bigint NOT NULL,
    state       text NOT NULL CHECK (state IN ('requires_action', 'authorized', 'captured', 'voided', 'declined')),
    failure     text NOT NULL DEFAULT '',
    capture     boolean NOT NULL,
    dispute     text NOT NULL DEFAULT '' CHECK (dispute IN ('', 'needs_answer', 'won', 'lost')),
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, charge_id)
);
SELECT nexus.guard_tenant_rows('sandbox_charges');

-- What the sandbox was asked, by idempotency key.
CREATE TABLE sandbox_requests (
    tenant_id   text NOT NULL,
    key         text NOT NULL,
    charge_id   text NOT NULL,
    kind        text NOT NULL,
    amount      bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, key)
);
CREATE INDEX sandbox_requests_of_charge ON sandbox_requests (tenant_id, charge_id);
SELECT nexus.guard_tenant_rows('sandbox_requests');

-- How often a customer's card was used, for those that change their mind.
CREATE TABLE sandbox_uses (
    tenant_id text NOT NULL,
    customer  text NOT NULL,
    token     text NOT NULL,
    uses      integer NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, customer, token)
);
SELECT nexus.guard_tenant_rows('sandbox_uses');
