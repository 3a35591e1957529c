-- What becomes of a tenant: puabo-os writes it, and every service reads it.
ALTER TABLE tenants
    DROP CONSTRAINT tenants_state_check,
    ADD CONSTRAINT tenants_state_check CHECK (state IN ('active', 'suspended', 'erasing', 'erased')),
    ADD COLUMN plan_id    text NOT NULL DEFAULT 'standard',
    ADD COLUMN state_time timestamptz NOT NULL DEFAULT now(),
    -- From then on its rows are deleted, and nobody can call it off.
    ADD COLUMN erase_time timestamptz,
    ADD COLUMN etag       uuid NOT NULL DEFAULT gen_random_uuid(),
    ADD CONSTRAINT tenants_erase_time CHECK (state NOT IN ('erasing', 'erased') OR erase_time IS NOT NULL);
CREATE INDEX tenants_erasing ON tenants (erase_time) WHERE state = 'erasing';

-- Each service's word that it has no row of a tenant left. It can give its own only.
CREATE TABLE erasures (
    tenant_id    text NOT NULL REFERENCES tenants,
    role         name NOT NULL DEFAULT current_user,
    confirm_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, role)
);
GRANT SELECT, INSERT ON erasures TO PUBLIC;
ALTER TABLE erasures ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_read ON erasures FOR SELECT USING (true);
CREATE POLICY own_word ON erasures FOR INSERT WITH CHECK (role = current_user);

-- Whether rows of a tenant are to be deleted for good: the one exception of tables that are append-only otherwise.
CREATE FUNCTION is_erased(tenant text) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN EXISTS (SELECT FROM nexus.tenants WHERE tenant_id = tenant AND state = 'erasing' AND erase_time <= now());
