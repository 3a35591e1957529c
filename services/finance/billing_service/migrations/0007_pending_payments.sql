CREATE INDEX payments_pending ON payments (tenant_id, payment_id) WHERE state = 'PENDING';
