-- What people call their passkeys ("Ann's phone") is sealed from now on; a job of the service seals the rows that
-- there are.
ALTER TABLE passkeys
    ALTER COLUMN name DROP NOT NULL,
    ADD COLUMN name_sealed bytea,
    ADD CONSTRAINT passkeys_name_sealed CHECK (num_nonnulls(name, name_sealed) = 1);
DROP INDEX passkeys_unsealed;
CREATE INDEX passkeys_unsealed ON passkeys (tenant_id) WHERE public_key_sealed IS NULL OR name_sealed IS NULL;
