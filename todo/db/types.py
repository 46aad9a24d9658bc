"""Column types and SQL functions that differ between SQLite and PostgreSQL. Must not know any table."""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import TIMESTAMP, BigInteger, Boolean, ColumnElement, Dialect, Integer, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from todo.instants import from_microseconds, to_microseconds

#: A 64-bit integer that numbers rows. SQLite numbers them only in a column declared INTEGER, which has 64 bits there.
BigIdentity = BigInteger().with_variant(Integer(), "sqlite")


class UtcInstant(TypeDecorator[str]):
    """An instant with microseconds; in Python the text of answers: RFC 3339, UTC, six digits and `Z`.

    On PostgreSQL a timestamp with time zone. The database writes the text, which costs less than a datetime in Python.
    On SQLite, which has no such type, an integer: microseconds since 1970.
    """

    impl = TIMESTAMP
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column's type in that database."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(BigInteger())
        return dialect.type_descriptor(TIMESTAMP(timezone=True))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """Convert the text for the driver."""
        return to_microseconds(value) if value is not None and dialect.name == "sqlite" else value

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[str]:
        """Return the expression that a statement selects for a column of this type."""
        return instant_text(column)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], str | None] | None:
        """Return the function that makes the text of the driver's value; None if the value is the text."""
        if dialect.name == "sqlite":
            return lambda value: None if value is None else from_microseconds(value)
        return None


class IntegerList(TypeDecorator[Sequence[int]]):
    """A list of integers as a parameter, for is_among(); never a column."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Collection[int] | None, dialect: Dialect) -> Any:
        """Convert the list for the driver: JSON for SQLite's, which has no lists."""
        if value is None:
            return None
        return json.dumps(list(value)) if dialect.name == "sqlite" else list(value)


class instant_text(FunctionElement[str]):  # noqa: N801 (a SQL function, named like SQLAlchemy's own)
    """SQL: the instant as text. On SQLite the integer, from which UtcInstant makes the text."""

    type = UtcInstant()
    inherit_cache = True


class current_instant(FunctionElement[str]):  # noqa: N801
    """SQL: the database's clock at the start of the statement. SQLite's clock has milliseconds."""

    type = UtcInstant()
    inherit_cache = True


class hours_ago(FunctionElement[str]):  # noqa: N801
    """SQL: the database's clock minus that many hours."""

    type = UtcInstant()
    inherit_cache = True


class later_instant(FunctionElement[str]):  # noqa: N801
    """SQL: the database's clock, but at least one microsecond after the argument."""

    type = UtcInstant()
    inherit_cache = True


class octets(FunctionElement[int]):  # noqa: N801
    """SQL: the number of bytes of the text in UTF-8; 0 for NULL."""

    type = BigInteger()
    inherit_cache = True


class is_among(FunctionElement[bool]):  # noqa: N801
    """SQL: whether the first argument is in the second, an IntegerList. If that is NULL, never true."""

    type = Boolean()
    inherit_cache = True


_SQLITE_NOW = "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000"


@compiles(instant_text, "postgresql")
def _(element: instant_text, compiler: SQLCompiler, **kw: Any) -> str:
    instant = compiler.process(element.clauses, **kw)
    return f"to_char({instant} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


@compiles(instant_text, "sqlite")
def _(element: instant_text, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(current_instant, "postgresql")
def _(element: current_instant, compiler: SQLCompiler, **kw: Any) -> str:
    return "now()"


@compiles(current_instant, "sqlite")
def _(element: current_instant, compiler: SQLCompiler, **kw: Any) -> str:
    return _SQLITE_NOW


@compiles(hours_ago, "postgresql")
def _(element: hours_ago, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(now() - make_interval(hours => {compiler.process(element.clauses, **kw)}))"


@compiles(hours_ago, "sqlite")
def _(element: hours_ago, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({_SQLITE_NOW} - {compiler.process(element.clauses, **kw)} * 3600000000)"


@compiles(later_instant, "postgresql")
def _(element: later_instant, compiler: SQLCompiler, **kw: Any) -> str:
    # Through UTC: adding to a timestamptz is not IMMUTABLE, and an update of shards (Citus) accepts nothing else.
    instant = compiler.process(element.clauses, **kw)
    return f"greatest(now(), ({instant} AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC')"


@compiles(later_instant, "sqlite")
def _(element: later_instant, compiler: SQLCompiler, **kw: Any) -> str:
    return f"max({_SQLITE_NOW}, {compiler.process(element.clauses, **kw)} + 1)"


@compiles(octets, "postgresql")
def _(element: octets, compiler: SQLCompiler, **kw: Any) -> str:
    return f"coalesce(octet_length({compiler.process(element.clauses, **kw)}), 0)"


@compiles(octets, "sqlite")
def _(element: octets, compiler: SQLCompiler, **kw: Any) -> str:
    return f"coalesce(length(CAST({compiler.process(element.clauses, **kw)} AS BLOB)), 0)"


@compiles(is_among, "postgresql")
def _(element: is_among, compiler: SQLCompiler, **kw: Any) -> str:
    integer, integers = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({integer} = ANY(CAST({integers} AS BIGINT[])))"


@compiles(is_among, "sqlite")
def _(element: is_among, compiler: SQLCompiler, **kw: Any) -> str:
    integer, integers = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({integer} IN (SELECT value FROM json_each({integers})))"  # noqa: S608 (of what the compiler wrote)
