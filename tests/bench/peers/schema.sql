-- The peers' tables, beside the platform's in the same PostgreSQL: one of the work, one for events, one for keys.
DROP SCHEMA IF EXISTS bench_peer CASCADE;
CREATE SCHEMA bench_peer;
CREATE TABLE bench_peer.clients (LIKE auth_service_v2.clients INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
ALTER TABLE bench_peer.clients ALTER COLUMN tenant_id DROP DEFAULT, ADD PRIMARY KEY (client_id);
CREATE INDEX ON bench_peer.clients (tenant_id, client_id);
INSERT INTO bench_peer.clients SELECT * FROM auth_service_v2.clients;
CREATE TABLE bench_peer.events (
    event_id    uuid PRIMARY KEY,
    tenant_id   text NOT NULL,
    sequence    bigint GENERATED ALWAYS AS IDENTITY,
    type        text NOT NULL,
    aggregate   text NOT NULL,
    payload     jsonb NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE bench_peer.idempotency_keys (
    tenant_id    text NOT NULL,
    scope        text NOT NULL,
    key          text NOT NULL,
    request_hash bytea NOT NULL,
    response     text,
    create_time  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, scope, key)
);
