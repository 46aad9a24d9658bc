-- The image of Citus runs this once on each machine, on an empty volume, after deploy/create-role.sql.
\connect todo
CREATE EXTENSION citus;
