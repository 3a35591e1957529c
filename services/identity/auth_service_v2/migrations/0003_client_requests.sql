-- Which client a keyed request made: its answer held the client's secret, which is kept nowhere to answer with again.
CREATE TABLE client_requests (
    tenant_id    text NOT NULL,
    -- Of the key and of who gave it.
    key_hash     bytea NOT NULL,
    request_hash bytea NOT NULL,
    client_id    uuid NOT NULL,
    expire_time  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, key_hash)
);
CREATE INDEX ON client_requests (expire_time);
SELECT nexus.guard_tenant_rows('client_requests');
