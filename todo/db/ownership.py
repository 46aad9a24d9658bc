"""Ownership: the only module that writes the owner into statements. Must not know any owned model."""

from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar, cast

from flask import current_app
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    ForeignKey,
    Select,
    Table,
    Text,
    bindparam,
    func,
    inspect,
    literal_column,
    select,
)
from sqlalchemy.orm import Mapped, mapped_column

from todo.db.types import WRITTEN_ONCE

#: SQL for PostgreSQL before a statement that counts the user's rows. It makes such statements of a user run one at a
#: time, so that each sees the rows of the previous one. It locks no row, because a new user has none.
ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtextextended(%(user_id)s, 0)); "
#: The owner as a parameter.
USER_ID = bindparam("user_id", type_=Text)


class Narrowable(Protocol):
    """A select, an update or a delete."""

    def where(self, *criteria: ColumnElement[bool]) -> Self:
        """The statement with the criteria added."""


Narrowed = TypeVar("Narrowed", bound=Narrowable)


class Owned:
    """A model whose rows each belong to one user, and are deleted with that user."""

    user_id: Mapped[str] = mapped_column(Text, ForeignKey("users.id", ondelete="CASCADE"), info=WRITTEN_ONCE)


def owned_by(model: type[Owned], statement: Narrowed) -> Narrowed:
    """Narrow the statement to the rows that its parameter `user_id` owns.

    Every select, update and delete of a request on an owned model calls this. A test reads the queries to check it.
    """
    return statement.where(model.user_id == USER_ID)


def table_of(model: type[Owned]) -> Table:
    """Return the model's table, for inserts: the ORM session rewrites those into a model."""
    return cast(Table, inspect(model).local_table)


def limit_of(table: Table) -> int | None:
    """Return how many rows of the table a user may have; None: any number."""
    limits: Mapping[str, int] = current_app.config["ROWS_PER_USER"]
    return limits.get(table.name)


def has_room(model: type[Owned], *criteria: ColumnElement[bool]) -> ColumnElement[bool]:
    """SQL: whether fewer rows of the user meet the criteria than the parameter `most`. It counts no further."""
    most = bindparam("most", type_=BigInteger)
    counted: Select[*tuple[Any, ...]] = owned_by(model, select(literal_column("1"))).where(*criteria)
    return select(func.count()).select_from(counted.limit(most).subquery()).scalar_subquery() < most


def evaluated_once(rows: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """Wrap the rows for IN: PostgreSQL may evaluate a sub-select with a limit again for each row that it compares."""
    once = rows.cte("once")
    return select(*once.c)
