-- The record of every session; Redis holds a copy of the live ones.
CREATE TABLE sessions (
    tenant_id      text NOT NULL,
    session_id     uuid PRIMARY KEY,
    token_hash     bytea NOT NULL UNIQUE,
    user_id        uuid NOT NULL,
    user_agent     text NOT NULL,
    ip_address     text NOT NULL,
    create_time    timestamptz NOT NULL DEFAULT now(),
    last_used_time timestamptz NOT NULL DEFAULT now(),
    -- When it ends by itself, however much it is used.
    expire_time    timestamptz NOT NULL,
    -- When it was ended.
    end_time       timestamptz
);
CREATE INDEX sessions_live ON sessions (tenant_id, user_id) WHERE end_time IS NULL;
CREATE INDEX ON sessions (expire_time);
SELECT nexus.guard_tenant_rows('sessions');
