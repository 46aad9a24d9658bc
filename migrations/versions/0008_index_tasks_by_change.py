"""Index tasks by user and change"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

BY_CHANGE = "ix_tasks_user_id_updated_at_id"
COLUMNS = ["user_id", "updated_at", "id"]


def upgrade() -> None:
    """Create the index of the change feed: on PostgreSQL without a lock that blocks writers, but for a script."""
    if op.get_context().dialect.name == "sqlite" or op.get_context().as_sql:
        op.create_index(BY_CHANGE, "tasks", COLUMNS)
        return
    with op.get_context().autocommit_block():
        # An interrupted attempt leaves an invalid index.
        op.drop_index(BY_CHANGE, "tasks", if_exists=True, postgresql_concurrently=True)
        op.create_index(BY_CHANGE, "tasks", COLUMNS, postgresql_concurrently=True)


def downgrade() -> None:
    """Drop the index."""
    op.drop_index(BY_CHANGE, table_name="tasks")
