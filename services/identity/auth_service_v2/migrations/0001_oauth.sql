CREATE TABLE clients (
    tenant_id                 text NOT NULL,
    client_id                 uuid PRIMARY KEY,
    client_name               text NOT NULL,
    authentication            text NOT NULL
        CHECK (authentication IN ('client_secret_basic', 'client_secret_post', 'none')),
    secret_hash               bytea CHECK ((secret_hash IS NULL) = (authentication = 'none')),
    redirect_uris             text[] NOT NULL,
    post_logout_redirect_uris text[] NOT NULL,
    grant_types               text[] NOT NULL,
    scopes                    text[] NOT NULL,
    audiences                 text[] NOT NULL,
    first_party               boolean NOT NULL,
    create_time               timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON clients (tenant_id, client_id);
SELECT nexus.guard_tenant_rows('clients');

-- Tokens with which clients may be registered by those who write them.
CREATE TABLE registration_tokens (
    tenant_id      text NOT NULL,
    token_hash     bytea PRIMARY KEY,
    remaining_uses integer NOT NULL CHECK (remaining_uses >= 0),
    expire_time    timestamptz NOT NULL
);
CREATE INDEX ON registration_tokens (expire_time);
SELECT nexus.guard_tenant_rows('registration_tokens');

CREATE TABLE consents (
    tenant_id  text NOT NULL,
    user_id    uuid NOT NULL,
    client_id  uuid NOT NULL REFERENCES clients ON DELETE CASCADE,
    scopes     text[] NOT NULL,
    grant_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, user_id, client_id)
);
CREATE INDEX ON consents (client_id);
SELECT nexus.guard_tenant_rows('consents');

-- Authorization codes are sealed, not stored; here are those that have been used, until they would have expired.
CREATE TABLE spent_codes (
    tenant_id   text NOT NULL,
    code_id     uuid PRIMARY KEY,
    expire_time timestamptz NOT NULL
);
CREATE INDEX ON spent_codes (expire_time);
SELECT nexus.guard_tenant_rows('spent_codes');

CREATE TABLE device_codes (
    tenant_id   text NOT NULL,
    device_hash bytea PRIMARY KEY,
    -- What the user types, without its hyphen.
    user_code   text NOT NULL,
    -- The grant that it becomes.
    grant_id    uuid NOT NULL,
    client_id   uuid NOT NULL REFERENCES clients ON DELETE CASCADE,
    scope       text NOT NULL,
    state       text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'approved', 'denied', 'redeemed')),
    user_id     uuid,
    session_id  uuid,
    auth_time   timestamptz,
    -- The earliest moment at which the device may ask again, and the seconds it has to wait each time.
    poll_time   timestamptz NOT NULL,
    poll_seconds integer NOT NULL,
    expire_time timestamptz NOT NULL,
    UNIQUE (tenant_id, user_code)
);
CREATE INDEX ON device_codes (client_id);
CREATE INDEX ON device_codes (expire_time);
SELECT nexus.guard_tenant_rows('device_codes');

CREATE TABLE providers (
    tenant_id     text NOT NULL,
    provider_id   text NOT NULL,
    title         text NOT NULL,
    issuer        text NOT NULL,
    client_id     text NOT NULL,
    -- Sealed; null for a public client.
    client_secret bytea,
    scopes        text[] NOT NULL,
    create_time   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, provider_id)
);
SELECT nexus.guard_tenant_rows('providers');

-- Whose an identity at an upstream provider is.
CREATE TABLE identities (
    tenant_id   text NOT NULL,
    provider_id text NOT NULL,
    -- The provider's name for the user: its claim `sub`.
    subject     text NOT NULL,
    user_id     uuid NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, provider_id, subject),
    FOREIGN KEY (tenant_id, provider_id) REFERENCES providers ON DELETE CASCADE
);
SELECT nexus.guard_tenant_rows('identities');
