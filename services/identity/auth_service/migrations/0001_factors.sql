-- The authenticator app of a user (RFC 6238).
CREATE TABLE totp_factors (
    tenant_id     text NOT NULL,
    user_id       uuid PRIMARY KEY,
    -- Sealed with a key of the user's own; see services/chassis/fields.py.
    secret_sealed bytea NOT NULL,
    confirmed     boolean NOT NULL DEFAULT false,
    -- The time step of the last code that was taken: none up to it is taken again.
    last_step     bigint NOT NULL DEFAULT 0,
    create_time   timestamptz NOT NULL DEFAULT now()
);
SELECT nexus.guard_tenant_rows('totp_factors');

-- WebAuthn credentials.
CREATE TABLE passkeys (
    tenant_id      text NOT NULL,
    credential_id  bytea NOT NULL,
    user_id        uuid NOT NULL,
    -- COSE_Key (RFC 9052, section 7).
    public_key     bytea NOT NULL,
    sign_count     bigint NOT NULL,
    name           text NOT NULL,
    backed_up      boolean NOT NULL,
    create_time    timestamptz NOT NULL DEFAULT now(),
    last_used_time timestamptz,
    PRIMARY KEY (tenant_id, credential_id)
);
CREATE INDEX ON passkeys (user_id);
SELECT nexus.guard_tenant_rows('passkeys');

-- Codes that stand in for a lost factor: keyed hashes, each good for one use.
CREATE TABLE recovery_codes (
    tenant_id text NOT NULL,
    user_id   uuid NOT NULL,
    code_hash bytea NOT NULL,
    PRIMARY KEY (user_id, code_hash)
);
SELECT nexus.guard_tenant_rows('recovery_codes');

-- Wrong second factors, by user; see services/chassis/lockout.py.
CREATE TABLE lockouts (
    tenant_id text NOT NULL,
    subject   bytea NOT NULL,
    failures  integer NOT NULL DEFAULT 0,
    fail_time timestamptz NOT NULL DEFAULT now(),
    open_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, subject)
);
CREATE INDEX ON lockouts (fail_time);
SELECT nexus.guard_tenant_rows('lockouts');
