-- API keys: of the secret only a hash, found by the part of it that may be seen.
CREATE TABLE api_keys (
    tenant_id      text NOT NULL,
    key_id         uuid PRIMARY KEY,
    prefix         text NOT NULL UNIQUE,
    secret_hash    bytea NOT NULL,
    title          text NOT NULL,
    user_id        uuid NOT NULL,
    scopes         text[] NOT NULL,
    rate           text NOT NULL CHECK (rate IN ('low', 'standard', 'high')),
    create_time    timestamptz NOT NULL DEFAULT now(),
    expire_time    timestamptz,
    last_used_time timestamptz,
    revoke_time    timestamptz
);
CREATE INDEX ON api_keys (tenant_id, key_id DESC);
SELECT nexus.guard_tenant_rows('api_keys');
