CREATE TABLE carts (
    tenant_id        text NOT NULL,
    cart_id          uuid PRIMARY KEY,
    -- NULL for a guest's.
    customer_id      uuid,
    channel          text NOT NULL,
    currency         text NOT NULL,
    -- [[variant, quantity], …] in the order in which they were put in.
    lines            jsonb NOT NULL DEFAULT '[]',
    shipping_address text,
    billing_address  text,
    -- The ways of delivery that were offered for the cart as it is, the parcels they are for, and the one chosen.
    offers           jsonb NOT NULL DEFAULT '[]',
    parcels          jsonb NOT NULL DEFAULT '[]',
    delivery         jsonb,
    -- The order that is being made of it.
    order_id         uuid,
    version          bigint NOT NULL DEFAULT 1,
    create_time      timestamptz NOT NULL DEFAULT clock_timestamp(),
    update_time      timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX carts_of_customers ON carts (tenant_id, customer_id, channel, currency)
    WHERE customer_id IS NOT NULL;
CREATE INDEX carts_by_age ON carts (update_time);
CREATE INDEX carts_by_tenant ON carts (tenant_id);
SELECT nexus.guard_tenant_rows('carts');

-- What the events of an order amount to, written with each of them.
CREATE TABLE orders (
    tenant_id        text NOT NULL,
    order_id         uuid PRIMARY KEY,
    customer_id      uuid NOT NULL,
    request_id       text NOT NULL,
    request_hash     bytea NOT NULL,
    version          integer NOT NULL,
    state            text NOT NULL,
    currency         text NOT NULL,
    captured         bigint NOT NULL DEFAULT 0,
    refunded         bigint NOT NULL DEFAULT 0,
    folded           jsonb NOT NULL,
    -- Not in the events, for those stay when a customer is erased.
    shipping_address text,
    billing_address  text,
    create_time      timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_time         timestamptz,
    lease_until      timestamptz,
    attempts         integer NOT NULL DEFAULT 0,
    attention        text NOT NULL DEFAULT '',
    CONSTRAINT one_order_a_request UNIQUE (tenant_id, customer_id, request_id),
    CONSTRAINT refunded_at_most_what_was_captured CHECK (refunded BETWEEN 0 AND captured)
);
CREATE INDEX orders_newest ON orders (tenant_id, order_id);
CREATE INDEX orders_of_customer ON orders (tenant_id, customer_id, order_id);
CREATE INDEX orders_by_state ON orders (tenant_id, state, order_id);
CREATE INDEX orders_with_attention ON orders (tenant_id, order_id) WHERE attention <> '';
CREATE INDEX orders_by_time ON orders (tenant_id, create_time);
CREATE INDEX orders_due ON orders (due_time) WHERE due_time IS NOT NULL;
SELECT nexus.guard_tenant_rows('orders');

-- What happened to an order. Written once, never changed.
CREATE TABLE order_events (
    tenant_id   text NOT NULL,
    order_id    uuid NOT NULL,
    version     integer NOT NULL CHECK (version > 0),
    kind        text NOT NULL,
    data        jsonb NOT NULL,
    actor       text NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (order_id, version)
);
CREATE INDEX order_events_by_tenant ON order_events (tenant_id, order_id, version);
SELECT nexus.guard_tenant_rows('order_events');

CREATE FUNCTION order_events_are_facts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND nexus.is_erased(OLD.tenant_id) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'order events are append-only';
END
$$;
CREATE TRIGGER order_events_are_facts BEFORE UPDATE OR DELETE ON order_events
    FOR EACH ROW EXECUTE FUNCTION order_events_are_facts();

CREATE TABLE shop_settings (
    tenant_id text PRIMARY KEY,
    settings  text NOT NULL,
    version   bigint NOT NULL DEFAULT 1
);
SELECT nexus.guard_tenant_rows('shop_settings');
