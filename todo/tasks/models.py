"""The tasks table: columns, constraints, index. schemas.py has the same rules, with messages for callers."""

from sqlalchemy import CheckConstraint, Identity, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from todo.db import Model
from todo.db.ownership import Owned
from todo.db.types import WRITTEN_ONCE, BigIdentity, UtcInstant, current_instant

#: Every character for which str.isspace() is true.
WHITE_SPACE = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


class Task(Owned, Model):
    """One task of one user."""

    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(BigIdentity, Identity(always=True), primary_key=True)
    title: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text, server_default="incomplete")
    created_at: Mapped[str] = mapped_column(UtcInstant, server_default=current_instant(), info=WRITTEN_ONCE)
    updated_at: Mapped[str] = mapped_column(UtcInstant, server_default=current_instant())

    __table_args__ = (
        CheckConstraint("id >= 1", name="id_positive"),
        CheckConstraint("length(title) BETWEEN 1 AND 255", name="title_length"),
        CheckConstraint(f"ltrim(title, '{WHITE_SPACE}') <> ''", name="title_not_blank"),
        CheckConstraint("length(description) <= 5000", name="description_length"),
        CheckConstraint("status IN ('incomplete', 'complete')", name="status_known"),
        # The order of lists, and that of the change feed.
        Index(None, "user_id", created_at.desc(), id.desc()),
        Index(None, "user_id", updated_at, id),
        # Without it SQLite gives the id of a deleted task to the next one.
        {"sqlite_autoincrement": True},
    )
