-- The tenants for which the scheduler has been told to bill and to collect.
CREATE TABLE scheduled_tenants (
    tenant_id   text NOT NULL PRIMARY KEY,
    create_time timestamptz NOT NULL DEFAULT now()
);
SELECT nexus.guard_tenant_rows('scheduled_tenants');
