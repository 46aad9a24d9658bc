"""Inserts of owned rows, and of their owner if there is none yet, at an instant of the owner's clock."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from msgspec import Struct
from sqlalchemy import CTE, BindParameter, Insert, Table, bindparam, cast, insert, literal_column, select

from todo.db.clock import NOW, tick_or_start, unless_taken
from todo.db.ownership import ONE_AT_A_TIME, USER_ID, Owned, has_room, limit_of, table_of
from todo.db.statements import Names, Query, Statement
from todo.errors import LimitReached

Row = TypeVar("Row", bound=Struct)

#: The prefix of parameters that are values of columns.
NEW = "new_"


class OwnedInsert(Generic[Row]):
    """Inserts a row, and its owner if there is none yet.

    row: the class of the returned row, with a field for each column to return.
    """

    def __init__(self, model: type[Owned], row: type[Row]) -> None:
        self._model = model
        self._table = table_of(model)
        self._columns = [self._table.columns[name] for name in row.__struct_fields__]
        self._statement = Statement(self._write, row, in_turn=self._write_in_turn)
        self._limited = Statement(self._write, row, in_turn=self._write_in_turn, first=ONE_AT_A_TIME)

    def one(self, user_id: str, email: str | None, values: Mapping[str, Any]) -> Row:
        """Insert and return the row. Columns that are not in `values` get their defaults from the database.

        This is one statement, also for a new user, and if fifty first rows arrive at once. Only if the user is new and
        another user has the email, a second one inserts the user without it.

        Raises LimitReached, Conflict, or one of DATABASE_ERRORS for any other constraint.
        """
        limit = limit_of(self._table)
        parameters = {"user_id": user_id, **new_values(values)}
        if limit is not None:
            parameters["most"] = limit
        statement = self._statement if limit is None else self._limited
        inserted = unless_taken(email, lambda email: statement.first(**parameters, owner_email=email))
        if inserted is None:
            raise LimitReached(limit, self._table.name)
        return inserted

    def _write(self, names: Names) -> Query:
        criteria = [has_room(self._model)] if "most" in names else []
        clock = tick_or_start(*criteria).cte("clock")
        return insert_new(self._table, names, clock).returning(*self._columns).add_cte(clock)

    def _write_in_turn(self, names: Names) -> list[Query]:
        room: list[Query] = [select(literal_column("1")).where(has_room(self._model))] if "most" in names else []
        return [tick_or_start(), *room, insert_in_turn(self._table, names).returning(*self._columns)]


def new_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of columns as parameters, with names that no other parameter of a statement has."""
    return {f"{NEW}{name}": value for name, value in values.items()}


def new_parameters(table: Table, names: Names) -> dict[str, BindParameter[Any]]:
    """Return the parameters of new_values() that are among the names: by column, in alphabetical order."""
    columns = {name.removeprefix(NEW): name for name in sorted(names) if name.startswith(NEW)}
    return {column: bindparam(name, type_=table.columns[column].type) for column, name in columns.items()}


def insert_new(table: Table, names: Names, clock: CTE) -> Insert:
    """Return the insert of new_parameters() with what `clock`, tick_or_start(), returns: no row, no insert."""
    new = {name: cast(value, table.columns[name].type) for name, value in new_parameters(table, names).items()}
    now = clock.c.changed_at
    row = select(*new.values(), clock.c.id, now.label("created_at"), now.label("updated_at"))
    return insert(table).from_select([*new, "user_id", "created_at", "updated_at"], row)


def insert_in_turn(table: Table, names: Names) -> Insert:
    """Return the insert of new_parameters() after tick_or_start().

    Citus carries out VALUES on one machine, with an id of the coordinator. With a SELECT the id may be a worker's.
    """
    new = new_parameters(table, names)
    return insert(table).values(**new, user_id=USER_ID, created_at=NOW, updated_at=NOW)
