"""The deletions table: which rows were deleted, and when. The change feeds of all resources read it.

A deletion also forgets some old ones of its user, so that the table does not grow with time (docs/decisions/clock.md).
"""

from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Delete,
    Insert,
    PrimaryKeyConstraint,
    Select,
    Text,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
)
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.dml import ReturningInsert

from todo.db import Model
from todo.db.clock import NOW
from todo.db.ownership import USER_ID, Owned, owned_by, table_of
from todo.db.types import UtcInstant, hours_ago
from todo.users.models import User

#: Days for which a deletion is kept at least. On PostgreSQL a policy of the table enforces this too, for sessions that
#: act for no user (migration 0007).
KEPT_FOR = 30
#: How many old deletions a deletion forgets, and all others of the same instants. Each deletion adds one instant, and
#: forgets at least one that is old. So the number of old instants never grows.
FORGOTTEN_AT_ONCE = 10


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


def is_of(model: type[Owned]) -> ColumnElement[bool]:
    """SQL: whether a row of the model was deleted."""
    return Deletion.resource == literal(table_of(model).name)


def note_gone(model: type[Owned], gone: CTE, clock: CTE, old: CTE) -> ReturningInsert[int, str]:
    """Return the statement that notes the rows of the model that another part, `gone`, deletes, and forgets `old` ones.

    It returns row_id and user_id.
    """
    rows = select(gone.c.user_id, literal(table_of(model).name), gone.c.id, clock.c.changed_at)
    noted = note(rows)
    # Only with the clock, which then says that they are forgotten.
    forgotten = _forget(model, select(old.c.latest)).where(clock.c.id == USER_ID).cte("forgotten")
    return noted.returning(noted.table.c.row_id, noted.table.c.user_id).add_cte(forgotten)


def note_in_turn(model: type[Any], *criteria: ColumnElement[bool]) -> list[Insert | Delete]:
    """Return the statements, after tick(), that forget old deletions, and note the rows which a later one deletes."""
    # What has become old since tick() waits for the next deletion.
    known = Deletion.deleted_at <= select(User.forgotten_at).where(User.id == USER_ID).scalar_subquery()
    rows = owned_by(model, select(model.user_id, literal(table_of(model).name), model.id, cast(NOW, UtcInstant)))
    return [_forget(model, old_ones(model)).where(known), note(rows.where(*criteria))]


def old_ones(model: type[Owned]) -> Select[str]:
    """Return one row: the instant up to which a deletion of a row of the model forgets others; NULL if none are old."""
    is_old = Deletion.deleted_at < hours_ago(literal_column(str(KEPT_FOR * 24)))
    oldest = owned_by(Deletion, select(Deletion.deleted_at)).where(is_of(model), is_old)
    oldest = oldest.order_by(Deletion.deleted_at).limit(FORGOTTEN_AT_ONCE)
    return select(func.max(oldest.subquery().c.deleted_at, type_=UtcInstant()).label("latest"))


def _forget(model: type[Owned], latest: Select[Any]) -> Delete:
    up_to = Deletion.deleted_at <= latest.scalar_subquery()
    return owned_by(Deletion, delete(Deletion)).where(is_of(model), up_to)


def note(rows: Select[Any]) -> Insert:
    """Return the statement that notes deletions. rows: user_id, resource, row_id, deleted_at."""
    return insert(table_of(Deletion)).from_select(["user_id", "resource", "row_id", "deleted_at"], rows)
