ALTER TABLE users
    -- Without one the user signs in by other means, or sets one by recovery.
    ALTER COLUMN password_hash DROP NOT NULL,
    ADD COLUMN state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'disabled')),
    -- Changes whenever everybody signed in as the user must sign in again.
    ADD COLUMN credentials_version bigint NOT NULL DEFAULT 1,
    -- Changes whenever what is shown of the user does.
    ADD COLUMN version bigint NOT NULL DEFAULT 1,
    ADD COLUMN update_time timestamptz NOT NULL DEFAULT now();
CREATE INDEX users_in_order ON users (tenant_id, user_id);
CREATE INDEX users_by_prefix ON users (tenant_id, email_key text_pattern_ops);
CREATE INDEX users_by_role ON users USING gin (roles);

-- What a code is good for: `verify` an address, or `recover` the account.
ALTER TABLE verification_codes ADD COLUMN purpose text NOT NULL DEFAULT 'verify'
    CHECK (purpose IN ('verify', 'recover'));

-- Mails that somebody asked for by address. Written for known and unknown addresses alike, and looked into later,
-- so that the asking takes equally long.
CREATE TABLE mail_requests (
    tenant_id   text NOT NULL,
    request_id  uuid PRIMARY KEY,
    email_key   text NOT NULL,
    purpose     text NOT NULL CHECK (purpose IN ('verify', 'recover')),
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON mail_requests (create_time);
SELECT nexus.guard_tenant_rows('mail_requests');

CREATE TABLE roles (
    tenant_id   text NOT NULL,
    name        text NOT NULL,
    description text NOT NULL,
    allow       text[] NOT NULL,
    deny        text[] NOT NULL,
    version     bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (tenant_id, name)
);
SELECT nexus.guard_tenant_rows('roles');

-- Identities at upstream OpenID providers.
CREATE TABLE identities (
    tenant_id   text NOT NULL,
    identity_id uuid PRIMARY KEY,
    user_id     uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    issuer      text NOT NULL,
    subject     text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT identities_subject UNIQUE (tenant_id, issuer, subject)
);
CREATE INDEX ON identities (user_id);
SELECT nexus.guard_tenant_rows('identities');

CREATE TABLE password_policies (
    tenant_id    text PRIMARY KEY,
    min_length   integer NOT NULL,
    min_strength integer NOT NULL
);
SELECT nexus.guard_tenant_rows('password_policies');

-- Wrong passwords, by keyed hash of the address, known or not; see services/chassis/lockout.py.
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
