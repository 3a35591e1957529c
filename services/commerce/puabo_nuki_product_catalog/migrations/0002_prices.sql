-- What decides on a price does not change once it is written, except that a list can be ended from now on.
CREATE TABLE price_lists (
    tenant_id     text NOT NULL,
    price_list_id uuid PRIMARY KEY,
    key           text NOT NULL,
    name          text NOT NULL,
    channel       text NOT NULL,
    currency      text NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('regular', 'sale')),
    priority      integer NOT NULL,
    tax_included  boolean NOT NULL,
    start_time    timestamptz NOT NULL,
    end_time      timestamptz NOT NULL,
    create_time   timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT price_lists_key UNIQUE (tenant_id, key)
);
CREATE INDEX price_lists_in_order ON price_lists (tenant_id, price_list_id);
SELECT nexus.guard_tenant_rows('price_lists');

CREATE TABLE price_entries (
    tenant_id     text NOT NULL,
    entry_id      uuid PRIMARY KEY,
    -- The order in which they were put on record.
    sequence      bigint GENERATED ALWAYS AS IDENTITY,
    price_list_id uuid NOT NULL REFERENCES price_lists,
    -- Stays when the variant is deleted.
    variant_id    uuid NOT NULL,
    -- NULL: the list has no price from then on.
    minor_units   bigint CHECK (minor_units >= 0),
    min_quantity  integer NOT NULL CHECK (min_quantity >= 1),
    start_time    timestamptz NOT NULL,
    end_time      timestamptz NOT NULL,
    create_time   timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor         text NOT NULL,
    CHECK (start_time < end_time)
);
CREATE INDEX price_entries_of_variant ON price_entries (tenant_id, variant_id, sequence);
CREATE INDEX price_entries_of_list ON price_entries (tenant_id, price_list_id, variant_id);
SELECT nexus.guard_tenant_rows('price_entries');

-- Prices stay on record, until the tenant is erased.
CREATE FUNCTION prices_are_facts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND nexus.is_erased(OLD.tenant_id) THEN
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE' AND TG_TABLE_NAME = 'price_lists' AND to_jsonb(NEW) - 'end_time' = to_jsonb(OLD) - 'end_time'
        AND NEW.end_time < OLD.end_time
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'prices are append-only';
END
$$;
CREATE TRIGGER prices_are_facts BEFORE UPDATE OR DELETE ON price_lists
    FOR EACH ROW EXECUTE FUNCTION prices_are_facts();
CREATE TRIGGER prices_are_facts BEFORE UPDATE OR DELETE ON price_entries
    FOR EACH ROW EXECUTE FUNCTION prices_are_facts();
