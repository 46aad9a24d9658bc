-- As count_changes.sql.
CREATE TRIGGER count_changes AFTER UPDATE ON tasks WHEN NEW.version = OLD.version
BEGIN UPDATE tasks SET version = OLD.version + 1 WHERE id = NEW.id; END
