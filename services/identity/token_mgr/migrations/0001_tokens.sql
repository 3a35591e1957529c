-- The keys that sign access tokens. They belong to the platform, not to a tenant.
CREATE TABLE signing_keys (
    kid            text PRIMARY KEY,
    -- next: published, will sign after the next rotation; current: signs; former: verifies what it signed.
    state          text NOT NULL CHECK (state IN ('next', 'current', 'former')),
    public_jwk     text NOT NULL,
    -- The private key, sealed.
    private_sealed bytea NOT NULL,
    create_time    timestamptz NOT NULL DEFAULT now(),
    retire_time    timestamptz
);
CREATE UNIQUE INDEX signing_keys_one ON signing_keys (state) WHERE state IN ('next', 'current');

-- All refresh tokens that descend from one sign-in.
CREATE TABLE token_families (
    tenant_id      text NOT NULL,
    session_id     uuid PRIMARY KEY,
    user_id        uuid NOT NULL,
    expire_time    timestamptz NOT NULL,
    revoke_time    timestamptz
);
CREATE INDEX ON token_families (expire_time);
SELECT nexus.guard_tenant_rows('token_families');

CREATE TABLE refresh_tokens (
    tenant_id   text NOT NULL,
    token_hash  bytea PRIMARY KEY,
    session_id  uuid NOT NULL REFERENCES token_families ON DELETE CASCADE,
    expire_time timestamptz NOT NULL,
    -- When it was first exchanged.
    spend_time  timestamptz
);
CREATE INDEX ON refresh_tokens (session_id);
SELECT nexus.guard_tenant_rows('refresh_tokens');
