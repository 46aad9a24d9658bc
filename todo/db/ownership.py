"""Ownership: the only module that writes the owner into statements. Must not know any owned model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, Protocol, Self, TypeVar, cast

from flask import current_app
from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    ForeignKey,
    Insert,
    Select,
    Table,
    Text,
    bindparam,
    case,
    exists,
    func,
    insert,
    inspect,
    literal_column,
    null,
    select,
    true,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column

from todo.db import db
from todo.db.conflicts import refuse_conflict
from todo.db.failures import DATABASE_ERRORS, is_foreign_key_violation
from todo.db.statements import Names, Statement
from todo.errors import LimitReached
from todo.users.models import User

Row = TypeVar("Row", bound=Struct)
Made = TypeVar("Made")
Owner = ColumnElement[str] | InstrumentedAttribute[str]

#: SQL for PostgreSQL before a statement that counts the user's rows. It makes such statements of a user run one at a
#: time, so that each sees the rows of the previous one. It locks no row, because a new user has none.
ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtextextended(%(user_id)s, 0)); "
#: The owner as a parameter.
USER_ID = bindparam("user_id", type_=Text)
#: The prefix of parameters that are values of columns.
NEW = "new_"


class Narrowable(Protocol):
    """A select, an update or a delete."""

    def where(self, *criteria: ColumnElement[bool]) -> Self:
        """The statement with the criteria added."""


Narrowed = TypeVar("Narrowed", bound=Narrowable)


class Owned:
    """A model whose rows each belong to one user, and are deleted with that user."""

    user_id: Mapped[str] = mapped_column(Text, ForeignKey("users.id", ondelete="CASCADE"))


def owned_by(model: type[Owned], statement: Narrowed) -> Narrowed:
    """Narrow the statement to the rows that its parameter `user_id` owns.

    Every select, update and delete of a request on an owned model calls this. A test reads the queries to check it.
    """
    return statement.where(model.user_id == USER_ID)


def table_of(model: type[Owned]) -> Table:
    """Return the model's table, for inserts: the ORM session rewrites those into a model."""
    return cast(Table, inspect(model).local_table)


class OwnedInsert(Generic[Row]):
    """Inserts a row, and its owner if there is none yet.

    row: the class of the returned row, with a field for each column to return.
    """

    def __init__(self, model: type[Owned], row: type[Row]) -> None:
        self._model = model
        self._row = row
        self._table = table_of(model)
        self._columns = [self._table.columns[name] for name in row.__struct_fields__]
        self._for_known_user = Statement(self._write_for_known_user, row)
        self._with_owner = Statement(self._write_with_owner, row)
        self._in_turn = Statement(self._write_with_owner, row, first=ONE_AT_A_TIME)

    def one(self, user_id: str, email: str | None, values: Mapping[str, Any]) -> Row:
        """Insert and return the row. Columns that are not in `values` get their defaults from the database.

        A known user needs one statement. A new user needs two: the first inserts nothing, the second inserts user and
        row in one transaction. This also works if fifty first rows arrive at once. If the number of rows is limited,
        all users need one statement. The email is left out if another user has it.

        Raises LimitReached, Conflict, or one of DATABASE_ERRORS for any other constraint.
        """
        limit = limit_of(self._table)
        parameters = {"user_id": user_id, **new_values(values)}
        inserted = None
        if limit is None:
            try:
                inserted = self._for_known_user.first(**parameters)
            except DATABASE_ERRORS as error:
                if not is_foreign_key_violation(error):
                    raise
                # The user was deleted at the same moment, and is a new user again.
        else:
            parameters["most"] = limit
        if inserted is None:
            inserted = unless_taken(email, lambda email: self._insert({**parameters, "owner_email": email}))
        if inserted is None:
            raise LimitReached(limit, self._table.name)
        return inserted

    def _insert(self, parameters: Mapping[str, Any]) -> Row | None:
        if db.engine.dialect.name != "sqlite":
            return (self._in_turn if "most" in parameters else self._with_owner).first(**parameters)
        # SQLite has no INSERT within WITH.
        with in_turn() as connection:
            connection.execute(insert_owner("sqlite"), parameters)
            row = connection.execute(self._new(frozenset(parameters)), parameters).one_or_none()
        return None if row is None else self._row(*row)

    def _write_for_known_user(self, names: Names) -> Insert:
        # For a new user this SELECT finds nothing. VALUES would violate the foreign key: PostgreSQL would use up an id,
        # and log an error.
        return insert_new(self._table, names, User.id, User.id == USER_ID).returning(*self._columns)

    def _write_with_owner(self, names: Names) -> Insert:
        return self._new(names).add_cte(insert_owner("postgresql").cte("owner"))

    def _new(self, names: Names) -> Insert:
        criteria = [has_room(self._model)] if "most" in names else []
        return insert_new(self._table, names, USER_ID, *criteria).returning(*self._columns)


def new_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of columns as parameters, with names that no other parameter of a statement has."""
    return {f"{NEW}{name}": value for name, value in values.items()}


def new_parameters(table: Table, names: Names) -> dict[str, BindParameter[Any]]:
    """Return the parameters of new_values() that are among the names: by column, in alphabetical order."""
    columns = {name.removeprefix(NEW): name for name in sorted(names) if name.startswith(NEW)}
    return {column: bindparam(name, type_=table.columns[column].type) for column, name in columns.items()}


def insert_new(table: Table, names: Names, owner: Owner, *criteria: ColumnElement[bool]) -> Insert:
    """Return the insert of new_parameters() for the owner, if the criteria hold."""
    new = {name: sql_cast(value, table.columns[name].type) for name, value in new_parameters(table, names).items()}
    return insert(table).from_select([*new, "user_id"], select(*new.values(), owner).where(*criteria))


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


def is_kept() -> ColumnElement[bool]:
    """SQL: whether the user has a row. It locks the row against deletion until the end of the transaction."""
    user = select(User.id).where(User.id == USER_ID)
    return user.with_for_update(read=True, key_share=True).exists()


def insert_owner(dialect: str) -> Insert:
    """Return the statement that inserts the user's row if there is none, without the email if another user has it.

    Its parameters are user_id and owner_email.
    """
    email = bindparam("owner_email", type_=Text)
    free_email = case((exists().where(User.email == email, User.id != USER_ID), null()), else_=sql_cast(email, Text))
    return (
        (sqlite_insert if dialect == "sqlite" else postgresql_insert)(User)
        # SQLite takes ON CONFLICT for a join's ON, unless there is a WHERE before it.
        .from_select(["id", "email"], select(sql_cast(USER_ID, Text), free_email).where(true()))
        .on_conflict_do_nothing()
    )


def unless_taken(email: str | None, make: Callable[[str | None], Made]) -> Made:
    """Call `make`, which runs insert_owner(), with the email; repeat if that inserted no user.

    This happens if another user took the email, or the user was deleted, at the same moment. The second attempt sees
    that change; the third goes without the email.
    """
    for attempt in (email, email):
        try:
            return make(attempt)
        except DATABASE_ERRORS as error:
            if not is_foreign_key_violation(error):
                raise
    return make(None)


@contextmanager
def in_turn() -> Iterator[Connection]:
    """A transaction on SQLite. It must begin with a change, to become the only writer. Raises Conflict."""
    with db.engine.execution_options(isolation_level="SERIALIZABLE").begin() as connection:
        try:
            yield connection
        except DATABASE_ERRORS as error:
            refuse_conflict(error)
            raise
