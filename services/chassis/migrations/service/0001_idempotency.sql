-- The stored answers of calls that happen once for each key.
CREATE TABLE idempotency_keys (
    tenant_id    text NOT NULL,
    -- The method, and the user it was called by.
    scope        text NOT NULL,
    key          text NOT NULL,
    request_hash bytea NOT NULL,
    -- Sealed; NULL only inside the transaction that is working on the answer.
    response     bytea,
    create_time  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, scope, key)
);
CREATE INDEX ON idempotency_keys (create_time);
SELECT nexus.guard_tenant_rows('idempotency_keys');
