-- What all schemas share: the register of tenants and the functions by which tables are guarded.
-- Runs in the schema `nexus`.

CREATE TABLE tenants (
    tenant_id    text PRIMARY KEY CHECK (tenant_id ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    display_name text NOT NULL,
    state        text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'suspended')),
    create_time  timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT ON tenants TO PUBLIC;

-- The tenant that the chassis has set for the running statement; NULL, which matches no row, for none.
CREATE FUNCTION tenant_id() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(current_setting('nexus.tenant_id', true), '');

-- Guards a table that has a column tenant_id: a service sees and writes rows of the set tenant only, and the
-- column fills itself in. The role <role>_platform, for jobs over all tenants, sees everything.
CREATE FUNCTION guard_tenant_rows(guarded regclass) RETURNS void
    LANGUAGE plpgsql AS $$
DECLARE
    service text := (SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = guarded);
BEGIN
    EXECUTE format('ALTER TABLE %s ALTER COLUMN tenant_id SET DEFAULT nexus.tenant_id()', guarded);
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', guarded);
    EXECUTE format(
        'CREATE POLICY tenant ON %s TO %I USING (tenant_id = nexus.tenant_id())',
        guarded, 'nexus_' || service);
    EXECUTE format(
        'CREATE POLICY platform ON %s TO %I USING (true)',
        guarded, 'nexus_' || service || '_platform');
END
$$;
