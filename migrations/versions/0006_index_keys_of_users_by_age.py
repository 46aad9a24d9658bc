"""Index idempotency keys by user and age"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BY_AGE = "ix_idempotency_keys_created_at"
BY_USER_AND_AGE = "ix_idempotency_keys_user_id_created_at"


def upgrade() -> None:
    """Create the index that finds a user's old keys, and drop the old index.

    On PostgreSQL without a lock that blocks writers. The script of --sql cannot do that, as it is one transaction.
    """
    if op.get_context().dialect.name == "sqlite" or op.get_context().as_sql:
        change_indexes(concurrently=False)
    else:
        with op.get_context().autocommit_block():
            # An interrupted attempt leaves an invalid index.
            op.drop_index(BY_USER_AND_AGE, "idempotency_keys", if_exists=True, postgresql_concurrently=True)
            change_indexes(concurrently=True)


def change_indexes(*, concurrently: bool) -> None:
    """Create the new index and drop the old one, with which PostgreSQL might read the old keys of all users."""
    op.create_index(
        BY_USER_AND_AGE, "idempotency_keys", ["user_id", "created_at"], postgresql_concurrently=concurrently
    )
    op.drop_index(BY_AGE, "idempotency_keys", if_exists=True, postgresql_concurrently=concurrently)


def downgrade() -> None:
    """Create the old index again."""
    op.drop_index(BY_USER_AND_AGE, "idempotency_keys")
    op.create_index(BY_AGE, "idempotency_keys", ["created_at"])
