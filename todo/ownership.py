"""Ownership: the one place that writes the owner into a statement. Must not know any owned model."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, Self, TypeVar

from msgspec import Struct
from sqlalchemy import (
    ColumnElement,
    ForeignKey,
    Insert,
    Text,
    bindparam,
    case,
    cast,
    exists,
    insert,
    null,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from todo.extensions import db
from todo.faults import DATABASE_ERRORS, is_foreign_key_violation
from todo.statements import Statement, columns_of
from todo.users.models import User

Row = TypeVar("Row", bound=Struct)
Made = TypeVar("Made")


class Narrowable(Protocol):
    """A select, an update or a delete."""

    def where(self, *criteria: ColumnElement[bool]) -> Self:
        """The statement with the criteria added."""


Narrowed = TypeVar("Narrowed", bound=Narrowable)


class Owned:
    """A model whose rows each belong to one user, and go with that user."""

    user_id: Mapped[str] = mapped_column(Text, ForeignKey("users.id", ondelete="CASCADE"))


def owned_by(model: type[Owned], statement: Narrowed) -> Narrowed:
    """The statement, narrowed to the rows that its parameter `user_id` owns.

    Every select, update and delete of a request on an owned model goes through here; a test reads the queries for one
    that does not.
    """
    return statement.where(model.user_id == bindparam("user_id"))


class OwnedInsert(Generic[Row]):
    """The insert of a row, as `row` with a field for each column to return, together with its owner if need be.

    columns: those that get a value; user_id is always one more, and the database gives the others theirs.
    """

    def __init__(self, model: type[Owned], row: type[Row], *columns: str) -> None:
        self._model = model
        self._row = row
        self._returned = columns_of(model, row)
        # From a SELECT that finds nothing for a new user, rather than from VALUES that break the foreign key:
        # PostgreSQL would have spent an id on those, and logged an error.
        values = [cast(bindparam(name), getattr(model, name).type) for name in columns]
        known_user = select(*values, User.id).where(User.id == bindparam("user_id"))
        statement = insert(model).from_select([*columns, "user_id"], known_user)
        self._for_known_user = Statement(statement.returning(*self._returned), row)

    def one(self, user_id: str, email: str | None, **values: Any) -> Row:
        """The inserted row.

        One statement for a user who owns something already. For the first thing that a user owns it inserts nothing,
        and the user's row is made together with the thing, in one transaction: also when fifty first things arrive at
        once. The email is left out where another user has it. Raises one of DATABASE_ERRORS for any other constraint.
        """
        try:
            inserted = self._for_known_user.first(user_id=user_id, **values)
        except DATABASE_ERRORS as error:
            if not is_foreign_key_violation(error):
                raise
            # The user was deleted at the same moment, and is a new one again.
            inserted = None
        if inserted is not None:
            return inserted
        return unless_taken(email, lambda email: self._with_owner(user_id, email, values))

    def _with_owner(self, user_id: str, email: str | None, values: Mapping[str, Any]) -> Row:
        owner = insert_owner(user_id, email)
        statement = insert(self._model).values(**values, user_id=user_id).returning(*self._returned)
        if db.engine.dialect.name != "sqlite":
            return self._row(*db.session.execute(statement.add_cte(owner.cte("owner"))).one())
        # SQLite has no INSERT within WITH: two statements, hence an explicit transaction.
        begin()
        db.session.execute(owner)
        inserted = self._row(*db.session.execute(statement).one())
        db.session.commit()
        return inserted


def insert_owner(user_id: str, email: str | None) -> Insert:
    """The statement that makes the user's row where there is none, without the email where another user has it."""
    free_email = case((exists().where(User.email == email, User.id != user_id), null()), else_=cast(email, Text))
    return (
        (sqlite_insert if db.engine.dialect.name == "sqlite" else postgresql_insert)(User)
        # SQLite cannot tell ON CONFLICT from a join's ON without a WHERE before it.
        .from_select(["id", "email"], select(cast(user_id, Text), free_email).where(true()))
        .on_conflict_do_nothing()
    )


def unless_taken(email: str | None, make: Callable[[str | None], Made]) -> Made:
    """What `make` makes of the email, together with insert_owner(), which may have made no user all the same.

    That is so where somebody else took the email at the same moment, or where the user was deleted. A second try sees
    what the first one met; a third goes without the email.
    """
    for attempt in (email, email):
        try:
            return make(attempt)
        except IntegrityError as error:
            if not is_foreign_key_violation(error):
                raise
            db.session.rollback()
    return make(None)


def begin() -> None:
    """Begin a transaction of the session, which is in autocommit otherwise; its end is the caller's to see to."""
    db.session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
