"""Create idempotency keys"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; on PostgreSQL with the policy of tasks, and one for the command that deletes old keys."""
    is_sqlite = op.get_context().dialect.name == "sqlite"
    instant: sa.types.TypeEngine[Any] = sa.BigInteger() if is_sqlite else sa.TIMESTAMP(timezone=True)
    sqlite_now = "(CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000)"
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("created_at", instant, server_default=sa.text(sqlite_now if is_sqlite else "now()"), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.CheckConstraint("length(key) BETWEEN 1 AND 255", name=op.f("ck_idempotency_keys_key_length")),
        sa.CheckConstraint("length(fingerprint) = 64", name=op.f("ck_idempotency_keys_fingerprint_length")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_idempotency_keys_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_created_at"), "idempotency_keys", ["created_at"])
    if is_sqlite:
        return
    acting_user = "(SELECT nullif(current_setting('app.user_id', true), ''))"
    op.execute("ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY idempotency_keys_of_user ON idempotency_keys USING (user_id = {acting_user})")
    op.execute(
        "CREATE POLICY old_idempotency_keys ON idempotency_keys"
        f" USING ({acting_user} IS NULL AND created_at < now() - interval '24 hours')"
    )


def downgrade() -> None:
    """Drop the table and its policies."""
    op.drop_table("idempotency_keys")
