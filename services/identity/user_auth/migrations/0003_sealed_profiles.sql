-- Addresses and names are sealed from now on; see services/identity/user_auth/profiles.py. A migration has no keys:
-- a job of the service seals the rows that there are, and until then they are as they were.
ALTER TABLE users
    ALTER COLUMN email DROP NOT NULL,
    ALTER COLUMN email_key DROP NOT NULL,
    ALTER COLUMN display_name DROP NOT NULL,
    ADD COLUMN profile_sealed bytea,
    -- Of the normalised address: keyed.
    ADD COLUMN email_digest bytea,
    ADD CONSTRAINT users_email_digest UNIQUE (tenant_id, email_digest),
    ADD CONSTRAINT users_sealed CHECK (
        num_nonnulls(profile_sealed, email_digest) = 2 AND num_nonnulls(email, email_key, display_name) = 0
        OR num_nonnulls(profile_sealed, email_digest) = 0 AND num_nonnulls(email, email_key, display_name) = 3
    );
CREATE INDEX users_unsealed ON users (tenant_id) WHERE profile_sealed IS NULL;
DROP INDEX users_by_prefix;

-- Who waits for a mail at this moment asks for it again.
DELETE FROM mail_requests;
ALTER TABLE mail_requests DROP COLUMN email_key, ADD COLUMN email_digest bytea NOT NULL;
