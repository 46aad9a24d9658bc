"""The statements that every owned table needs: those of one row, and the pages of all rows of one user."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Generic, TypeVar

from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Update,
    bindparam,
    delete,
    or_,
    select,
    update,
)

from todo.db.bulk import BulkStatements
from todo.db.clock import NOW, tick
from todo.db.deletions import note_gone, note_in_turn, old_ones
from todo.db.inserts import OwnedInsert, new_parameters, new_values
from todo.db.ownership import USER_ID, owned_by, table_of
from todo.db.pages import changes_of, page_of, page_parameters
from todo.db.statements import Names, Query, Statement, columns_of
from todo.db.types import InstantList, is_among
from todo.expected import Expected
from todo.pages import Page, PageWanted, UserClock

Row = TypeVar("Row", bound=Struct)


# Named here, because OwnedTable has a method `list`.
Queries = list[Query]
Criteria = list[ColumnElement[bool]]
#: The parameter that names a row.
ROW_ID = bindparam("row_id", type_=BigInteger)
#: The parameters of a change that expects a state: the fields of Expected.
EXPECTATION = ("wanted", "unwanted")


class OwnedId(Struct, frozen=True):
    """A row that was deleted."""

    id: int
    user_id: str


class OwnedTable(Generic[Row]):
    """The rows of one model, each call for one user and in one round trip.

    row: the class of a row, with a field for each column to return.
    filters: by the name of the parameter, what a list or a change of many rows requires of a row.
    bulk: the changes of many rows.
    """

    def __init__(
        self, model: type[Any], row: type[Row], *, filters: Mapping[str, ColumnElement[bool]] | None = None
    ) -> None:
        self.filters = filters or {}
        self._model = model
        self._row = row
        self._columns = columns_of(model, row)
        self._list = Statement(lambda names: page_of(model, self._columns, self.filters, names), row)
        self._changes = Statement(lambda names: changes_of(model, self._columns, names), row)
        self._find = Statement(owned_by(model, select(*self._columns)).where(model.id == ROW_ID), row)
        self._insert = OwnedInsert(model, row)
        self.bulk = BulkStatements(model, self.filters)
        self._update = self._updating(lambda names: new_parameters(table_of(model), names))
        self._delete = Statement(self._write_delete, OwnedId, in_turn=self._write_delete_in_turn)

    def list(self, user_id: str, filters: Mapping[str, Any], wanted: PageWanted) -> Page[Row]:
        """Return a page of the user's rows, newest first."""
        return _page(self._list.all(user_id=user_id, **filters, **page_parameters(wanted)))

    def changes(self, user_id: str, wanted: PageWanted) -> Page[Row]:
        """Return a page of the user's rows in the order of their last changes.

        A deletion is a row of which only id, user_id and updated_at are not None.
        """
        return _page(self._changes.all(user_id=user_id, **page_parameters(wanted)))

    def find(self, user_id: str, row_id: int) -> Row | None:
        """Return the user's row with this id, or None."""
        return self._find.first(user_id=user_id, row_id=row_id)

    def insert(self, user_id: str, email: str | None, values: Mapping[str, Any]) -> Row:
        """Insert a row; for a new user also the row in users. Raises LimitReached and Conflict."""
        return self._insert.one(user_id, email, values)

    def update(
        self, user_id: str, row_id: int, changes: Mapping[str, Any], expected: Expected | None = None
    ) -> Row | None:
        """Update the user's row. Return None if there is none, or not as expected. Raises Conflict."""
        return self._update.first(user_id=user_id, row_id=row_id, **new_values(changes), **expectation(expected))

    def delete(self, user_id: str, row_id: int, expected: Expected | None = None) -> OwnedId | None:
        """Delete the user's row, and note the deletion. Return None as update() does."""
        return self._delete.first(user_id=user_id, row_id=row_id, **expectation(expected))

    def updating(self, **values: ColumnElement[Any]) -> Callable[[str, int, Expected | None], Row | None]:
        """Return a function like update(), but the database computes the values, so concurrent changes both count."""
        statement = self._updating(lambda names: values)

        def change(user_id: str, row_id: int, expected: Expected | None) -> Row | None:
            return statement.first(user_id=user_id, row_id=row_id, **expectation(expected))

        return change

    def _updating(self, values_of: Callable[[Names], Mapping[str, Any]]) -> Statement[Row]:
        model = self._model

        def write(names: Names) -> Query:
            clock = self._tick(names).cte("clock")
            changed = owned_by(model, update(model)).where(*self._is_expected(names), clock.c.id == USER_ID)
            return changed.values(**values_of(names), updated_at=clock.c.changed_at).returning(*self._columns)

        def write_in_turn(names: Names) -> Queries:
            changed = owned_by(model, update(model)).where(*self._is_expected(names))
            return [tick(), changed.values(**values_of(names), updated_at=NOW).returning(*self._columns)]

        # To Citus this is one statement for one machine.
        return Statement(write, self._row, in_turn=write_in_turn, in_turn_on=["sqlite"])

    def _write_delete(self, names: Names) -> Query:
        model = self._model
        old = old_ones(model).cte("old")
        clock = self._tick(names, forgotten_at=select(old.c.latest).scalar_subquery()).cte("clock")
        row = owned_by(model, delete(model)).where(*self._is_expected(names), clock.c.id == USER_ID)
        gone = row.returning(model.id, model.user_id).cte("gone")
        return note_gone(model, gone, clock, old)

    def _write_delete_in_turn(self, names: Names) -> Queries:
        model, is_expected = self._model, self._is_expected(names)
        gone = owned_by(model, delete(model)).where(*is_expected)
        clock = tick(forgotten_at=old_ones(model).scalar_subquery())
        return [clock, *note_in_turn(model, *is_expected), gone.returning(model.id, model.user_id)]

    def _tick(self, names: Names, forgotten_at: ColumnElement[str] | None = None) -> Update:
        # Only if there is something to change: after a refused change every client has the current clock.
        row = owned_by(self._model, select(self._model.id)).where(*self._is_expected(names))
        return tick(row.exists(), forgotten_at=forgotten_at)

    def _is_expected(self, names: Names) -> Criteria:
        """SQL: whether it is the row, in an expected state. Of several changes the database decides which is first."""
        is_row = self._model.id == ROW_ID
        if names.isdisjoint(EXPECTATION):
            return [is_row]
        wanted, unwanted = (bindparam(name, type_=InstantList) for name in EXPECTATION)
        changed_at = self._model.updated_at
        return [is_row, or_(wanted.is_(None), is_among(changed_at, wanted)), ~is_among(changed_at, unwanted)]


def expectation(expected: Expected | None) -> dict[str, Any]:
    """Return the parameters of an expected state; none if any state is accepted."""
    return {} if expected is None else asdict(expected)


def _page(rows: Sequence[Any]) -> Page[Any]:
    if not rows:
        return Page(rows, None)
    header, *others = rows
    # header_of() puts the clock into these fields.
    return Page(others, UserClock(header.updated_at, header.created_at, header.id))
