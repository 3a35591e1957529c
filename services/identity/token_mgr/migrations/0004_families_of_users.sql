-- To revoke, or to erase, all of a user's.
CREATE INDEX IF NOT EXISTS token_families_user ON token_families (user_id);
