"""The service with a fault of the clock or of the feed: `PLANTED=NAME gunicorn tests.faults.planted:app`.

Each fault is a simpler design, which loses changes. Users must exist before their first create.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Insert,
    MetaData,
    Select,
    Table,
    Text,
    cast,
    delete,
    func,
    null,
    select,
)

from todo import create_app
from todo.db import bulk, clock, deletions, inserts, pages, table, types
from todo.db.bulk import BulkStatements
from todo.db.deletions import Deletion, note
from todo.db.ownership import USER_ID, owned_by
from todo.db.statements import Names, Query, Statement
from todo.db.table import OwnedId, OwnedTable
from todo.db.types import UtcInstant, current_instant
from todo.idempotency import once
from todo.tasks.models import Task
from todo.users.models import User

Plant = Callable[[], None]
#: Seconds between the two statements of a deletion.
PAUSE = 0.003
#: Deletions that the first statement has carried out, and the second one has not noted yet.
LATER = Table(
    "deletions_later",
    MetaData(),
    Column("user_id", Text),
    Column("resource", Text),
    Column("row_id", BigInteger),
    Column("deleted_at", UtcInstant),
)
#: SQL that creates it.
CREATE_LATER = "CREATE TABLE deletions_later AS SELECT user_id, resource, row_id, deleted_at FROM deletions"


def now_without_the_lock() -> None:
    """A change happens at now(), and waits for no other. The clock is the instant of the latest change."""
    changed = owned_by(Task, select(func.max(Task.updated_at, type_=UtcInstant()))).scalar_subquery()
    deleted = owned_by(Deletion, select(func.max(Deletion.deleted_at, type_=UtcInstant()))).scalar_subquery()
    latest: Any = func.greatest(changed, deleted, User.forgotten_at, type_=UtcInstant())

    def header_of(columns: Sequence[Any]) -> Select[Any]:
        values: dict[str, Any] = {"id": User.incarnation, "created_at": User.forgotten_at, "updated_at": latest}
        header = [values.get(column.key, cast(null(), column.type)).label(column.key) for column in columns]
        return select(*header).where(User.id == USER_ID)

    vars(pages).update(header_of=header_of)
    vars(clock).update(CLOCK=select(latest).where(User.id == USER_ID).scalar_subquery())
    for module in (table, bulk):
        vars(module).update(tick=_now)
    for module in (inserts, once):
        vars(module).update(tick_or_start=_now)


def coarse_clock() -> None:
    """No fault: SQLite's clock has tenths of a second. A write takes so long there that no two share a millisecond."""
    types.current_instant.sqlite = f"({types.current_instant.sqlite} / 100000 * 100000)"


def clock_without_its_microsecond() -> None:
    """Two changes may happen at the same instant."""
    types.later_instant.postgresql = "greatest({0}, {1})"
    types.later_instant.sqlite = types.later_instant.sqlite.replace("{1} + 1", "{1}")
    coarse_clock()


def keyed_creates_without_the_clock() -> None:
    """A create with a key happens at now(), and leaves the clock as it is."""
    coarse_clock()
    vars(once).update(tick_or_start=_now)


def deletions_by_a_second_statement(*, at_another_instant: bool = False) -> None:
    """A deletion is noted in a second transaction: with the instant of the first, or with one of its own."""
    of_user = LATER.c.user_id == USER_ID

    def write(_: Names) -> Query:
        gone = delete(LATER).where(of_user).returning(*LATER.c).cte("gone")
        rows = select(gone)
        if at_another_instant:
            now = clock.tick(select(LATER).where(of_user).exists()).cte("clock")
            rows = select(gone.c.user_id, gone.c.resource, gone.c.row_id, now.c.changed_at).where(now.c.id == USER_ID)
        return select(gone.c.row_id, gone.c.user_id).add_cte(note(rows).cte("noted"))

    def write_in_turn(_: Names) -> list[Query]:
        now = cast(clock.NOW, UtcInstant) if at_another_instant else LATER.c.deleted_at
        rows = select(LATER.c.user_id, LATER.c.resource, LATER.c.row_id, now).where(of_user)
        gone = delete(LATER).where(of_user).returning(LATER.c.row_id, LATER.c.user_id)
        return [clock.tick() if at_another_instant else _now(), note(rows), gone]

    second = Statement(write, OwnedId, in_turn=write_in_turn)

    def in_two_statements(first: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(first)
        def run(self: Any, user_id: str, *arguments: Any) -> Any:
            result = first(self, user_id, *arguments)
            time.sleep(PAUSE)
            second.all(user_id=user_id)
            return result

        return run

    vars(deletions).update(note=_postponed)
    for kind in (OwnedTable, BulkStatements):
        kind.delete = in_two_statements(kind.delete)  # type: ignore[method-assign]


def _now(*criteria: ColumnElement[bool], **_: object) -> Any:
    return select(User.id, current_instant().label("changed_at")).where(User.id == USER_ID, *criteria)


def _postponed(rows: Select[Any]) -> Insert:
    return LATER.insert().from_select([column.key for column in LATER.c], rows)


HARMLESS: dict[str, Plant] = {"a coarse clock": coarse_clock}
FAULTS: dict[str, Plant] = {
    "now() without the lock": now_without_the_lock,
    "the clock without its microsecond": clock_without_its_microsecond,
    "deletions by a second statement": deletions_by_a_second_statement,
    "deletions by a second statement at another instant": partial(
        deletions_by_a_second_statement, at_another_instant=True
    ),
    "keyed creates without the clock": keyed_creates_without_the_clock,
}
if planted := os.environ.get("PLANTED"):
    (HARMLESS | FAULTS)[planted]()
    app = create_app()
