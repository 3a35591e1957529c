CREATE TABLE locations (
    tenant_id   text NOT NULL,
    location_id text NOT NULL,
    name        text NOT NULL,
    country     text NOT NULL,
    -- Sold from in this order, the lowest first.
    priority    integer NOT NULL,
    -- Nothing is sold from here.
    closed      boolean NOT NULL,
    version     bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (tenant_id, location_id)
);
SELECT nexus.guard_tenant_rows('locations');

-- What there is. `on_hand` is the sum of the movements; both change in one transaction, under the row's lock.
-- Rows are locked in the order of item and location.
CREATE TABLE stock_levels (
    tenant_id   text NOT NULL,
    item_id     text NOT NULL,
    location_id text NOT NULL,
    on_hand     bigint NOT NULL DEFAULT 0,
    reserved    bigint NOT NULL DEFAULT 0,
    update_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, item_id, location_id),
    FOREIGN KEY (tenant_id, location_id) REFERENCES locations,
    -- The last net: no unit is sold that is not there, whatever the program believes.
    CONSTRAINT never_oversold CHECK (reserved >= 0 AND on_hand >= reserved)
);
CREATE INDEX stock_levels_by_location ON stock_levels (tenant_id, location_id, item_id);
SELECT nexus.guard_tenant_rows('stock_levels');

CREATE TABLE movements (
    tenant_id      text NOT NULL,
    movement_id    uuid PRIMARY KEY,
    item_id        text NOT NULL,
    location_id    text NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('received', 'adjusted', 'transferred', 'sold', 'returned')),
    quantity       bigint NOT NULL,
    on_hand_after  bigint NOT NULL CHECK (on_hand_after >= 0),
    reason         text NOT NULL,
    reference      text NOT NULL,
    note           text NOT NULL,
    reservation_id uuid,
    actor          text NOT NULL,
    create_time    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX movements_newest ON movements (tenant_id, movement_id);
CREATE INDEX movements_of_item ON movements (tenant_id, item_id, movement_id);
CREATE INDEX movements_of_location ON movements (tenant_id, location_id, movement_id);
SELECT nexus.guard_tenant_rows('movements');

-- What moved stays on record, until the tenant is erased.
CREATE FUNCTION movements_are_facts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND nexus.is_erased(OLD.tenant_id) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'movements are append-only';
END
$$;
CREATE TRIGGER movements_are_facts BEFORE UPDATE OR DELETE ON movements
    FOR EACH ROW EXECUTE FUNCTION movements_are_facts();

CREATE TABLE reservations (
    tenant_id      text NOT NULL,
    reservation_id uuid PRIMARY KEY,
    -- What is `active` after its time is expired in all but name; the store reads it so.
    state          text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'committed', 'released', 'expired')),
    reference      text NOT NULL,
    expire_time    timestamptz NOT NULL,
    create_time    timestamptz NOT NULL DEFAULT clock_timestamp(),
    settle_time    timestamptz
);
CREATE INDEX reservations_newest ON reservations (tenant_id, reservation_id);
CREATE INDEX reservations_by_reference ON reservations (tenant_id, reference, reservation_id);
CREATE INDEX reservations_due ON reservations (expire_time) WHERE state = 'active';
CREATE INDEX reservations_due_of_tenant ON reservations (tenant_id, expire_time) WHERE state = 'active';
SELECT nexus.guard_tenant_rows('reservations');

CREATE TABLE allocations (
    tenant_id      text NOT NULL,
    reservation_id uuid NOT NULL REFERENCES reservations ON DELETE CASCADE,
    item_id        text NOT NULL,
    location_id    text NOT NULL,
    quantity       bigint NOT NULL CHECK (quantity > 0),
    -- How many of them came back after they were sold.
    restocked      bigint NOT NULL DEFAULT 0 CHECK (restocked BETWEEN 0 AND quantity),
    PRIMARY KEY (reservation_id, item_id, location_id)
);
SELECT nexus.guard_tenant_rows('allocations');
