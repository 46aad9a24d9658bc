"""The statements that every owned table needs: list, find, insert, update and delete rows of one user."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from msgspec import Struct
from sqlalchemy import ColumnElement, Update, bindparam, delete, select, update

from todo.db.ownership import OwnedInsert, new_parameters, new_values, owned_by, table_of
from todo.db.pages import page_of, page_parameters
from todo.db.statements import Names, Query, Statement, columns_of
from todo.db.types import later_instant
from todo.db.versions import as_expected, expectation
from todo.expected import Expected

Row = TypeVar("Row", bound=Struct)
Listed = TypeVar("Listed", bound=Struct)


class OwnedTable(Generic[Row, Listed]):
    """The rows of one model, each call for one user and in one round trip.

    row: the class of a single row, with a field for each column to return. listed: the same for the rows of a list.
    filters: by the name of the parameter, what a list requires of a row.
    """

    def __init__(
        self,
        model: type[Any],
        row: type[Row],
        *,
        listed: type[Listed],
        filters: Mapping[str, ColumnElement[bool]] | None = None,
    ) -> None:
        self.filters = filters or {}
        self._model = model
        self._row = row
        self._columns = columns_of(model, row)
        listed_columns = columns_of(model, listed)
        self._list = Statement(lambda names: page_of(model, listed_columns, self.filters, names), listed)
        self._is_the_row = model.id == bindparam("row_id")
        self._find = Statement(owned_by(model, select(*self._columns)).where(self._is_the_row), row)
        self._insert = OwnedInsert(model, row)
        self._update = Statement(lambda names: self._write_update(names, new_parameters(table_of(model), names)), row)
        self._delete = Statement(self._write_delete, row)

    def list(
        self, user_id: str, filters: Mapping[str, Any], *, before: tuple[str, int] | None, limit: int, size: int
    ) -> Sequence[Listed]:
        """Return at most `limit` of the user's rows, newest first; only those after `before`, a (created_at, id).

        Of a long list, only up to the row with which the texts reach `size` bytes.
        """
        return self._list.all(user_id=user_id, **filters, **page_parameters(before, limit, size))

    def find(self, user_id: str, row_id: int) -> Row | None:
        """Return the user's row with this id, or None."""
        return self._find.first(user_id=user_id, row_id=row_id)

    def insert(self, user_id: str, email: str | None, values: Mapping[str, Any]) -> Row:
        """Insert a row; for a new user also the row in users. Raises LimitReached and Conflict."""
        return self._insert.one(user_id, email, values)

    def update(
        self, user_id: str, row_id: int, changes: Mapping[str, Any], expected: Expected | None = None
    ) -> Row | None:
        """Update the user's row. Return None if there is none, or none of an expected version. Raises Conflict."""
        return self._update.first(user_id=user_id, row_id=row_id, **new_values(changes), **expectation(expected))

    def delete(self, user_id: str, row_id: int, expected: Expected | None = None) -> Row | None:
        """Delete the user's row, and return it as it was. Return None as update() does."""
        return self._delete.first(user_id=user_id, row_id=row_id, **expectation(expected))

    def updating(self, **values: ColumnElement[Any]) -> Callable[[str, int, Expected | None], Row | None]:
        """Return a function like update(), but the database computes the values, so concurrent changes both count."""
        statement = Statement(lambda names: self._write_update(names, values), self._row)

        def change(user_id: str, row_id: int, expected: Expected | None) -> Row | None:
            return statement.first(user_id=user_id, row_id=row_id, **expectation(expected))

        return change

    def _write_update(self, names: Names, values: Mapping[str, Any]) -> Update:
        model = self._model
        changed = as_expected(model, owned_by(model, update(model)).where(self._is_the_row), names)
        changed = changed.values(**values, updated_at=later_instant(model.updated_at), version=model.version + 1)
        return changed.returning(*self._columns)

    def _write_delete(self, names: Names) -> Query:
        model = self._model
        deleted = as_expected(model, owned_by(model, delete(model)).where(self._is_the_row), names)
        return deleted.returning(*self._columns)
