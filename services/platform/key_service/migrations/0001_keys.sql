-- The keys of a tenant. Material is in key_versions.
CREATE TABLE keys (
    tenant_id          text NOT NULL,
    key_id             uuid NOT NULL,
    -- The service it belongs to; '' for a key of the tenant's people.
    owner              text NOT NULL,
    name               text NOT NULL,
    -- The person or thing it is about and is destroyed with; '' for none.
    subject            text NOT NULL DEFAULT '',
    algorithm          text NOT NULL CHECK (algorithm IN ('AES_256_GCM', 'ES256', 'ED25519', 'HMAC_SHA256')),
    state              text NOT NULL DEFAULT 'enabled'
                       CHECK (state IN ('enabled', 'disabled', 'destroying', 'destroyed')),
    primary_version    integer NOT NULL DEFAULT 1,
    minimum_version    integer NOT NULL DEFAULT 1 CHECK (minimum_version BETWEEN 1 AND primary_version),
    rotation_period    interval,
    next_rotation_time timestamptz,
    create_time        timestamptz NOT NULL DEFAULT now(),
    -- When its material goes, or went.
    destroy_time       timestamptz CHECK ((destroy_time IS NOT NULL) = (state IN ('destroying', 'destroyed'))),
    PRIMARY KEY (tenant_id, key_id)
);
-- The name of a destroyed key can be given again.
CREATE UNIQUE INDEX keys_name ON keys (tenant_id, owner, name, subject) WHERE state <> 'destroyed';
CREATE INDEX keys_of_subject ON keys (tenant_id, subject) WHERE subject <> '' AND state <> 'destroyed';
CREATE INDEX keys_listed ON keys (tenant_id, key_id) WHERE subject = '';
CREATE INDEX keys_to_rotate ON keys (next_rotation_time) WHERE state = 'enabled';
CREATE INDEX keys_to_destroy ON keys (destroy_time) WHERE state = 'destroying';
SELECT nexus.guard_tenant_rows('keys');

CREATE TABLE key_versions (
    tenant_id   text NOT NULL,
    key_id      uuid NOT NULL,
    version     integer NOT NULL,
    -- What wrapped it: 'local', or the version of Vault's key, as 'vault:v3'.
    root        text NOT NULL,
    -- The material, wrapped by the root; NULL once destroyed.
    wrapped     bytea,
    -- SubjectPublicKeyInfo, for keys that sign.
    public_key  bytea,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key_id, version),
    FOREIGN KEY (tenant_id, key_id) REFERENCES keys
);
CREATE INDEX key_versions_root ON key_versions (root) WHERE wrapped IS NOT NULL;
SELECT nexus.guard_tenant_rows('key_versions');

-- The ciphertexts that are out in the world and have not been rewrapped: what a version is still needed for.
CREATE TABLE ciphertexts (
    tenant_id text NOT NULL,
    key_id    uuid NOT NULL,
    version   integer NOT NULL,
    nonce     bytea NOT NULL,
    PRIMARY KEY (tenant_id, key_id, version, nonce),
    FOREIGN KEY (tenant_id, key_id) REFERENCES keys
);
SELECT nexus.guard_tenant_rows('ciphertexts');

-- Who used which key for what. Written once; only the platform's clean-up takes old rows away.
CREATE TABLE key_uses (
    tenant_id   text NOT NULL,
    use_id      uuid NOT NULL,
    key_id      uuid NOT NULL,
    version     integer NOT NULL,
    operation   text NOT NULL,
    caller      text NOT NULL,
    user_id     text NOT NULL,
    request_id  text NOT NULL,
    context     jsonb NOT NULL,
    succeeded   boolean NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key_id, use_id)
);
CREATE INDEX ON key_uses (create_time);
SELECT nexus.guard_tenant_rows('key_uses');
REVOKE UPDATE, DELETE ON key_uses FROM nexus_key_service;
REVOKE UPDATE ON key_uses FROM nexus_key_service_platform;

-- Subjects that have keys. A shredded one never gets a key again.
CREATE TABLE subjects (
    tenant_id  text NOT NULL,
    subject    text NOT NULL,
    shred_time timestamptz,
    PRIMARY KEY (tenant_id, subject)
);
SELECT nexus.guard_tenant_rows('subjects');
