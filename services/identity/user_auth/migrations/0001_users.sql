CREATE TABLE users (
    tenant_id      text NOT NULL,
    user_id        uuid PRIMARY KEY,
    email          text NOT NULL,
    -- The address as it is compared: normalised and in lower case.
    email_key      text NOT NULL,
    display_name   text NOT NULL,
    password_hash  text NOT NULL,
    email_verified boolean NOT NULL DEFAULT false,
    roles          text[] NOT NULL DEFAULT '{}',
    create_time    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT users_email_key UNIQUE (tenant_id, email_key)
);
SELECT nexus.guard_tenant_rows('users');

-- Codes mailed to verify an address: only their hash, each good for one use.
CREATE TABLE verification_codes (
    tenant_id   text NOT NULL,
    code_hash   bytea PRIMARY KEY,
    user_id     uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    expire_time timestamptz NOT NULL
);
CREATE INDEX ON verification_codes (user_id);
CREATE INDEX ON verification_codes (expire_time);
SELECT nexus.guard_tenant_rows('verification_codes');
