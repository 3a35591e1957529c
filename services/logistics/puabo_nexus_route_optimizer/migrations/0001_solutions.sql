-- What was asked and what was planned; see puabo_nexus_route_optimizer/v1/routing.proto.
CREATE TABLE solutions (
    tenant_id     text NOT NULL,
    -- Derived from the question, so that the same question is the same row.
    solution_id   uuid NOT NULL,
    -- Sorts them by the time they were asked for.
    position      uuid NOT NULL,
    state         text NOT NULL CHECK (state IN ('QUEUED', 'RUNNING', 'DONE', 'FAILED', 'CANCELLED')),
    -- Messages of the contract: Problem, and Plan when there is one.
    problem       bytea NOT NULL,
    plan          bytea,
    -- A Plan with the steps that had been done when the rest was planned anew.
    history       bytea NOT NULL DEFAULT '',
    travel_source text NOT NULL DEFAULT '',
    seed          bigint NOT NULL,
    effort        int NOT NULL,
    rounds        int NOT NULL DEFAULT 1,
    rounds_done   int NOT NULL DEFAULT 0,
    parent_id     uuid,
    failure       text NOT NULL DEFAULT '',
    -- Who works on it says so again before this moment; afterwards another may take over.
    lease_time    timestamptz,
    attempts      int NOT NULL DEFAULT 0,
    create_time   timestamptz NOT NULL DEFAULT now(),
    finish_time   timestamptz,
    PRIMARY KEY (tenant_id, solution_id),
    CHECK ((state = 'DONE') <= (plan IS NOT NULL)),
    CHECK ((state IN ('QUEUED', 'RUNNING')) = (finish_time IS NULL))
);
CREATE UNIQUE INDEX solutions_latest ON solutions (tenant_id, position);
CREATE INDEX solutions_waiting ON solutions (create_time) WHERE state IN ('QUEUED', 'RUNNING');
CREATE INDEX solutions_finished ON solutions (finish_time);
SELECT nexus.guard_tenant_rows('solutions');
