-- Devices and addresses are sealed from now on, with a key of the user's own. A migration has no keys: a job of the
-- service seals the rows that there are.
ALTER TABLE sessions
    ALTER COLUMN user_agent DROP NOT NULL,
    ALTER COLUMN ip_address DROP NOT NULL,
    -- NULL, like those two, for a session that was opened while key-service was away.
    ADD COLUMN device_sealed bytea,
    ADD CONSTRAINT sessions_sealed CHECK (
        num_nonnulls(user_agent, ip_address) = 0 OR num_nonnulls(user_agent, ip_address) = 2 AND device_sealed IS NULL
    );
CREATE INDEX sessions_unsealed ON sessions (tenant_id) WHERE user_agent IS NOT NULL;
