"""Ownership: the one place that writes the owner into a statement. Must not know any owned model."""

from typing import Any, Protocol, Self, TypeVar

from sqlalchemy import ColumnElement, ForeignKey, Row, Text
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.dml import ReturningInsert

from todo.database import is_foreign_key_violation
from todo.extensions import db
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


def insert_owned(user_id: str, email: str | None, statement: ReturningInsert[*Columns]) -> Row[*Columns]:
    """Run the insert with the user as its owner, and return its row.

    One statement for a user who owns something already. For the first thing that a user owns the foreign key fails,
    and the user's row is made together with it, in one transaction: also when fifty first things arrive at once. The
    email is left out where another user has it. Raises IntegrityError for any other constraint.
    """
    statement = statement.values(user_id=user_id)
    try:
        return db.session.execute(statement).one()
    except IntegrityError as error:
        _pass_only_missing_owner(error)
    try:
        return _insert_with_owner(user_id, email, statement)
    except IntegrityError as error:
        # ON CONFLICT DO NOTHING made no user: somebody else has the email.
        _pass_only_missing_owner(error)
    return _insert_with_owner(user_id, None, statement)


def _pass_only_missing_owner(error: IntegrityError) -> None:
    db.session.rollback()
    if not is_foreign_key_violation(error):
        raise error


def _insert_with_owner(user_id: str, email: str | None, statement: ReturningInsert[*Columns]) -> Row[*Columns]:
    if db.engine.dialect.name == "sqlite":
        # SQLite has no INSERT within WITH: two statements, hence an explicit transaction.
        db.session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        db.session.execute(sqlite_insert(User).values(id=user_id, email=email).on_conflict_do_nothing())
        row = db.session.execute(statement).one()
        db.session.commit()
        return row
    owner = postgresql_insert(User).values(id=user_id, email=email).on_conflict_do_nothing().cte("owner")
    return db.session.execute(statement.add_cte(owner)).one()
