-- Runs distribute.sql, unless it was run before. For psql, as the owner of the tables.
SELECT NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'users'::regclass) AS is_new \gset
\if :is_new
    \ir distribute.sql
\endif
