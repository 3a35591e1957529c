CREATE TABLE schedules (
    tenant_id   text NOT NULL,
    schedule_id uuid NOT NULL,
    name        text NOT NULL,
    -- A ScheduleSpec in protobuf's JSON.
    spec        jsonb NOT NULL,
    paused      boolean NOT NULL,
    -- The first time that is not settled; NULL when there is none, or the schedule is paused.
    next_time   timestamptz,
    last_time   timestamptz,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now(),
    etag        uuid NOT NULL DEFAULT gen_random_uuid(),
    PRIMARY KEY (tenant_id, schedule_id),
    UNIQUE (tenant_id, name),
    CHECK (NOT (paused AND next_time IS NOT NULL))
);
CREATE INDEX schedules_due ON schedules (next_time) WHERE next_time IS NOT NULL;
SELECT nexus.guard_tenant_rows('schedules');

-- Each time of a schedule that was settled.
CREATE TABLE runs (
    tenant_id     text NOT NULL,
    run_id        uuid NOT NULL,
    schedule_id   uuid NOT NULL,
    scheduled_for timestamptz NOT NULL,
    cause         text NOT NULL CHECK (cause IN ('TIME', 'TRIGGER', 'BACKFILL')),
    outcome       text NOT NULL CHECK (outcome IN ('ENQUEUED', 'SKIPPED', 'MISSED')),
    job_id        uuid,
    missed_until  timestamptz,
    create_time   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, run_id),
    -- One run for a time, whoever else is at it and whenever they die.
    CONSTRAINT runs_once UNIQUE (tenant_id, schedule_id, scheduled_for),
    CHECK ((outcome = 'ENQUEUED') = (job_id IS NOT NULL)),
    FOREIGN KEY (tenant_id, schedule_id) REFERENCES schedules ON DELETE CASCADE
);
CREATE INDEX runs_old ON runs (create_time);
SELECT nexus.guard_tenant_rows('runs');

CREATE TABLE jobs (
    tenant_id         text NOT NULL,
    job_id            uuid NOT NULL,
    -- The order in which they were enqueued.
    sequence          bigint GENERATED ALWAYS AS IDENTITY,
    queue             text NOT NULL,
    state             text NOT NULL CHECK (state IN ('DELAYED', 'READY', 'LEASED', 'DONE', 'DEAD', 'CANCELLED')),
    payload           jsonb NOT NULL,
    priority          integer NOT NULL,
    max_attempts      integer NOT NULL CHECK (max_attempts >= 1),
    first_backoff     interval NOT NULL,
    longest_backoff   interval NOT NULL,
    run_timeout       interval NOT NULL,
    unique_key        text NOT NULL DEFAULT '',
    serial_key        text NOT NULL DEFAULT '',
    attempts          integer NOT NULL DEFAULT 0,
    run_time          timestamptz NOT NULL,
    create_time       timestamptz NOT NULL,
    start_time        timestamptz,
    end_time          timestamptz,
    -- Of the last lease: whoever knows it, and nobody else, says how the attempt went.
    lease_id          uuid,
    lease_expire_time timestamptz,
    worker            text NOT NULL DEFAULT '',
    last_error        text NOT NULL DEFAULT '',
    schedule_id       uuid,
    scheduled_for     timestamptz,
    PRIMARY KEY (tenant_id, job_id),
    CHECK ((state = 'LEASED') = (lease_expire_time IS NOT NULL)),
    CHECK ((state IN ('DONE', 'DEAD', 'CANCELLED')) = (end_time IS NOT NULL))
);
CREATE INDEX jobs_ready ON jobs (queue, tenant_id, priority DESC, run_time, sequence) WHERE state = 'READY';
CREATE INDEX jobs_delayed ON jobs (run_time) WHERE state = 'DELAYED';
CREATE INDEX jobs_leased ON jobs (lease_expire_time) WHERE state = 'LEASED';
CREATE INDEX jobs_at_work ON jobs (tenant_id, queue) WHERE state = 'LEASED';
CREATE UNIQUE INDEX jobs_unique ON jobs (tenant_id, queue, unique_key)
    WHERE unique_key <> '' AND state IN ('DELAYED', 'READY', 'LEASED');
CREATE INDEX jobs_serial ON jobs (tenant_id, queue, serial_key, sequence)
    WHERE serial_key <> '' AND state IN ('DELAYED', 'READY', 'LEASED');
CREATE INDEX jobs_of_schedule ON jobs (tenant_id, schedule_id)
    WHERE schedule_id IS NOT NULL AND state IN ('DELAYED', 'READY', 'LEASED');
CREATE INDEX jobs_of_queue ON jobs (tenant_id, queue, job_id);
CREATE INDEX jobs_open ON jobs (tenant_id, queue, state) WHERE state IN ('DELAYED', 'READY', 'LEASED', 'DEAD');
CREATE INDEX jobs_ended ON jobs (end_time) WHERE end_time IS NOT NULL;
SELECT nexus.guard_tenant_rows('jobs');

-- What a tenant has said of a queue, and when one of its jobs was last handed out, for tenants to take turns.
CREATE TABLE queues (
    tenant_id   text NOT NULL,
    queue       text NOT NULL,
    max_leased  integer NOT NULL DEFAULT 0 CHECK (max_leased >= 0),
    paused      boolean NOT NULL DEFAULT false,
    served_time timestamptz,
    PRIMARY KEY (tenant_id, queue)
);
SELECT nexus.guard_tenant_rows('queues');
