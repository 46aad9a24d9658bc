"""What a load needs to know of the rows on the workers: what was changed, and whose rows are where.

Citus has no triggers of distributed tables. So each shard gets them, and each worker has the table that they write to.
"""

from collections.abc import Iterator, Sequence

from sqlalchemy import URL

from tests.citus.cluster import Worker
from tests.faults.feed import FIELDS, TRAIL
from tests.support import session, sql

#: Each shard of tasks, the shard of users that belongs to it, and where both are.
SHARDS = """
    SELECT tasks.shardid, users.shardid, nodeport
    FROM pg_dist_shard AS tasks JOIN pg_dist_shard AS users USING (shardminvalue)
    JOIN citus_shards ON citus_shards.shardid = tasks.shardid
    WHERE tasks.logicalrelid = 'tasks'::regclass AND users.logicalrelid = 'users'::regclass
"""
WHERE = """
    SELECT nodeport FROM citus_shards
    WHERE shardid = get_shard_id_for_distribution_column('users', CAST(:user_id AS text))
"""
#: Of tests/faults/load.py, for a row of a shard.
JOURNAL = """
CREATE TABLE journal (at timestamptz, user_id text, kind text, task_id bigint, title text);
CREATE FUNCTION write_down() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    task record := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
BEGIN
    INSERT INTO journal VALUES (clock_timestamp(), task.user_id, TG_OP, task.id, task.title);
    RETURN NULL;
END $$;
"""
#: Of tests/faults/feed.py. The argument is the shard of users.
LEAVE_TRAIL = """
CREATE FUNCTION write_down() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    task record := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    now timestamptz := task.updated_at;
BEGIN
    IF TG_OP = 'DELETE' THEN
        -- The now() of a statement is the coordinator's.
        EXECUTE format('SELECT changed_at FROM %%I WHERE id = $1', TG_ARGV[0]) INTO now USING task.user_id;
    END IF;
    INSERT INTO trail (at, is_gone, {fields}) SELECT now, TG_OP = 'DELETE', {values};
    RETURN NULL;
END $$;
"""
TRIGGER = """
CREATE TRIGGER write_down AFTER INSERT OR UPDATE OR DELETE ON tasks_{tasks} FOR EACH ROW
EXECUTE FUNCTION write_down('users_{users}')
"""


#: The same, at the end of the transaction.
CONSTRAINT_TRIGGER = """
CREATE CONSTRAINT TRIGGER write_down AFTER INSERT OR UPDATE OR DELETE ON tasks_{tasks} DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION write_down('users_{users}')
"""
REFUSE = """
CREATE FUNCTION write_down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'No'; END $$
"""


def refuse_commits(url: URL, workers: Sequence[Worker]) -> list[URL]:
    """Have each worker refuse each change of a task, when it is to be committed."""
    return [*_write_down(url, workers, REFUSE, CONSTRAINT_TRIGGER)]


def keep_journal(url: URL, workers: Sequence[Worker]) -> list[URL]:
    """Have each worker write down each change of a task, in the transaction that makes it. Return where."""
    return [*_write_down(url, workers, JOURNAL)]


def keep_trail(url: URL, workers: Sequence[Worker]) -> list[URL]:
    """Have each worker keep the trail of the feed. Return where."""
    values = ", ".join(f"task.{name}" for name in FIELDS)
    return [*_write_down(url, workers, LEAVE_TRAIL.format(fields=", ".join(FIELDS), values=values))]


def _write_down(url: URL, workers: Sequence[Worker], function: str, trigger: str = TRIGGER) -> Iterator[URL]:
    shards = sql(url, SHARDS)
    for worker in workers:
        part = worker.within(url)
        with session(part) as connection:
            connection.exec_driver_sql("SET LOCAL citus.enable_ddl_propagation = off")
            TRAIL.create(connection)
            connection.exec_driver_sql(function, {})
            for tasks, users, port in shards:
                if port == part.port:
                    connection.exec_driver_sql(trigger.format(tasks=tasks, users=users))
            connection.commit()
        yield part


def port_of(url: URL, user_id: str) -> int:
    """Return the port of the worker that has what the user owns."""
    ((port,),) = sql(url, WHERE, user_id=user_id)
    return int(port)
