-- The tenant of those who run the platform; see `Settings.platform_tenant`.
INSERT INTO tenants (tenant_id, display_name) VALUES ('platform', 'Platform');
