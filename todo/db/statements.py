"""Statements that are compiled once, and run on a plain cursor of the pool. Must not know any table.

SQLAlchemy writes the SQL, converts values and keeps the connections, but it does not execute the statement. Without
this module a get costs 2.3 times the CPU, a list 1.9, a create 1.4, a complete 1.9 (docs/decisions/speed.md).
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Generic, TypeVar, cast

from msgspec import Struct
from sqlalchemy import CompoundSelect, Delete, Dialect, Engine, Insert, PoolProxiedConnection, Select, Update

from todo.db import db
from todo.db.conflicts import refuse_conflict
from todo.db.failures import DRIVER_ERRORS
from todo.db.pool import Pool

Row = TypeVar("Row", bound=Struct)
Convert = Callable[[Any], Any]
Parameters = Mapping[str, Any]
#: The names of the parameters that a statement is given.
Names = frozenset[str]
#: The parameter of statements in turn: the instant of the change.
INSTANT = "instant"
Query = Select[Any] | CompoundSelect[Any] | Insert | Update | Delete


def columns_of(model: type[Any], row: type[Struct]) -> list[Any]:
    """Return the model's column for each field of the row."""
    return [getattr(model, name) for name in row.__struct_fields__]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """The SQL of a statement for one database, and the conversions of parameters (inward) and columns (outward)."""

    sql: str
    literals: Parameters
    inward: Sequence[tuple[str, Convert]]
    outward: Sequence[tuple[int, Convert]]

    def bind(self, parameters: Parameters) -> Parameters:
        """Convert the parameters for the driver."""
        values = {**self.literals, **parameters}
        for name, convert in self.inward:
            values[name] = convert(values[name])
        return values

    def convert(self, rows: Iterable[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
        """Convert the driver's rows, one column at a time."""
        if not self.outward:
            return rows
        columns: list[Iterable[Any]] = list(zip(*rows, strict=True))
        for position, convert in self.outward if columns else ():
            columns[position] = map(convert, columns[position])
        return zip(*columns, strict=True)


class Statement(Generic[Row]):
    """A statement that any thread can execute on either database, compiled once. Each execution is a transaction.

    Its parameters are SQLAlchemy's bindparam(). A missing one raises KeyError or an error of the driver; it is never
    NULL.

    statement: what to execute. If it depends on which parameters are given, a function that writes it: this is called
    with their names, once for each set of names.
    row: the class of the rows that are returned, with a field for each column.
    in_turn: writes what the databases `in_turn_on` execute instead: several statements, in one transaction. The first
    is tick() or tick_or_start() (todo/db/clock.py), which makes this the user's only writer. The others have its
    instant as the parameter INSTANT. If a query among them returns no row, all are undone. The rows are those of the
    last one.
    in_turn_on: SQLite has no change within WITH. Citus carries one out on several machines if it inserts.
    first: SQL for PostgreSQL that is executed before the statement, in the same round trip and transaction. The
    statement sees what was committed while that SQL waited.
    """

    def __init__(
        self,
        statement: Query | Callable[[Names], Query],
        row: type[Row],
        *,
        in_turn: Callable[[Names], Sequence[Query]] | None = None,
        in_turn_on: Collection[str] = ("sqlite", "citus"),
        first: str = "",
    ) -> None:
        self._statement = statement
        self._in_turn = in_turn
        self._in_turn_on = in_turn_on
        self._first = first
        self._row = row
        self._compiled: dict[tuple[str, Names], Sequence[_Compiled]] = {}

    def all(self, **parameters: Any) -> list[Row]:
        """Execute, and return all rows. Raises Conflict, or one of DATABASE_ERRORS (todo/db/failures.py)."""
        try:
            return self._all(parameters)
        except DRIVER_ERRORS as error:
            refuse_conflict(error)
            raise

    def _all(self, parameters: Parameters) -> list[Row]:
        engine = db.engine
        connection = engine.raw_connection()
        cursor = connection.cursor()
        rows: Sequence[Any]
        try:
            key = _kind(engine), frozenset(parameters)
            steps = self._compiled.get(key) or self._compile(*key)
            if len(steps) > 1:
                rows = _execute_in_turn(connection, cursor, steps, parameters)
            else:
                cursor.execute(steps[0].sql, steps[0].bind(parameters))
                rows = cursor.fetchall()
        except BaseException as error:
            if isinstance(error, DRIVER_ERRORS) and not getattr(connection, "closed", False):
                connection.close()
            else:
                # It is broken, or still has a statement to finish.
                connection.invalidate()
            raise
        connection.close()
        return list(starmap(self._row, steps[-1].convert(rows)))

    def first(self, **parameters: Any) -> Row | None:
        """Execute, and return the first row, or None. Raises the same as all()."""
        rows = self.all(**parameters)
        return rows[0] if rows else None

    def _compile(self, database: str, names: Names) -> Sequence[_Compiled]:
        first = ""
        if self._in_turn is not None and database in self._in_turn_on:
            statements = self._in_turn(names)
        else:
            statements = [self._statement(names) if callable(self._statement) else self._statement]
            first = self._first
        dialect = db.engine.dialect
        self._compiled[database, names] = [_compiled(each, dialect, first) for each in statements]
        return self._compiled[database, names]


def database() -> str:
    """Return the kind of the database: "sqlite", "postgresql" or "citus". The first call may connect to ask."""
    return _kind(db.engine)


def _kind(engine: Engine) -> str:
    return "citus" if engine.name == "postgresql" and cast(Pool, engine.pool).is_citus() else engine.name


def _execute_in_turn(
    connection: PoolProxiedConnection, cursor: Any, steps: Sequence[_Compiled], parameters: Parameters
) -> list[Any]:
    """Execute the statements in one transaction, and return the rows of the last one: see Statement."""
    driver: Any = connection.driver_connection
    is_sqlite = isinstance(driver, sqlite3.Connection)
    if is_sqlite:
        cursor.execute("BEGIN IMMEDIATE")
    else:
        # The driver sends BEGIN before the first statement.
        driver.autocommit = False
    try:
        rows = _rows_in_turn(cursor, steps, parameters)
        if rows:
            driver.commit()
        else:
            driver.rollback()
    except BaseException:
        # Else the locks would last as long as the cursor.
        cursor.close()
        with suppress(*DRIVER_ERRORS):
            driver.rollback()
        raise
    finally:
        if not is_sqlite and not driver.closed:
            driver.autocommit = True
    return rows


def _rows_in_turn(cursor: Any, steps: Sequence[_Compiled], parameters: Parameters) -> list[Any]:
    rows: list[Any] = []
    for step in steps:
        cursor.execute(step.sql, step.bind(parameters))
        if cursor.description is None:
            continue
        rows = cursor.fetchall()
        if not rows:
            break
        if step is steps[0]:
            ((_, instant),) = step.convert(rows)
            parameters = {**parameters, INSTANT: instant}
    return rows


def _compiled(statement: Query, dialect: Dialect, first: str) -> _Compiled:
    compiled = statement.compile(dialect=dialect)
    inward: dict[str, Convert] = {}
    outward, literals = [], {}
    # bind_names is not documented: tests/test_statements.py tells if an upgrade changes it. It has an entry for each
    # bindparam(), also if several have the same name.
    for parameter, name in compiled.bind_names.items():
        convert = parameter.type.dialect_impl(dialect).bind_processor(dialect)
        if not parameter.required:
            literals[name] = parameter.value
        if convert is not None:
            inward[name] = convert
    for position, column in enumerate(statement.exported_columns):
        convert = column.type.dialect_impl(dialect).result_processor(dialect, None)
        if convert is not None:
            outward.append((position, convert))
    return _Compiled(first + compiled.string, literals, [*inward.items()], outward)
