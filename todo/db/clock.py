"""The clock of each user. Every change of what a user owns happens at an instant of that user's clock.

The clock is `users.changed_at`. The statement of a change takes it forward: to now, or to 1 µs after the latest change
if it does not read less than that. A second writer waits for the user's row, then reads the new instant. So the
instants of one user are in the order of the commits, and a client that knows everything up to an instant misses
nothing before it (docs/decisions/clock.md). Must not know any owned model.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Insert, Select, Text, Update, bindparam, cast, null, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from todo.db import db
from todo.db.conflicts import violated
from todo.db.failures import DATABASE_ERRORS
from todo.db.ownership import USER_ID
from todo.db.statements import INSTANT
from todo.db.types import UtcInstant, current_instant, later_instant, later_of, random_number
from todo.users.models import User

Made = TypeVar("Made")

#: SQL: the user's clock.
CLOCK: ColumnElement[str] = select(User.changed_at).where(User.id == USER_ID).scalar_subquery()
#: The instant of a change whose statements go in turn, after tick() or tick_or_start() (todo/db/statements.py).
NOW = bindparam(INSTANT, type_=UtcInstant)


def tick(*criteria: ColumnElement[bool], forgotten_at: ColumnElement[str] | None = None) -> Update:
    """Return the statement that takes the user's clock forward if the criteria hold. It returns id and changed_at.

    forgotten_at: the instant of the latest deletion that another part of the change forgets, or NULL.
    """
    values: dict[str, ColumnElement[str]] = {"changed_at": later_instant(current_instant(), User.changed_at)}
    if forgotten_at is not None:
        values["forgotten_at"] = later_of(User.forgotten_at, forgotten_at)
    return update(User).where(User.id == USER_ID, *criteria).values(values).returning(User.id, User.changed_at)


def tick_or_start(*criteria: ColumnElement[bool]) -> Insert:
    """Return the same for a user who may be new. It then inserts the user's row; its parameter owner_email may be NULL.

    It violates the unique constraint of the email if the user is new and another user has the email: unless_taken().
    """
    email = bindparam("owner_email", type_=Text)
    values: dict[str, Any] = {
        "id": cast(USER_ID, Text),
        "email": cast(email, Text),
        "incarnation": random_number(),
        "changed_at": current_instant(),
        "forgotten_at": current_instant(),
    }
    inserted = (sqlite_insert if db.engine.name == "sqlite" else postgresql_insert)(User)
    # VALUES wherever possible: Citus would send the rows of a SELECT from one machine to another.
    new = (
        inserted.from_select([*values], select(*values.values()).where(*criteria))
        if criteria
        else inserted.values(values)
    )
    # The row that was not inserted has now() in changed_at. Citus refuses now() itself here.
    later = later_instant(inserted.excluded.changed_at, User.changed_at)
    new = new.on_conflict_do_update(index_elements=["id"], set_={"changed_at": later})
    return new.returning(User.id, User.changed_at)


def unless_taken(email: str | None, make: Callable[[str | None], Made]) -> Made:
    """Call `make`, which runs tick_or_start(), with the email; again without it if another user has the email."""
    try:
        return make(email)
    except DATABASE_ERRORS as error:
        unique = violated(error)
        if unique is None or unique.table is not User.__table__:
            raise
    return make(None)


def forget() -> Update:
    """Return the statement after which every sync of the user must start again. It takes the clock forward too.

    Whatever deletes rows without a line in the deletions table runs it first, in the same transaction.
    """
    now = later_instant(current_instant(), User.changed_at)
    return update(User).where(User.id == USER_ID).values(changed_at=now, forgotten_at=now)


def header_of(columns: Sequence[Any]) -> Select[Any]:
    """Return the row that stands before those of a page: NULL, but for the clock in updated_at.

    created_at has forgotten_at, and id the incarnation of the user. There is no such row for a user who has never
    created anything.
    """
    values: dict[str, Any] = {
        "id": User.incarnation,
        "created_at": User.forgotten_at,
        "updated_at": User.changed_at,
    }
    header = [values.get(column.key, cast(null(), column.type)).label(column.key) for column in columns]
    return select(*header).where(User.id == USER_ID)


def is_news() -> ColumnElement[bool]:
    """SQL: whether the clock is another than the parameter `known`. In WHERE only PostgreSQL evaluates it once."""
    return CLOCK.is_distinct_from(bindparam("known", type_=UtcInstant))
