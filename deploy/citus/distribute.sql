-- Distributes a migrated database over the workers of Citus: each user, with all that the user owns, on one worker.
-- For psql, as the owner of the tables, with the service stopped. docs/scaling.md says what comes before and after it.
-- Each statement is a transaction. If one fails, mend what it names, and continue there.

-- The copy must not be hidden from the owner of the tables.
ALTER TABLE tasks NO FORCE ROW LEVEL SECURITY;
ALTER TABLE deletions NO FORCE ROW LEVEL SECURITY;
ALTER TABLE idempotency_keys NO FORCE ROW LEVEL SECURITY;
-- They come back below: a table cannot be distributed while another one refers to it.
ALTER TABLE tasks DROP CONSTRAINT fk_tasks_user_id;
ALTER TABLE deletions DROP CONSTRAINT fk_deletions_user_id;
ALTER TABLE idempotency_keys DROP CONSTRAINT fk_idempotency_keys_user_id;
-- A unique constraint must have the owner. So emails are no longer unique. Ids stay so: the database alone gives them.
ALTER TABLE users DROP CONSTRAINT uq_users_email;
ALTER TABLE tasks DROP CONSTRAINT pk_tasks;
ALTER TABLE tasks ADD CONSTRAINT pk_tasks PRIMARY KEY (user_id, id);

SELECT create_distributed_table('users', 'id');
SELECT create_distributed_table('tasks', 'user_id', colocate_with => 'users');
SELECT create_distributed_table('deletions', 'user_id', colocate_with => 'users');
SELECT create_distributed_table('idempotency_keys', 'user_id', colocate_with => 'users');

ALTER TABLE tasks
    ADD CONSTRAINT fk_tasks_user_id FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE;
ALTER TABLE deletions
    ADD CONSTRAINT fk_deletions_user_id FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE;
ALTER TABLE idempotency_keys
    ADD CONSTRAINT fk_idempotency_keys_user_id FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE;
ALTER TABLE tasks FORCE ROW LEVEL SECURITY;
ALTER TABLE deletions FORCE ROW LEVEL SECURITY;
ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY;

-- The old rows are still on the coordinator, where nobody sees them.
SELECT truncate_local_data_after_distributing_table('users');
