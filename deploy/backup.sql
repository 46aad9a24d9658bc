-- Dump the database $SOURCE to todo.dump, and print how many rows each table had at that moment (docs/backup.md).
\set ON_ERROR_STOP on
-- A role that does not see all rows gets an error, not a count of 0.
SET row_security = off;
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT pg_export_snapshot() AS snapshot \gset
\setenv SNAPSHOT :snapshot
\set is_dumped `pg_dump --snapshot="$SNAPSHOT" --format=custom --file=todo.partial "$SOURCE" && mv todo.partial todo.dump && echo true || echo false`
\if :is_dumped
    \ir count-rows.sql
\else
    DO 'BEGIN RAISE EXCEPTION ''pg_dump failed: there is no backup''; END';
\endif
COMMIT;
