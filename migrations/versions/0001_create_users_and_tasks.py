"""Create users and tasks"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Every character for which Python's str.isspace() is true.
WHITE_SPACE = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)

# The same for a string constant of PostgreSQL, in ASCII: the script of --sql then has no tabs, and works in any
# client encoding.
WHITE_SPACE_ESCAPED = "".join(f"\\u{ord(character):04x}" for character in WHITE_SPACE)


def upgrade() -> None:
    """Create the two tables, and on PostgreSQL the function that searches use."""
    if op.get_context().dialect.name == "sqlite":
        # SQLite numbers rows only in a column declared INTEGER, and has no type for instants.
        task_id = sa.Column("id", sa.Integer(), nullable=False)
        instant: sa.types.TypeEngine[Any] = sa.BigInteger()
        now = sa.text("(CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000)")
        white_space = f"'{WHITE_SPACE}'"
    else:
        task_id = sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False)
        instant = sa.TIMESTAMP(timezone=True)
        now = sa.text("now()")
        white_space = f"E'{WHITE_SPACE_ESCAPED}'"
        create_fold_case()
    op.create_table(
        "users",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.CheckConstraint("length(id) BETWEEN 1 AND 255", name=op.f("ck_users_id_length")),
        sa.CheckConstraint("length(email) BETWEEN 1 AND 320", name=op.f("ck_users_email_length")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_table(
        "tasks",
        task_id,
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default="incomplete", nullable=False),
        sa.Column("created_at", instant, server_default=now, nullable=False),
        sa.Column("updated_at", instant, server_default=now, nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.CheckConstraint("id >= 1", name=op.f("ck_tasks_id_positive")),
        sa.CheckConstraint("length(title) BETWEEN 1 AND 255", name=op.f("ck_tasks_title_length")),
        sa.CheckConstraint(f"ltrim(title, {white_space}) <> ''", name=op.f("ck_tasks_title_not_blank")),
        sa.CheckConstraint("length(description) <= 5000", name=op.f("ck_tasks_description_length")),
        sa.CheckConstraint("status IN ('incomplete', 'complete')", name=op.f("ck_tasks_status_known")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_tasks_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_tasks_user_id_created_at_id"), "tasks", ["user_id", sa.text("created_at DESC"), sa.text("id DESC")]
    )


def downgrade() -> None:
    """Drop what upgrade created."""
    op.drop_index(op.f("ix_tasks_user_id_created_at_id"), table_name="tasks")
    op.drop_table("tasks")
    op.drop_table("users")
    if op.get_context().dialect.name != "sqlite":
        op.execute("DROP FUNCTION fold_case(text)")


def create_fold_case() -> None:
    """Create fold_case(text), which removes the case of all letters, whatever the database's locale.

    Under these collations upper() and lower() know all letters. The best is first: built in from PostgreSQL 18, ICU's
    if the server has ICU, built in from PostgreSQL 17. The server chooses, as the script of --sql knows no server.
    """
    op.execute(
        """
        DO $choose$
        DECLARE
            chosen text;
        BEGIN
            SELECT name INTO STRICT chosen
            FROM unnest(ARRAY['pg_unicode_fast', 'und-x-icu', 'pg_c_utf8']) WITH ORDINALITY AS known (name, place)
            WHERE name IN (SELECT collname FROM pg_collation) ORDER BY place LIMIT 1;
            EXECUTE 'CREATE FUNCTION fold_case(text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE'
                || ' AS $$ SELECT upper(lower($1 COLLATE "' || chosen || '")) $$';
        END $choose$
        """
    )
