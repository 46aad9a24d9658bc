"""Drop versions of tasks"""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Older code has changed rows without the clocks. So every client starts its sync again, once.
SQLITE_NOW = "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000"
RESTART_ON_SQLITE = f"""
    UPDATE users SET (changed_at, forgotten_at) = (
        SELECT latest, latest FROM (
            SELECT max({SQLITE_NOW}, users.changed_at + 1, coalesce(max(updated_at), 0) + 1) AS latest
            FROM tasks WHERE user_id = users.id
        )
    )
"""  # noqa: S608 (of constants)
# In short transactions, user by user, because each change of a user waits for the user's row. The policies of tasks
# show only the rows of the acting user.
RESTART = """
DO $$
DECLARE
    acting text;
    latest timestamptz;
BEGIN
    FOR acting IN SELECT id FROM users LOOP
        PERFORM set_config('app.user_id', acting, true);
        SELECT greatest(now(), max(updated_at) + interval '1 microsecond') INTO latest
        FROM tasks WHERE user_id = acting;
        UPDATE users SET changed_at = greatest(latest, changed_at + interval '1 microsecond'),
            forgotten_at = greatest(latest, changed_at + interval '1 microsecond') WHERE id = acting;
        {commit}
    END LOOP;
    PERFORM set_config('app.user_id', '', true);
END $$
"""
COUNT_CHANGES = Path(__file__).parents[1] / "count_changes.sql"
COUNT_CHANGES_ON_SQLITE = COUNT_CHANGES.with_name("count_changes_on_sqlite.sql")


def upgrade() -> None:
    """Drop the column, when no code before 0007 runs any more, and the trigger that counted for that code."""
    if op.get_context().dialect.name == "sqlite":
        op.execute("DROP TRIGGER count_changes")
        op.drop_column("tasks", "version")
        op.execute(RESTART_ON_SQLITE)
        return
    if op.get_context().as_sql:
        # The script is one transaction, in which policies must not hide rows.
        op.execute("SET LOCAL row_security = on")
        op.execute(RESTART.format(commit=""))
        op.execute("SET LOCAL row_security = off")
    else:
        with op.get_context().autocommit_block():
            op.execute(RESTART.format(commit="COMMIT;"))
    op.execute("DROP TRIGGER count_changes ON tasks")
    op.execute("DROP FUNCTION count_changes()")
    op.drop_column("tasks", "version")


def downgrade() -> None:
    """Add the column again, on PostgreSQL without reading any row. Every task has version 1."""
    is_sqlite = op.get_context().dialect.name == "sqlite"
    column = "ALTER TABLE tasks ADD COLUMN version BIGINT DEFAULT 1 NOT NULL"
    rule = f"CONSTRAINT {op.f('ck_tasks_version_positive')} CHECK (version >= 1)"
    op.execute(f"{column} {rule}" if is_sqlite else f"{column}, ADD {rule} NOT VALID")
    op.execute((COUNT_CHANGES_ON_SQLITE if is_sqlite else COUNT_CHANGES).read_text())
