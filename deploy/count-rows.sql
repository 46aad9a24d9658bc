-- Print how many rows each table has (docs/backup.md).
\set ON_ERROR_STOP on
-- A role that does not see all rows gets an error, not a count of 0.
SET row_security = off;
SELECT format('SELECT %L, count(*) FROM %I', relname, relname) FROM pg_class
WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = current_schema()::regnamespace
ORDER BY relname \gexec
