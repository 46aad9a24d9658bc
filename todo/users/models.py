"""The users that own things: a reference only, since accounts belong to the identity provider."""

from sqlalchemy import CheckConstraint, Text
from sqlalchemy.orm import Mapped, mapped_column

from todo.db import Model


class User(Model):
    """Whoever has made something here. The row appears with the first thing that the user owns."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("length(id) BETWEEN 1 AND 255", name="id_length"),
        CheckConstraint("length(email) BETWEEN 1 AND 320", name="email_length"),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    email: Mapped[str | None] = mapped_column(Text, unique=True)
