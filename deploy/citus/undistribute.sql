-- The way back from distribute.sql: all rows to the coordinator, into the tables as the migrations make them.
-- For psql, as the owner of the tables, with the service stopped.

ALTER TABLE tasks NO FORCE ROW LEVEL SECURITY;
ALTER TABLE deletions NO FORCE ROW LEVEL SECURITY;
ALTER TABLE idempotency_keys NO FORCE ROW LEVEL SECURITY;
ALTER TABLE tasks DROP CONSTRAINT fk_tasks_user_id;
ALTER TABLE deletions DROP CONSTRAINT fk_deletions_user_id;
ALTER TABLE idempotency_keys DROP CONSTRAINT fk_idempotency_keys_user_id;

-- Citus cannot do this for a table with an identity column. The sequence of ids continues where it was.
CREATE TABLE tasks_back (LIKE tasks INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING IDENTITY);
INSERT INTO tasks_back OVERRIDING SYSTEM VALUE SELECT * FROM tasks;
SELECT setval('tasks_back_id_seq', last_value, is_called) FROM tasks_id_seq;
DROP TABLE tasks;
ALTER TABLE tasks_back RENAME TO tasks;
ALTER SEQUENCE tasks_back_id_seq RENAME TO tasks_id_seq;
SELECT undistribute_table('deletions');
SELECT undistribute_table('idempotency_keys');
SELECT undistribute_table('users');

ALTER TABLE tasks ADD CONSTRAINT pk_tasks PRIMARY KEY (id);
CREATE INDEX ix_tasks_user_id_created_at_id ON tasks (user_id, created_at DESC, id DESC);
CREATE INDEX ix_tasks_user_id_updated_at_id ON tasks (user_id, updated_at, id);
ALTER TABLE tasks ENABLE ROW LEVEL SECURITY;
CREATE POLICY tasks_of_user ON tasks
    USING (user_id = nullif(current_setting('app.user_id', true), ''));
-- Of several users with one email, one keeps it.
UPDATE users SET email = NULL WHERE email IN (SELECT email FROM users AS other WHERE other.id < users.id);
ALTER TABLE users ADD CONSTRAINT uq_users_email UNIQUE (email);
ALTER TABLE tasks
    ADD CONSTRAINT fk_tasks_user_id FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE;
ALTER TABLE deletions
    ADD CONSTRAINT fk_deletions_user_id FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE;
ALTER TABLE idempotency_keys
    ADD CONSTRAINT fk_idempotency_keys_user_id FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE;
ALTER TABLE tasks FORCE ROW LEVEL SECURITY;
ALTER TABLE deletions FORCE ROW LEVEL SECURITY;
ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY;
