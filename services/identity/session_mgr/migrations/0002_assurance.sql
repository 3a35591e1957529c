-- How sure the platform is of the user, how they proved who they are, and when they last did.
ALTER TABLE sessions
    ADD COLUMN assurance text NOT NULL DEFAULT 'aal1',
    ADD COLUMN methods text[] NOT NULL DEFAULT '{pwd}',
    ADD COLUMN auth_time timestamptz;
UPDATE sessions SET auth_time = create_time;
ALTER TABLE sessions ALTER COLUMN auth_time SET NOT NULL, ALTER COLUMN auth_time SET DEFAULT now();
