"""Changes of many rows of one user at once, at one instant of the user's clock. Must not know any table."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from sqlalchemy import CTE, ColumnElement, Select, delete, func, literal_column, select, update

from todo.db.clock import NOW, tick
from todo.db.deletions import note_gone, note_in_turn, old_ones
from todo.db.inserts import new_parameters, new_values
from todo.db.ownership import USER_ID, owned_by, table_of
from todo.db.statements import Names, Query, Statement, database

#: The most rows that one call changes.
MOST = 1000


class Changed(Struct, frozen=True):
    """The result of a change of many rows.

    count: how many were changed. has_more: whether there were more than MOST.
    first_owner, last_owner: the owners of the changed rows, in the order of the alphabet; None if there are none.
    """

    count: int
    has_more: bool
    first_owner: str | None
    last_owner: str | None


class _Picked(Struct, frozen=True):
    id: int


class BulkStatements:
    """The changes of all rows of a user that meet some of the filters. Each changes at most MOST rows, oldest first."""

    def __init__(self, model: type[Any], filters: Mapping[str, ColumnElement[bool]]) -> None:
        self._model = model
        self._filters = filters
        self._update = Statement(self._write_update, Changed, in_turn=self._write_update_in_turn)
        self._delete = Statement(self._write_delete, Changed, in_turn=self._write_delete_in_turn)
        self._left = Statement(lambda names: self._pick(names, 1), _Picked)

    def update(self, user_id: str, filters: Mapping[str, Any], changes: Mapping[str, Any]) -> Changed:
        """Update the rows that meet the filters when the call begins. Raises Conflict."""
        return self._run(self._update, {"user_id": user_id, **filters}, new_values(changes))

    def delete(self, user_id: str, filters: Mapping[str, Any]) -> Changed:
        """Delete the rows that meet the filters when the call begins, and note the deletions."""
        return self._run(self._delete, {"user_id": user_id, **filters}, {})

    def _run(self, statement: Statement[Changed], wanted: Mapping[str, Any], new: Mapping[str, Any]) -> Changed:
        rows = statement.all(**wanted, **new)
        if database() == "postgresql":
            return rows[0]
        # SQLite cannot count the rows that it changes. So in turn there is a row of the answer for each of them.
        owners = [str(row.first_owner) for row in rows]
        has_more = len(rows) == MOST and self._left.first(**wanted) is not None
        return Changed(len(rows), has_more, min(owners, default=None), max(owners, default=None))

    def _write_update(self, names: Names) -> Query:
        model = self._model
        picked, clock, is_among_them = self._picked(names)
        values = {**new_parameters(table_of(model), names), "updated_at": clock.c.changed_at}
        rows = owned_by(model, update(model)).where(*is_among_them, clock.c.id == USER_ID)
        return _counted(rows.values(**values).returning(model.user_id).cte("changed"), picked)

    def _write_delete(self, names: Names) -> Query:
        model = self._model
        old = old_ones(model).cte("old")
        picked, clock, is_among_them = self._picked(names, forgotten_at=select(old.c.latest).scalar_subquery())
        rows = owned_by(model, delete(model)).where(*is_among_them, clock.c.id == USER_ID)
        gone = rows.returning(model.id, model.user_id).cte("gone")
        return _counted(note_gone(model, gone, clock, old).cte("noted"), picked)

    def _write_update_in_turn(self, names: Names) -> list[Query]:
        model = self._model
        rows = owned_by(model, update(model)).where(model.id.in_(self._pick(names, MOST)))
        values = {**new_parameters(table_of(model), names), "updated_at": NOW}
        return [tick(), rows.values(**values).returning(*self._one())]

    def _write_delete_in_turn(self, names: Names) -> list[Query]:
        model, picked = self._model, self._pick(names, MOST)
        rows = owned_by(model, delete(model)).where(model.id.in_(picked))
        clock = tick(forgotten_at=old_ones(model).scalar_subquery())
        return [clock, *note_in_turn(model, model.id.in_(picked)), rows.returning(*self._one())]

    def _pick(self, names: Names, most: int) -> Select[Any]:
        model = self._model
        rows = owned_by(model, select(model.id)).where(*self._criteria(names))
        return rows.order_by(model.created_at, model.id).limit(most)

    def _picked(
        self, names: Names, forgotten_at: ColumnElement[str] | None = None
    ) -> tuple[CTE, CTE, list[ColumnElement[bool]]]:
        """Return the rows that the call found, one more than MOST; the clock; and whether a row is to be changed."""
        picked = self._pick(names, MOST + 1).cte("picked")
        first = select(picked.c.id).limit(MOST).cte("first")
        clock = tick(select(picked.c.id).exists(), forgotten_at=forgotten_at).cte("clock")
        # Another change may have come first, while this one waited for the clock. So the criteria are asked again.
        return picked, clock, [self._model.id.in_(select(first.c.id)), *self._criteria(names)]

    def _criteria(self, names: Names) -> list[ColumnElement[bool]]:
        return [criterion for name, criterion in self._filters.items() if name in names]

    def _one(self) -> list[Any]:
        owner = self._model.user_id
        return [literal_column("1"), literal_column("0"), owner, owner.label("last_owner")]


def _counted(changed: CTE, picked: CTE) -> Select[Any]:
    has_more = select(func.count(picked.c.id) > MOST).scalar_subquery()
    return select(func.count(changed.c.user_id), has_more, func.min(changed.c.user_id), func.max(changed.c.user_id))
