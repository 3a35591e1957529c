-- What is sold, who subscribes to it, what they use and what they owe.

CREATE TABLE plans (
    tenant_id   text NOT NULL,
    plan_id     uuid NOT NULL,
    key         text NOT NULL,
    name        text NOT NULL,
    description text NOT NULL,
    -- A list of Feature messages in protobuf's JSON.
    features    jsonb NOT NULL,
    archived    boolean NOT NULL DEFAULT false,
    etag        uuid NOT NULL DEFAULT gen_random_uuid(),
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, plan_id),
    UNIQUE (tenant_id, key)
);
SELECT nexus.guard_tenant_rows('plans');

CREATE TABLE prices (
    tenant_id      text NOT NULL,
    price_id       uuid NOT NULL,
    plan_id        uuid NOT NULL,
    currency       text NOT NULL,
    fee            bigint NOT NULL CHECK (fee >= 0),
    interval_unit  text NOT NULL CHECK (interval_unit IN ('DAY', 'WEEK', 'MONTH', 'YEAR')),
    interval_count integer NOT NULL CHECK (interval_count > 0),
    trial_days     integer NOT NULL,
    -- A list of UsagePrice messages in protobuf's JSON.
    usage_prices   jsonb NOT NULL,
    archived       boolean NOT NULL DEFAULT false,
    create_time    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, price_id),
    FOREIGN KEY (tenant_id, plan_id) REFERENCES plans
);
CREATE INDEX prices_of_plan ON prices (tenant_id, plan_id);
SELECT nexus.guard_tenant_rows('prices');

CREATE TABLE coupons (
    tenant_id       text NOT NULL,
    coupon_id       uuid NOT NULL,
    code            text NOT NULL,
    name            text NOT NULL,
    basis_points    integer NOT NULL DEFAULT 0,
    currency        text NOT NULL DEFAULT '',
    amount          bigint NOT NULL DEFAULT 0,
    bills           integer NOT NULL,
    redeem_until    timestamptz,
    max_redemptions integer NOT NULL,
    redemptions     integer NOT NULL DEFAULT 0,
    archived        boolean NOT NULL DEFAULT false,
    create_time     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, coupon_id),
    UNIQUE (tenant_id, code),
    CHECK (max_redemptions = 0 OR redemptions <= max_redemptions)
);
SELECT nexus.guard_tenant_rows('coupons');

CREATE TABLE meters (
    tenant_id      text NOT NULL,
    key            text NOT NULL,
    event_name     text NOT NULL,
    aggregation    text NOT NULL CHECK (aggregation IN ('COUNT', 'SUM', 'MAX', 'UNIQUE_COUNT', 'LATEST')),
    value_property text NOT NULL,
    unit           text NOT NULL,
    create_time    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key)
);
SELECT nexus.guard_tenant_rows('meters');

CREATE TABLE usage_events (
    tenant_id   text NOT NULL,
    source      text NOT NULL,
    event_id    text NOT NULL,
    name        text NOT NULL,
    customer_id uuid NOT NULL,
    event_time  timestamptz NOT NULL,
    -- The time by which it is billed: its own, or the end of what had been billed when it came.
    count_time  timestamptz NOT NULL,
    value       numeric NOT NULL,
    properties  jsonb NOT NULL,
    PRIMARY KEY (tenant_id, source, event_id)
);
CREATE INDEX usage_events_counted ON usage_events (tenant_id, customer_id, name, count_time);
SELECT nexus.guard_tenant_rows('usage_events');

CREATE TABLE subscriptions (
    tenant_id            text NOT NULL,
    subscription_id      uuid NOT NULL,
    customer_id          uuid NOT NULL,
    plan_id              uuid NOT NULL,
    price_id             uuid NOT NULL,
    quantity             bigint NOT NULL CHECK (quantity > 0),
    state                text NOT NULL CHECK (state IN ('INCOMPLETE', 'TRIALING', 'ACTIVE', 'PAST_DUE', 'CANCELED')),
    -- Periods are counted from the anchor, so that the 31st comes back after February.
    anchor_time          timestamptz NOT NULL,
    period_index         integer NOT NULL,
    period_start         timestamptz NOT NULL,
    period_end           timestamptz NOT NULL,
    -- What the whole current period costs at the terms that were charged last: what a proration gives back from.
    period_fee           bigint NOT NULL,
    cancel_at_period_end boolean NOT NULL DEFAULT false,
    cancel_time          timestamptz,
    coupon_id            uuid,
    -- Bills that the coupon is still good for; NULL for all.
    coupon_bills_left    integer,
    payment_method_id    uuid,
    scope                text NOT NULL,
    request_id           text NOT NULL,
    request_hash         bytea NOT NULL,
    create_time          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, subscription_id),
    UNIQUE (tenant_id, scope, request_id),
    CHECK (period_start < period_end),
    FOREIGN KEY (tenant_id, price_id) REFERENCES prices,
    FOREIGN KEY (tenant_id, customer_id) REFERENCES customers,
    FOREIGN KEY (tenant_id, coupon_id) REFERENCES coupons
);
CREATE INDEX subscriptions_of_customer ON subscriptions (tenant_id, customer_id, subscription_id);
CREATE INDEX subscriptions_due ON subscriptions (tenant_id, period_end) WHERE state <> 'CANCELED';
SELECT nexus.guard_tenant_rows('subscriptions');

CREATE TABLE bills (
    tenant_id         text NOT NULL,
    bill_id           uuid NOT NULL,
    subscription_id   uuid NOT NULL,
    customer_id       uuid NOT NULL,
    -- The period whose fee is on it; a period is billed once, whatever else goes wrong.
    cycle_start       timestamptz,
    state             text NOT NULL CHECK (state IN ('OPEN', 'PAID', 'PAST_DUE', 'UNCOLLECTIBLE')),
    currency          text NOT NULL,
    total             bigint NOT NULL CHECK (total >= 0),
    attempts          integer NOT NULL DEFAULT 0,
    next_attempt_time timestamptz,
    -- When the latest attempt was made.
    attempt_time      timestamptz,
    payment_id        uuid,
    invoice_id        text NOT NULL DEFAULT '',
    create_time       timestamptz NOT NULL DEFAULT now(),
    pay_time          timestamptz,
    PRIMARY KEY (tenant_id, bill_id),
    UNIQUE (tenant_id, subscription_id, cycle_start),
    FOREIGN KEY (tenant_id, subscription_id) REFERENCES subscriptions
);
CREATE INDEX bills_of_customer ON bills (tenant_id, customer_id, bill_id);
CREATE INDEX bills_of_subscription ON bills (tenant_id, subscription_id, bill_id);
CREATE INDEX bills_to_collect ON bills (tenant_id, next_attempt_time) WHERE state IN ('OPEN', 'PAST_DUE');
SELECT nexus.guard_tenant_rows('bills');

CREATE TABLE bill_lines (
    tenant_id       text NOT NULL,
    line_id         uuid NOT NULL,
    subscription_id uuid NOT NULL,
    -- NULL while it waits for the next bill.
    bill_id         uuid,
    kind            text NOT NULL
        CHECK (kind IN ('FEE', 'PRORATION_CREDIT', 'PRORATION_CHARGE', 'USAGE', 'DISCOUNT', 'CREDIT')),
    description     text NOT NULL,
    price_id        uuid,
    quantity        numeric NOT NULL,
    amount          bigint NOT NULL,
    start_time      timestamptz NOT NULL,
    end_time        timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, line_id),
    FOREIGN KEY (tenant_id, bill_id) REFERENCES bills,
    FOREIGN KEY (tenant_id, subscription_id) REFERENCES subscriptions
);
CREATE INDEX bill_lines_of_bill ON bill_lines (tenant_id, bill_id, line_id);
CREATE INDEX bill_lines_waiting ON bill_lines (tenant_id, subscription_id, line_id) WHERE bill_id IS NULL;
SELECT nexus.guard_tenant_rows('bill_lines');

-- What the tenant owes customers: put there by bills below nothing, used up by later ones.
CREATE TABLE credit_entries (
    tenant_id   text NOT NULL,
    entry_id    uuid NOT NULL,
    customer_id uuid NOT NULL,
    currency    text NOT NULL,
    amount      bigint NOT NULL CHECK (amount <> 0),
    bill_id     uuid NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, entry_id),
    FOREIGN KEY (tenant_id, bill_id) REFERENCES bills
);
CREATE INDEX credit_entries_of_customer ON credit_entries (tenant_id, customer_id, currency);
SELECT nexus.guard_tenant_rows('credit_entries');

CREATE TABLE dunning_policies (
    tenant_id         text NOT NULL PRIMARY KEY,
    retry_after_hours integer[] NOT NULL,
    outcome           text NOT NULL CHECK (outcome IN ('CANCEL', 'KEEP'))
);
SELECT nexus.guard_tenant_rows('dunning_policies');

REVOKE DELETE ON bills, bill_lines, credit_entries, usage_events FROM nexus_billing_service;
REVOKE UPDATE ON credit_entries, usage_events FROM nexus_billing_service;
