"""Add clocks of users, and deletions"""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COUNT_CHANGES = Path(__file__).parents[1] / "count_changes.sql"
COUNT_CHANGES_ON_SQLITE = COUNT_CHANGES.with_name("count_changes_on_sqlite.sql")
SQLITE_NOW = "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000"


def upgrade() -> None:
    """Add what the code after 0006 needs. The code before it goes on, but does not use the clocks."""
    is_sqlite = op.get_context().dialect.name == "sqlite"
    instant: sa.types.TypeEngine[Any] = sa.BigInteger() if is_sqlite else sa.TIMESTAMP(timezone=True)
    if not is_sqlite:
        # In the order in which a create locks them: the task, then its foreign key. In the other order each of the two
        # waits for the other, and with a few writers no attempt succeeds.
        op.execute("LOCK TABLE tasks IN SHARE ROW EXCLUSIVE MODE")
        op.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
    op.add_column("users", sa.Column("incarnation", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    for name in ("changed_at", "forgotten_at"):
        # PostgreSQL evaluates now() once, and writes no row. SQLite accepts only a constant.
        default = sa.text("0" if is_sqlite else "now()")
        op.add_column("users", sa.Column(name, instant, server_default=default, nullable=False))
    op.create_table(
        "deletions",
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("row_id", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", instant, nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_deletions_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user_id", "resource", "deleted_at", "row_id", name=op.f("pk_deletions")),
    )
    if is_sqlite:
        op.execute(f"UPDATE users SET changed_at = {SQLITE_NOW}, forgotten_at = {SQLITE_NOW}")  # noqa: S608
        op.execute(COUNT_CHANGES_ON_SQLITE.read_text())
        return
    secure_deletions()
    op.execute(COUNT_CHANGES.read_text())


def secure_deletions() -> None:
    """Create the policy of tasks, and one for the command that deletes old rows."""
    acting_user = "(SELECT nullif(current_setting('app.user_id', true), ''))"
    op.execute("ALTER TABLE deletions ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE deletions FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY deletions_of_user ON deletions USING (user_id = {acting_user})")
    op.execute(
        "CREATE POLICY old_deletions ON deletions"
        f" USING ({acting_user} IS NULL AND deleted_at < now() - interval '30 days')"
    )


def downgrade() -> None:
    """Remove what upgrade added."""
    if op.get_context().dialect.name == "sqlite":
        op.execute("DROP TRIGGER count_changes")
    else:
        op.execute("DROP TRIGGER count_changes ON tasks")
        op.execute("DROP FUNCTION count_changes()")
    op.drop_table("deletions")
    op.drop_column("users", "forgotten_at")
    op.drop_column("users", "changed_at")
    op.drop_column("users", "incarnation")
