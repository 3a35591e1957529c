-- What this service has told the others, and what it has heard.

-- Every event, in the transaction that made it true. Append-only: it is the audit trail too. The relay gives each
-- its place in the tenant's chain of hashes and sends it to the broker.
CREATE TABLE events (
    tenant_id   text NOT NULL,
    event_id    uuid PRIMARY KEY,
    -- The order in which they were written; the order in which the events of one aggregate are sent.
    sequence    bigint GENERATED ALWAYS AS IDENTITY,
    -- The full name of its message.
    type        text NOT NULL,
    aggregate   text NOT NULL,
    payload     bytea NOT NULL,
    -- Who caused it: a user id, or the id of the calling service.
    actor       text NOT NULL,
    request_id  text NOT NULL,
    create_time timestamptz NOT NULL,
    -- Set once, by the relay.
    position    bigint,
    hash        bytea
);
CREATE INDEX events_unsent ON events (sequence) WHERE position IS NULL;
CREATE UNIQUE INDEX events_chain ON events (tenant_id, position) WHERE position IS NOT NULL;
CREATE INDEX events_aggregate ON events (tenant_id, aggregate, sequence);
SELECT nexus.guard_tenant_rows('events');

-- An event is never changed or taken away, not even by its own service: only its place in the chain is added.
CREATE FUNCTION events_are_facts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.position IS NULL AND to_jsonb(NEW) - 'position' - 'hash' = to_jsonb(OLD) - 'position' - 'hash'
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'events are append-only';
END
$$;
CREATE TRIGGER events_are_facts BEFORE UPDATE OR DELETE ON events FOR EACH ROW EXECUTE FUNCTION events_are_facts();

-- The events this service has handled; written in the transaction of the handler.
CREATE TABLE handled_events (
    tenant_id   text NOT NULL,
    event_id    uuid NOT NULL,
    handle_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, event_id)
);
CREATE INDEX ON handled_events (handle_time);
SELECT nexus.guard_tenant_rows('handled_events');

-- Events whose handler failed every time, put aside so that those behind them can go on.
CREATE TABLE dead_letters (
    tenant_id   text NOT NULL,
    event_id    uuid NOT NULL,
    type        text NOT NULL,
    aggregate   text NOT NULL,
    envelope    bytea NOT NULL,
    error       text NOT NULL,
    attempts    integer NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, event_id)
);
SELECT nexus.guard_tenant_rows('dead_letters');
