ALTER TABLE clients
    -- Public keys of a client that signs, as JSON.
    ADD COLUMN jwks text NOT NULL DEFAULT '',
    ADD COLUMN id_token_algorithm text NOT NULL DEFAULT 'ES256' CHECK (id_token_algorithm IN ('ES256', 'RS256')),
    -- Of the token by which a client that registered itself is managed.
    ADD COLUMN registration_hash bytea,
    DROP CONSTRAINT clients_authentication_check,
    DROP CONSTRAINT clients_check,
    ADD CHECK (authentication IN ('client_secret_basic', 'client_secret_post', 'private_key_jwt', 'none')),
    ADD CHECK ((secret_hash IS NOT NULL) = (authentication IN ('client_secret_basic', 'client_secret_post'))),
    ADD CHECK ((jwks <> '') = (authentication = 'private_key_jwt'));

-- The ids of client assertions that have been used, until they would have expired.
CREATE TABLE spent_assertions (
    tenant_id   text NOT NULL,
    client_id   uuid NOT NULL REFERENCES clients ON DELETE CASCADE,
    jti_hash    bytea NOT NULL,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, client_id, jti_hash)
);
CREATE INDEX ON spent_assertions (client_id);
CREATE INDEX ON spent_assertions (expire_time);
SELECT nexus.guard_tenant_rows('spent_assertions');

-- Whose an identity at a provider is, user-auth knows.
DROP TABLE identities;
