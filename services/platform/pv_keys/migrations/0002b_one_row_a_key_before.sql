-- For 0003: where one private key has two rows already, they become one, the first of them. It takes over what the
-- others signed, so that no slot is signed twice, and what hangs on them; and it is locked until people have looked
-- which policy is to hold. What the others said is kept here.
CREATE TABLE merged_keys (
    tenant_id   text NOT NULL,
    key_id      uuid NOT NULL,
    merged_into uuid NOT NULL,
    -- Its row, without the secret.
    was         jsonb NOT NULL,
    merge_time  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key_id)
);
SELECT nexus.guard_tenant_rows('merged_keys');
REVOKE UPDATE, DELETE ON merged_keys FROM nexus_pv_keys;

INSERT INTO merged_keys (tenant_id, key_id, merged_into, was)
SELECT tenant_id, key_id, first, was
FROM (
    SELECT tenant_id, key_id, to_jsonb(k) - 'secret_sealed' AS was,
           first_value(key_id) OVER (PARTITION BY tenant_id, curve, public_key, hd_root ORDER BY key_id) AS first
    FROM private_keys k
) AS ranked
WHERE key_id <> first;

-- Two requests of one name stay two; of a slot that both rows signed, the first row's signing keeps it.
UPDATE signings s
SET key_id = m.merged_into,
    request_id = s.request_id || ' ' || m.key_id,
    slot = CASE WHEN s.state <> 'REJECTED' AND ranked.turn > 1 THEN '' ELSE s.slot END
FROM merged_keys m, (
    SELECT g.tenant_id, g.signing_id, row_number() OVER (
        PARTITION BY g.tenant_id, coalesce(merged_into, key_id), slot, state = 'REJECTED'
        ORDER BY merged_into IS NOT NULL, g.signing_id
    ) AS turn
    FROM signings g LEFT JOIN merged_keys USING (tenant_id, key_id)
) AS ranked
WHERE (m.tenant_id, m.key_id) = (s.tenant_id, s.key_id)
  AND (ranked.tenant_id, ranked.signing_id) = (s.tenant_id, s.signing_id);
UPDATE key_events e SET key_id = m.merged_into
FROM merged_keys m WHERE (m.tenant_id, m.key_id) = (e.tenant_id, e.key_id);

UPDATE private_keys k SET locked = true
FROM merged_keys m WHERE (m.tenant_id, m.merged_into) = (k.tenant_id, k.key_id);
-- Those that were derived first: the roots that they name go last.
DELETE FROM private_keys k USING merged_keys m
WHERE (m.tenant_id, m.key_id) = (k.tenant_id, k.key_id) AND NOT k.hd_root;
UPDATE private_keys k SET root_key_id = m.merged_into
FROM merged_keys m WHERE (m.tenant_id, m.key_id) = (k.tenant_id, k.root_key_id);
DELETE FROM private_keys k USING merged_keys m WHERE (m.tenant_id, m.key_id) = (k.tenant_id, k.key_id);
