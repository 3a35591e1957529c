CREATE TABLE private_keys (
    tenant_id        text NOT NULL,
    key_id           uuid NOT NULL,
    label            text NOT NULL,
    curve            text NOT NULL CHECK (curve IN ('ED25519', 'P256', 'SECP256K1')),
    -- The root of a hierarchy: its secret is a seed, and it derives instead of signing.
    hd_root          boolean NOT NULL,
    -- The private key or seed, sealed under a data key of its own (services.chassis.fields).
    secret_sealed    bytea NOT NULL,
    public_key       bytea NOT NULL,
    ethereum_account text NOT NULL,
    root_key_id      uuid,
    path             text NOT NULL DEFAULT '',
    locked           boolean NOT NULL DEFAULT false,
    -- A SigningPolicy in protobuf's JSON.
    policy           jsonb NOT NULL,
    create_time      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key_id),
    UNIQUE (tenant_id, root_key_id, path),
    FOREIGN KEY (tenant_id, root_key_id) REFERENCES private_keys
);
SELECT nexus.guard_tenant_rows('private_keys');

CREATE TABLE signings (
    tenant_id    text NOT NULL,
    signing_id   uuid NOT NULL,
    key_id       uuid NOT NULL,
    state        text NOT NULL CHECK (state IN ('PENDING', 'SIGNED', 'REJECTED')),
    -- The SignRequest, to be signed when it has its approvals.
    request      bytea NOT NULL,
    payload      bytea NOT NULL,
    signature    bytea NOT NULL DEFAULT '',
    slot         text NOT NULL,
    destination  text NOT NULL,
    asset        text NOT NULL,
    amount       numeric(78) NOT NULL,
    requester_id uuid NOT NULL,
    request_id   text NOT NULL,
    create_time  timestamptz NOT NULL DEFAULT now(),
    sign_time    timestamptz,
    PRIMARY KEY (tenant_id, signing_id),
    UNIQUE (tenant_id, key_id, requester_id, request_id),
    CHECK ((state = 'SIGNED') = (sign_time IS NOT NULL)),
    FOREIGN KEY (tenant_id, key_id) REFERENCES private_keys
);
-- A slot is signed for one payload, whatever else goes wrong.
CREATE UNIQUE INDEX signings_slot ON signings (tenant_id, key_id, slot) WHERE slot <> '' AND state <> 'REJECTED';
CREATE INDEX signings_of_key ON signings (tenant_id, key_id, signing_id);
CREATE INDEX signings_limits ON signings (tenant_id, key_id, sign_time) WHERE state = 'SIGNED';
SELECT nexus.guard_tenant_rows('signings');

CREATE TABLE approvals (
    tenant_id   text NOT NULL,
    signing_id  uuid NOT NULL,
    user_id     uuid NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, signing_id, user_id),
    FOREIGN KEY (tenant_id, signing_id) REFERENCES signings
);
SELECT nexus.guard_tenant_rows('approvals');

-- What was done with each key, and by whom.
CREATE TABLE key_events (
    tenant_id   text NOT NULL,
    event_id    uuid NOT NULL,
    key_id      uuid NOT NULL,
    action      text NOT NULL,
    user_id     uuid NOT NULL,
    request_id  text NOT NULL,
    signing_id  uuid,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key_id, event_id)
);
SELECT nexus.guard_tenant_rows('key_events');

-- What has happened stays: keys, signings and events are never taken away, and events never change.
REVOKE DELETE ON private_keys, signings, approvals FROM nexus_pv_keys;
REVOKE UPDATE, DELETE ON key_events FROM nexus_pv_keys;
REVOKE UPDATE ON key_events FROM nexus_pv_keys_platform;  -- which deletes, when a tenant is erased
