"""The users table: rows that owned rows refer to. Accounts belong to the identity provider."""

from sqlalchemy import BigInteger, CheckConstraint, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from todo.db import Model
from todo.db.types import WRITTEN_ONCE, UtcInstant, long_ago_or_now


class User(Model):
    """A user who has created something. The row is inserted with the first thing that the user owns."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("length(id) BETWEEN 1 AND 255", name="id_length"),
        CheckConstraint("length(email) BETWEEN 1 AND 320", name="email_length"),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    email: Mapped[str | None] = mapped_column(Text, unique=True, info=WRITTEN_ONCE)
    #: A random number of this row: the user may be erased, and created again. 0 in rows that are older than the column.
    incarnation: Mapped[int] = mapped_column(BigInteger, server_default=text("0"), info=WRITTEN_ONCE)
    #: The user's clock: the instant of the latest change of what the user owns (todo/db/clock.py).
    changed_at: Mapped[str] = mapped_column(UtcInstant, server_default=long_ago_or_now())
    #: Deletions up to this instant may have been forgotten. A sync that does not know them must start again.
    forgotten_at: Mapped[str] = mapped_column(UtcInstant, server_default=long_ago_or_now())
