"""Index idempotency keys by user and age"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BY_AGE = "ix_idempotency_keys_created_at"
BY_USER_AND_AGE = "ix_idempotency_keys_user_id_created_at"


def upgrade() -> None:
    """Make the index by which a create finds its user's old keys, while the table is written to; drop the other."""
    with op.get_context().autocommit_block():
        # What an attempt that was broken off has left, is of no use.
        op.drop_index(BY_USER_AND_AGE, "idempotency_keys", if_exists=True, postgresql_concurrently=True)
        op.create_index(BY_USER_AND_AGE, "idempotency_keys", ["user_id", "created_at"], postgresql_concurrently=True)
        # With it PostgreSQL might look for one user's old keys among those of all.
        op.drop_index(BY_AGE, "idempotency_keys", if_exists=True, postgresql_concurrently=True)


def downgrade() -> None:
    """Make the index of all users' keys again."""
    op.drop_index(BY_USER_AND_AGE, "idempotency_keys")
    op.create_index(BY_AGE, "idempotency_keys", ["created_at"])
