-- Events stay facts, until their tenant is erased.
CREATE OR REPLACE FUNCTION events_are_facts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.position IS NULL AND to_jsonb(NEW) - 'position' - 'hash' = to_jsonb(OLD) - 'position' - 'hash'
    THEN
        RETURN NEW;
    END IF;
    IF TG_OP = 'DELETE' AND nexus.is_erased(OLD.tenant_id) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'events are append-only';
END
$$;
