CREATE TABLE imports (
    tenant_id   text NOT NULL,
    import_id   uuid PRIMARY KEY,
    name        text NOT NULL,
    state       text NOT NULL DEFAULT 'uploading' CHECK (state IN ('uploading', 'running', 'done', 'cancelled')),
    received    bigint NOT NULL DEFAULT 0,
    row_count   integer NOT NULL DEFAULT 0,
    -- Rows before this one are done with; advances in the transaction that imports them.
    rows_done   integer NOT NULL DEFAULT 0,
    created     integer NOT NULL DEFAULT 0,
    updated     integer NOT NULL DEFAULT 0,
    unchanged   integer NOT NULL DEFAULT 0,
    rejected    integer NOT NULL DEFAULT 0,
    actor       text NOT NULL,
    -- Who works on it, and until when nobody else does.
    worker      uuid,
    lease_time  timestamptz NOT NULL DEFAULT '-infinity',
    create_time timestamptz NOT NULL DEFAULT now(),
    finish_time timestamptz
);
CREATE INDEX imports_newest ON imports (tenant_id, import_id);
CREATE INDEX imports_running ON imports (lease_time) WHERE state = 'running';
SELECT nexus.guard_tenant_rows('imports');

CREATE TABLE import_chunks (
    tenant_id text NOT NULL,
    import_id uuid NOT NULL REFERENCES imports ON DELETE CASCADE,
    position  bigint NOT NULL,
    data      bytea NOT NULL,
    PRIMARY KEY (import_id, position)
);
SELECT nexus.guard_tenant_rows('import_chunks');

CREATE TABLE import_errors (
    tenant_id  text NOT NULL,
    import_id  uuid NOT NULL REFERENCES imports ON DELETE CASCADE,
    row_number integer NOT NULL,
    column_name text NOT NULL,
    value      text NOT NULL,
    message    text NOT NULL,
    PRIMARY KEY (import_id, row_number)
);
SELECT nexus.guard_tenant_rows('import_errors');
