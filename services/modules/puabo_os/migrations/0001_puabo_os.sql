-- The register of tenants is in the schema that all services read; this one alone writes it. Nobody deletes from it.
GRANT INSERT, UPDATE ON nexus.tenants TO nexus_puabo_os;

-- What tenants get. Plans belong to the platform, not to a tenant.
CREATE TABLE plans (
    plan_id     text PRIMARY KEY,
    title       text NOT NULL,
    -- Ids; {*} for all.
    modules     text[] NOT NULL,
    -- [{"counter": …, "limit": …, "period": "hour" | "day" | "month" | "total"}]
    quotas      jsonb NOT NULL,
    etag        uuid NOT NULL DEFAULT gen_random_uuid(),
    create_time timestamptz NOT NULL DEFAULT now()
);
INSERT INTO plans (plan_id, title, modules, quotas) VALUES ('standard', 'Standard', '{*}', '[]');
ALTER TABLE nexus.tenants ADD CONSTRAINT tenants_plan FOREIGN KEY (plan_id) REFERENCES plans;

-- The modules that a tenant has switched on, beside those that are always on.
CREATE TABLE enabled_modules (
    tenant_id   text NOT NULL,
    module_id   text NOT NULL,
    enable_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, module_id)
);
SELECT nexus.guard_tenant_rows('enabled_modules');

-- One row for each counter and period.
CREATE TABLE usage (
    tenant_id    text NOT NULL,
    counter      text NOT NULL,
    period       text NOT NULL CHECK (period IN ('hour', 'day', 'month', 'total')),
    period_start timestamptz NOT NULL,
    used         bigint NOT NULL CHECK (used >= 0),
    PRIMARY KEY (tenant_id, counter, period, period_start)
);
CREATE INDEX ON usage (period_start) WHERE period <> 'total';
SELECT nexus.guard_tenant_rows('usage');

-- What the platform says of a setting.
CREATE TABLE platform_settings (
    key   text PRIMARY KEY,
    value jsonb NOT NULL,
    etag  uuid NOT NULL DEFAULT gen_random_uuid()
);

-- What a tenant says of a setting, and its users for themselves.
CREATE TABLE settings (
    tenant_id text NOT NULL,
    -- Empty for the tenant's own.
    user_id   text NOT NULL,
    key       text NOT NULL,
    value     jsonb NOT NULL,
    etag      uuid NOT NULL DEFAULT gen_random_uuid(),
    PRIMARY KEY (tenant_id, user_id, key)
);
SELECT nexus.guard_tenant_rows('settings');
