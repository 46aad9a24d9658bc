"""Add versions to tasks"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and its constraint in one clause: SQLite cannot add a constraint alone."""
    op.execute(
        "ALTER TABLE tasks ADD COLUMN version BIGINT DEFAULT 1 NOT NULL "
        f"CONSTRAINT {op.f('ck_tasks_version_positive')} CHECK (version >= 1)"
    )


def downgrade() -> None:
    """Drop the column and its constraint."""
    op.drop_column("tasks", "version")
