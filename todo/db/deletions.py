"""The deletions table: which rows were deleted, and when. The change feeds of all resources read it."""

from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Insert,
    PrimaryKeyConstraint,
    Select,
    Text,
    cast,
    insert,
    literal,
    select,
)
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.dml import ReturningInsert

from todo.db import Model
from todo.db.clock import NOW
from todo.db.ownership import Owned, owned_by, table_of
from todo.db.types import UtcInstant

#: Days for which a deletion is kept at least. On PostgreSQL a policy of the table enforces this too, for sessions that
#: act for no user (migration 0007).
KEPT_FOR = 30


class Deletion(Owned, Model):
    """A row that its owner has deleted."""

    __tablename__ = "deletions"

    #: The table that had the row.
    resource: Mapped[str] = mapped_column(Text)
    row_id: Mapped[int] = mapped_column(BigInteger)
    #: By the clock of the owner.
    deleted_at: Mapped[str] = mapped_column(UtcInstant)

    # In the order of a change feed.
    __table_args__ = (PrimaryKeyConstraint("user_id", "resource", "deleted_at", "row_id"),)


def note_gone(model: type[Owned], gone: CTE, clock: CTE) -> ReturningInsert[int, str]:
    """Return the statement that notes the rows of the model that another part, `gone`, deletes.

    It returns row_id and user_id.
    """
    rows = select(gone.c.user_id, literal(table_of(model).name), gone.c.id, clock.c.changed_at)
    noted = note(rows)
    return noted.returning(noted.table.c.row_id, noted.table.c.user_id)


def note_in_turn(model: type[Any], *criteria: ColumnElement[bool]) -> Insert:
    """Return the statement, after tick(), that notes the user's rows of the model which a later one deletes."""
    rows = owned_by(model, select(model.user_id, literal(table_of(model).name), model.id, cast(NOW, UtcInstant)))
    return note(rows.where(*criteria))


def note(rows: Select[Any]) -> Insert:
    """Return the statement that notes deletions. rows: user_id, resource, row_id, deleted_at."""
    return insert(table_of(Deletion)).from_select(["user_id", "resource", "row_id", "deleted_at"], rows)
