-- Introduces the workers of compose.citus.yaml to the coordinator, which has the name `postgres`.
-- For psql, as superuser, in the service's database on the coordinator. It can run again.
\getenv superuser_password PGPASSWORD
\getenv password DATABASE_PASSWORD
-- With these passwords the coordinator connects to the workers.
BEGIN;
DELETE FROM pg_dist_authinfo;
INSERT INTO pg_dist_authinfo (nodeid, rolename, authinfo)
    VALUES (0, 'postgres', 'password=' || :'superuser_password'), (0, 'todo', 'password=' || :'password');
COMMIT;
SELECT citus_set_coordinator_host('postgres', 5432);
SELECT citus_add_node('worker1', 5432);
SELECT citus_add_node('worker2', 5432);
