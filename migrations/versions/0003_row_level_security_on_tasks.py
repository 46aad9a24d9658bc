"""Row-level security on tasks"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let each statement see and change only the rows of the user it acts for, and none without a user.

    FORCE applies this to the owner of the table too, as which the service may run. The setting is NULL until a session
    first makes it, and empty after the transaction that made it.
    """
    if op.get_context().dialect.name == "sqlite":
        return
    op.execute("ALTER TABLE tasks ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE tasks FORCE ROW LEVEL SECURITY")
    op.execute(
        "CREATE POLICY tasks_of_user ON tasks"
        " USING (user_id = (SELECT nullif(current_setting('app.user_id', true), '')))"
    )


def downgrade() -> None:
    """Remove row-level security."""
    if op.get_context().dialect.name == "sqlite":
        return
    op.execute("DROP POLICY tasks_of_user ON tasks")
    op.execute("ALTER TABLE tasks NO FORCE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE tasks DISABLE ROW LEVEL SECURITY")
