-- Count changes in tasks.version also for code that no longer writes it, so that older code sees these changes.
CREATE FUNCTION count_changes() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN NEW.version := OLD.version + 1; RETURN NEW; END $$;
CREATE TRIGGER count_changes BEFORE UPDATE ON tasks FOR EACH ROW WHEN (NEW.version = OLD.version)
EXECUTE FUNCTION count_changes();
