-- Keys with which services seal get a new version every 90 days by themselves, like those made from now on; not all
-- on one day. What older versions sealed still opens.
UPDATE keys
SET rotation_period = interval '90 days', next_rotation_time = now() + random() * interval '90 days'
WHERE owner <> '' AND algorithm = 'AES_256_GCM' AND rotation_period IS NULL AND state = 'enabled';
