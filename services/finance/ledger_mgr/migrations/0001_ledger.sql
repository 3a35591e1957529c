-- A ledger for each tenant. The log is the truth; every other table is derived from it, in the same transaction.

-- The head of each log. Whoever posts locks this row first, so that the postings of a tenant happen one after the
-- other: the order of the log, of the chain of hashes and of every check of a balance is one and the same.
CREATE TABLE ledgers (
    tenant_id   text PRIMARY KEY,
    position    bigint NOT NULL DEFAULT 0,
    hash        bytea NOT NULL DEFAULT '',
    update_time timestamptz NOT NULL DEFAULT 'epoch',
    -- The split agreed with the tenant; NULL while its plan's applies.
    agreed_basis_points integer CHECK (agreed_basis_points BETWEEN 0 AND 10000)
) WITH (fillfactor = 10);
SELECT nexus.guard_tenant_rows('ledgers');

CREATE TABLE log (
    tenant_id       text NOT NULL,
    position        bigint NOT NULL,
    create_time     timestamptz NOT NULL,
    actor           text NOT NULL,
    -- Empty where a fact follows from another one, or from time.
    idempotency_key text NOT NULL,
    request_hash    bytea NOT NULL,
    -- A serialized nexus.finance.ledger_mgr.v1.Change.
    change          bytea NOT NULL,
    hash            bytea NOT NULL,
    PRIMARY KEY (tenant_id, position)
);
CREATE UNIQUE INDEX log_keys ON log (tenant_id, actor, idempotency_key) WHERE idempotency_key <> '';
SELECT nexus.guard_tenant_rows('log');

CREATE TABLE accounts (
    tenant_id       text NOT NULL,
    name            text COLLATE "C" NOT NULL,
    type            smallint NOT NULL,
    state           smallint NOT NULL,
    allow_overdraft boolean NOT NULL,
    overdraft_limit bigint NOT NULL,
    metadata        jsonb NOT NULL,
    create_time     timestamptz NOT NULL,
    -- The position of its last change.
    changed_at      bigint NOT NULL,
    PRIMARY KEY (tenant_id, name)
);
SELECT nexus.guard_tenant_rows('accounts');

CREATE TABLE balances (
    tenant_id    text NOT NULL,
    account      text COLLATE "C" NOT NULL,
    currency     text NOT NULL,
    debits       bigint NOT NULL CHECK (debits >= 0),
    credits      bigint NOT NULL CHECK (credits >= 0),
    held_debits  bigint NOT NULL CHECK (held_debits >= 0),
    held_credits bigint NOT NULL CHECK (held_credits >= 0),
    PRIMARY KEY (tenant_id, account, currency)
) WITH (fillfactor = 50);
SELECT nexus.guard_tenant_rows('balances');

-- What transactions are found by; the rest of each is in the log.
CREATE TABLE transactions (
    tenant_id      text NOT NULL,
    transaction_id uuid NOT NULL,
    position       bigint NOT NULL,
    kind           smallint NOT NULL,
    reference      text NOT NULL,
    metadata       jsonb NOT NULL,
    effective_time timestamptz NOT NULL,
    reverted_by    uuid,
    PRIMARY KEY (tenant_id, transaction_id)
);
CREATE UNIQUE INDEX transactions_position ON transactions (tenant_id, position);
CREATE UNIQUE INDEX transactions_reference ON transactions (tenant_id, reference) WHERE reference <> '';
CREATE INDEX transactions_metadata ON transactions USING gin (metadata jsonb_path_ops) WHERE metadata <> '{}';
SELECT nexus.guard_tenant_rows('transactions');

CREATE TABLE legs (
    tenant_id      text NOT NULL,
    account        text COLLATE "C" NOT NULL,
    -- Of its transaction.
    position       bigint NOT NULL,
    leg            smallint NOT NULL,
    currency       text NOT NULL,
    debit          bigint NOT NULL CHECK (debit >= 0),
    credit         bigint NOT NULL CHECK (credit >= 0),
    -- The account's balance after the transaction.
    balance        bigint NOT NULL,
    effective_time timestamptz NOT NULL,
    create_time    timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, position, leg),
    CHECK ((debit > 0) <> (credit > 0))
);
CREATE INDEX legs_of_account ON legs (tenant_id, account, position, leg);
CREATE INDEX legs_as_of ON legs (tenant_id, account, currency, effective_time) INCLUDE (debit, credit, create_time);
SELECT nexus.guard_tenant_rows('legs');

-- The last word on double entry, should the service ever be wrong.
CREATE FUNCTION legs_add_up() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM written GROUP BY tenant_id, position, currency HAVING sum(debit) <> sum(credit)) THEN
        RAISE EXCEPTION 'debits and credits of a transaction differ';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER legs_add_up AFTER INSERT ON legs
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION legs_add_up();

CREATE TABLE holds (
    tenant_id      text NOT NULL,
    hold_id        uuid NOT NULL,
    -- Where the log says that it was placed.
    position       bigint NOT NULL,
    state          smallint NOT NULL,
    debit_account  text COLLATE "C" NOT NULL,
    credit_account text COLLATE "C" NOT NULL,
    currency       text NOT NULL,
    amount         bigint NOT NULL CHECK (amount > 0),
    captured       bigint NOT NULL CHECK (captured BETWEEN 0 AND amount),
    reference      text NOT NULL,
    expire_time    timestamptz,
    resolve_time   timestamptz,
    PRIMARY KEY (tenant_id, hold_id)
);
CREATE UNIQUE INDEX holds_reference ON holds (tenant_id, reference) WHERE reference <> '';
CREATE INDEX holds_to_expire ON holds (expire_time) WHERE state = 1;
CREATE INDEX holds_debit ON holds (tenant_id, debit_account, hold_id);
CREATE INDEX holds_credit ON holds (tenant_id, credit_account, hold_id);
SELECT nexus.guard_tenant_rows('holds');

-- What has happened stays: nothing is taken away, and the log and the legs never change.
REVOKE DELETE ON ledgers, log, accounts, balances, transactions, legs, holds FROM nexus_ledger_mgr;
REVOKE UPDATE ON log, legs FROM nexus_ledger_mgr, nexus_ledger_mgr_platform;  -- which deletes, when a tenant is erased
