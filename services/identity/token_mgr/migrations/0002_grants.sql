-- Grants of OAuth clients are families too: of a client, of a user or of none, with a scope and an audience.
ALTER TABLE token_families
    ALTER COLUMN user_id DROP NOT NULL,
    -- Empty for the platform's own sign-in.
    ADD COLUMN client_id text NOT NULL DEFAULT '',
    ADD COLUMN scope text NOT NULL DEFAULT '',
    -- Empty for the platform.
    ADD COLUMN audiences text[] NOT NULL DEFAULT '{}',
    -- The session that the grant ends with.
    ADD COLUMN parent_session_id uuid,
    ADD COLUMN auth_time timestamptz;
CREATE INDEX ON token_families (parent_session_id) WHERE parent_session_id IS NOT NULL;
