"""Ownership: the one place that writes the owner into a statement. Must not know any owned model."""

from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar

from sqlalchemy import (
    ColumnElement,
    ForeignKey,
    Row,
    Text,
    case,
    cast,
    exists,
    insert,
    inspect,
    null,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from todo.extensions import db
from todo.faults import is_foreign_key_violation
from todo.users.models import User

Columns = tuple[Any, ...]


class Narrowable(Protocol):
    """A select, an update or a delete."""

    def where(self, *criteria: ColumnElement[bool]) -> Self:
        """The statement with the criteria added."""


Statement = TypeVar("Statement", bound=Narrowable)


class Owned:
    """A model whose rows each belong to one user, and go with that user."""

    user_id: Mapped[str] = mapped_column(Text, ForeignKey("users.id", ondelete="CASCADE"))


def owned_by(user_id: str, model: type[Owned], statement: Statement) -> Statement:
    """The statement, narrowed to the rows that the user owns.

    Every select, update and delete on an owned model goes through here; a test reads the code for one that does not.
    """
    return statement.where(model.user_id == user_id)


def insert_owned(user_id: str, email: str | None, model: type[Owned], values: Mapping[str, Any]) -> Row[*Columns]:
    """Insert a row with these values (by column) and the user as its owner, and return all of it.

    One statement for a user who owns something already. For the first thing that a user owns it inserts nothing, and
    the user's row is made together with the thing, in one transaction: also when fifty first things arrive at once.
    The email is left out where another user has it. Raises IntegrityError for any other constraint.
    """
    if (row := _insert_for_known(user_id, model, values)) is not None:
        return row
    db.session.rollback()
    try:
        return _insert_with_owner(user_id, email, model, values)
    except IntegrityError as error:
        if not is_foreign_key_violation(error):
            raise
        # Somebody else took the email at the same moment, and ON CONFLICT made no user.
        db.session.rollback()
    return _insert_with_owner(user_id, None, model, values)


def _insert_for_known(user_id: str, model: type[Owned], values: Mapping[str, Any]) -> Row[*Columns] | None:
    # From a SELECT that finds nothing for a new user, rather than from VALUES that break the foreign key: PostgreSQL
    # would have spent an id on those, and logged an error.
    columns = inspect(model).columns
    row = select(*(cast(value, columns[name].type) for name, value in values.items()), User.id)
    statement = insert(model).from_select([*values, "user_id"], row.where(User.id == user_id))
    return db.session.execute(statement.returning(*columns)).one_or_none()


def _insert_with_owner(user_id: str, email: str | None, model: type[Owned], values: Mapping[str, Any]) -> Row[*Columns]:
    is_sqlite = db.engine.dialect.name == "sqlite"
    free_email = case((exists().where(User.email == email), null()), else_=cast(email, Text))
    owner = (
        (sqlite_insert if is_sqlite else postgresql_insert)(User)
        # SQLite cannot tell ON CONFLICT from a join's ON without a WHERE before it.
        .from_select(["id", "email"], select(cast(user_id, Text), free_email).where(true()))
        .on_conflict_do_nothing()
    )
    statement = insert(model).values(**values, user_id=user_id).returning(*inspect(model).columns)
    if not is_sqlite:
        return db.session.execute(statement.add_cte(owner.cte("owner"))).one()
    # SQLite has no INSERT within WITH: two statements, hence an explicit transaction.
    db.session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
    db.session.execute(owner)
    row = db.session.execute(statement).one()
    db.session.commit()
    return row
