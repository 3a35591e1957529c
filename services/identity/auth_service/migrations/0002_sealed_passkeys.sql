-- Public keys of passkeys are sealed from now on, with a key of the user's own. A migration has no keys: a job of the
-- service seals the rows that there are.
ALTER TABLE passkeys
    ALTER COLUMN public_key DROP NOT NULL,
    ADD COLUMN public_key_sealed bytea,
    ADD CONSTRAINT passkeys_sealed CHECK (num_nonnulls(public_key, public_key_sealed) = 1);
CREATE INDEX passkeys_unsealed ON passkeys (tenant_id) WHERE public_key_sealed IS NULL;
