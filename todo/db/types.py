"""Column types and SQL functions that differ between SQLite and PostgreSQL. Must not know any table."""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from psycopg2 import extensions
from sqlalchemy import TIMESTAMP, BigInteger, Boolean, ColumnElement, Dialect, Engine, Integer, Text, event
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from todo.instants import from_microseconds, to_microseconds

Value = TypeVar("Value")

_SQLITE_NOW = "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000"

#: A 64-bit integer that numbers rows. SQLite numbers them only in a column declared INTEGER, which has 64 bits there.
BigIdentity = BigInteger().with_variant(Integer(), "sqlite")

#: The `info` of a column that an insert sets, and no update: readiness does not ask for the right to update it.
WRITTEN_ONCE = {"is_written_once": True}


class UtcInstant(TypeDecorator[str]):
    """An instant with microseconds. In Python it is the text that answers show: RFC 3339, UTC, six digits and `Z`.

    On PostgreSQL a timestamp with time zone. Statements select it in UTC, without the time zone, and the driver makes
    the text of what the database sends. A datetime in between would cost more.
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
        return instant_in_utc(column)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], str | None] | None:
        """Return the function that turns the driver's value into text; None if it is text already."""
        if dialect.name == "sqlite":
            return lambda value: None if value is None else from_microseconds(value)
        return None


def init_app(engine: Engine) -> None:
    """Let each connection to PostgreSQL return a timestamp without time zone as the text that answers show."""
    if engine.dialect.name == "postgresql":
        event.listen(engine, "connect", _return_text)


def _return_text(connection: Any, _record: object) -> None:
    extensions.register_type(_TEXT_OF_TIMESTAMP, connection)


def _text_of_timestamp(timestamp: Any, _cursor: object) -> Any:
    if timestamp is None:
        return None
    if timestamp[-7] != ".":
        # PostgreSQL leaves out the zeros at the end.
        seconds, _, fraction = timestamp.partition(".")
        timestamp = f"{seconds}.{fraction:0<6}"
    return timestamp.replace(" ", "T") + "Z"


# 1114 is the type's number. The driver itself sets DateStyle to ISO.
_TEXT_OF_TIMESTAMP = extensions.new_type((1114,), "TEXT_OF_TIMESTAMP", _text_of_timestamp)


class InstantList(TypeDecorator[Sequence[str]]):
    """A list of instants as a parameter, for is_among(); never a column."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Collection[str] | None, dialect: Dialect) -> Any:
        """Convert the list for the driver: JSON for SQLite's, which has no lists."""
        if value is None:
            return None
        return json.dumps(list(map(to_microseconds, value))) if dialect.name == "sqlite" else list(value)


class SqlFunction(FunctionElement[Value]):
    """A function of SQL that each database writes in its own way; `{0}` in the templates is the first argument."""

    postgresql: str
    sqlite: str

    def __init_subclass__(cls) -> None:
        # SQLAlchemy looks for this on each class. It may cache, since instances differ only in their arguments.
        cls.inherit_cache = True


@compiles(SqlFunction)
def _(element: SqlFunction[Any], compiler: SQLCompiler, **kw: Any) -> str:
    template: str = getattr(element, compiler.dialect.name)
    return template.format(*(compiler.process(argument, **kw) for argument in element.clauses))


class instant_in_utc(SqlFunction[str]):  # noqa: N801 (a SQL function, named like SQLAlchemy's own)
    """SQL: the instant as an answer needs it. The driver makes the text; on SQLite UtcInstant does.

    It is IMMUTABLE: a change of shards (Citus) returns nothing else.
    """

    type = UtcInstant()
    postgresql = "{0} AT TIME ZONE 'UTC'"
    sqlite = "{0}"


class instant_text(SqlFunction[str]):  # noqa: N801
    """SQL: the instant as the text that answers show. Only for PostgreSQL."""

    type = Text()
    postgresql = "to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


class current_instant(SqlFunction[str]):  # noqa: N801
    """SQL: the database's clock at the start of the statement. SQLite's clock has milliseconds."""

    type = UtcInstant()
    postgresql = "now()"
    sqlite = _SQLITE_NOW


class hours_ago(SqlFunction[str]):  # noqa: N801
    """SQL: the database's clock minus that many hours."""

    type = UtcInstant()
    postgresql = "(now() - make_interval(hours => {0}))"
    sqlite = f"({_SQLITE_NOW} - {{0}} * 3600000000)"


class random_number(SqlFunction[int]):  # noqa: N801
    """SQL: a random whole number from 1, with 31 bits."""

    type = BigInteger()
    postgresql = "(1 + floor(random() * 2147483646))::bigint"
    sqlite = "(1 + abs(random() % 2147483646))"


class long_ago_or_now(SqlFunction[str]):  # noqa: N801
    """SQL: the default of an instant in a column that is added later: SQLite accepts only a constant."""

    type = UtcInstant()
    postgresql = "now()"
    sqlite = "0"


class later_instant(SqlFunction[str]):  # noqa: N801
    """SQL: the first argument, which is now, but at least one microsecond after the second."""

    type = UtcInstant()
    # Through UTC: adding to a timestamptz is not IMMUTABLE, and a change of shards (Citus) accepts nothing else.
    postgresql = "greatest({0}, ({1} AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC')"
    sqlite = "max({0}, {1} + 1)"


class later_of(SqlFunction[str]):  # noqa: N801
    """SQL: the later one of two instants. The second may be NULL."""

    type = UtcInstant()
    postgresql = "greatest({0}, {1})"
    sqlite = "max({0}, coalesce({1}, 0))"


class octets(SqlFunction[int]):  # noqa: N801
    """SQL: the number of bytes of the text in UTF-8; 0 for NULL."""

    type = BigInteger()
    postgresql = "coalesce(octet_length({0}), 0)"
    sqlite = "coalesce(length(CAST({0} AS BLOB)), 0)"


class is_among(SqlFunction[bool]):  # noqa: N801
    """SQL: whether the first argument is in the second, an InstantList. If that is NULL, never true."""

    type = Boolean()
    postgresql = "({0} = ANY(CAST({1} AS TIMESTAMPTZ[])))"
    sqlite = "({0} IN (SELECT value FROM json_each({1})))"
