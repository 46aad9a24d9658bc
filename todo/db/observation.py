"""Reports statements and connections as they are used, and waits for them, for metrics. Knows no metric."""

import sqlite3
from collections.abc import Callable
from time import perf_counter
from typing import Any, cast

from sqlalchemy import Engine, event

from todo.db.connections import LimitedCursor
from todo.db.pool import Pool


def observe(
    engine: Engine,
    *,
    begin: Callable[[], Any],
    wait: Callable[[float], Any],
    take: Callable[[], Any],
    give_back: Callable[[], Any],
    wait_to_take: Callable[[float], Any],
) -> None:
    """Call a function when something happens.

    begin: before each statement.
    wait: after the driver has worked on a statement, with the seconds that this took.
    take: when a connection leaves the pool.
    give_back: when it is back, or lost.
    wait_to_take: after a wait for a connection, a free one or a new one, with its seconds. Also if it failed.
    """
    _observe_statements(engine, begin, wait)
    _observe_connections(engine, take, give_back)
    # The pool of every engine: see connections.engine_options().
    cast(Pool, engine.pool).observe(wait_to_take)


def _observe_statements(engine: Engine, begin: Callable[[], Any], wait: Callable[[float], Any]) -> None:
    """Time the drivers' cursors: every statement runs on one, through SQLAlchemy or not (todo/db/statements.py)."""

    def timed(call: Callable[..., Any], *arguments: Any) -> Any:
        started = perf_counter()
        try:
            return call(*arguments)
        finally:
            wait(perf_counter() - started)

    class PostgresqlCursor(LimitedCursor):
        def execute(self, query: Any, vars: Any = None) -> None:
            begin()
            timed(super().execute, query, vars)

    # SQLite looks for a row only when it is fetched, so that its fetches are timed too.
    class SqliteCursor(sqlite3.Cursor):
        def execute(self, *arguments: Any) -> Any:
            begin()
            return timed(super().execute, *arguments)

        def fetchone(self) -> Any:
            return timed(super().fetchone)

        def fetchall(self) -> Any:
            return timed(super().fetchall)

    class SqliteConnection(sqlite3.Connection):
        def cursor(self, *_: Any) -> Any:
            return super().cursor(SqliteCursor)

    factory = {"factory": SqliteConnection} if engine.name == "sqlite" else {"cursor_factory": PostgresqlCursor}

    def connect(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
        parameters |= factory

    event.listen(engine, "do_connect", connect)


def _observe_connections(engine: Engine, take: Callable[[], Any], give_back: Callable[[], Any]) -> None:
    def checkout(_connection: object, record: Any, _proxy: object) -> None:
        record.record_info["is_observed"] = True
        take()

    def checkin(_connection: object, record: Any) -> None:
        # A connection that was lost, and could not be replaced, is checked in without having been checked out.
        if record.record_info.pop("is_observed", False):
            give_back()

    event.listen(engine, "checkout", checkout)
    event.listen(engine, "checkin", checkin)
