-- Private parts are sealed by key-service from now on, and kept only of keys that sign or will. What the platform's root
-- key has sealed before signs no more, and verifies until its tokens have expired.
ALTER TABLE signing_keys
    ALTER COLUMN private_sealed DROP NOT NULL,
    ADD COLUMN algorithm text NOT NULL DEFAULT 'ES256' CHECK (algorithm IN ('ES256', 'RS256')),
    -- Since when it has been signing.
    ADD COLUMN promote_time timestamptz;
UPDATE signing_keys SET state = 'former', retire_time = coalesce(retire_time, now()), private_sealed = NULL;
ALTER TABLE signing_keys
    ALTER COLUMN algorithm DROP DEFAULT,
    ADD CHECK ((private_sealed IS NULL) = (state = 'former')),
    ADD CHECK ((retire_time IS NULL) = (state <> 'former'));
DROP INDEX signing_keys_one;
CREATE UNIQUE INDEX signing_keys_one ON signing_keys (algorithm, state) WHERE state IN ('next', 'current');
