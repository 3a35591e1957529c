-- What a user is called elsewhere is sealed from now on, with a key of the user's own, and found by a keyed hash. A
-- migration has no keys: a job of the service seals the rows that there are, and until then they are as they were.
ALTER TABLE identities
    ALTER COLUMN subject DROP NOT NULL,
    ADD COLUMN subject_sealed bytea,
    -- Of issuer and subject: keyed.
    ADD COLUMN subject_digest bytea,
    ADD CONSTRAINT identities_digest UNIQUE (tenant_id, subject_digest),
    ADD CONSTRAINT identities_sealed CHECK (
        num_nonnulls(subject_sealed, subject_digest) = 2 AND subject IS NULL
        OR num_nonnulls(subject_sealed, subject_digest) = 0 AND subject IS NOT NULL
    );
CREATE INDEX identities_unsealed ON identities (tenant_id) WHERE subject_sealed IS NULL;
