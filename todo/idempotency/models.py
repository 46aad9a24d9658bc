"""The idempotency_keys table: what each user created under which key."""

from sqlalchemy import CheckConstraint, Index, PrimaryKeyConstraint, Text
from sqlalchemy.orm import Mapped, mapped_column

from todo.db import Model
from todo.db.ownership import Owned
from todo.db.types import WRITTEN_ONCE, UtcInstant, current_instant


class IdempotencyKey(Owned, Model):
    """A key that a user sent with a create, and the result. Keys are unique for each user."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(Text)
    #: SHA-256 of the request's values, in hexadecimal.
    fingerprint: Mapped[str] = mapped_column(Text, info=WRITTEN_ONCE)
    #: The created row in JSON, as it was when it was new.
    answer: Mapped[str] = mapped_column(Text, info=WRITTEN_ONCE)
    created_at: Mapped[str] = mapped_column(UtcInstant, server_default=current_instant(), info=WRITTEN_ONCE)

    __table_args__ = (
        PrimaryKeyConstraint("user_id", "key"),
        Index(None, "user_id", "created_at"),
        CheckConstraint("length(key) BETWEEN 1 AND 255", name="key_length"),
        CheckConstraint("length(fingerprint) = 64", name="fingerprint_length"),
    )
