"""The set-up of connections, the time that a request may spend on the database, and lost connections.

Must not know any table.
"""

import select
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import Any

import psycopg2
from flask import Flask
from psycopg2 import errors, extensions
from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError

from config import Settings
from todo.db import acting_user
from todo.db.hosts import resolve_hosts
from todo.db.pool import Pool

#: Seconds that one request may spend on the database, connecting included. A hosted database that sleeps needs most of
#: this to wake.
REQUEST_BUDGET = 9.0
#: SQL before each statement of a request, in the same round trip and, because of autocommit, the same transaction.
#: PostgreSQL then stops a statement that is too slow or waits for a lock, as nobody waits for its result any more. A
#: plain SET does not work through a transaction pooler, and limits of the role would need a set-up.
STATEMENT_LIMITS = "SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '3s'; "
#: Seconds to wait for SQLite's one writer. A change waits once, a first task at most twice.
SQLITE_BUSY_TIMEOUT = 2.5
#: How many instructions SQLite runs between two checks of the time. A search of ten rows takes about as many.
STEPS = 1000

#: When the current request must be done with the database (time.monotonic). None outside requests, as in migrations.
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
#: Within limited_to(): the seconds that a statement may take, and when they end (time.monotonic).
_limit: ContextVar[tuple[float, float] | None] = ContextVar("limit", default=None)
#: When a connection last broke, or stopped answering, during a statement (time.monotonic).
_lost_at = 0.0
#: A comment with the id of the current request, for PostgreSQL's log and pg_stat_activity. A comment costs
#: nothing that can be measured (docs/decisions/metrics.md), and passes every pooler.
_comment: ContextVar[str] = ContextVar("comment", default="")


class LimitedCursor(extensions.cursor):
    """A cursor that tells PostgreSQL the time limits of a request's statements, and the user."""

    connection: acting_user.Connection

    def execute(self, query: Any, vars: Any = None) -> None:
        """Execute as psycopg2 does, after STATEMENT_LIMITS and the acting user if there is a request.

        Without parameters there is no acting user: a statement on owned rows has their owner as a parameter.
        """
        if (limit := _limit.get()) is not None:
            query = f"SET LOCAL statement_timeout = {round(limit[0] * 1000)}; {query}"
        is_limited = _deadline.get() is not None
        user_id = acting_user.current.get() if vars else None
        if acting_user_sql := self.connection.acting_user(user_id, is_limited=is_limited):
            query = acting_user_sql + query
            vars = {**vars, "app_user_id": user_id}
        if is_limited:
            query = STATEMENT_LIMITS + query
        query = _comment.get() + query
        try:
            super().execute(query, vars)
        except errors.ReadOnlySqlTransaction:
            # The session may stay read-only after the database, or its successor, accepts writes again.
            self.connection.close()
            raise


def act_for(user_id: str | None) -> None:
    """Set whose rows later statements may see and change, in this thread and until the end of the request."""
    acting_user.current.set(user_id)


@contextmanager
def limited_to(seconds: float) -> Iterator[None]:
    """Stop each statement in the block that takes longer: see is_stopped() in todo/db/failures.py."""
    token = _limit.set((seconds, monotonic() + seconds))
    try:
        yield
    finally:
        _limit.reset(token)


@contextmanager
def budget() -> Iterator[None]:
    """Limit the time that the block may spend on the database, as that of a request is limited."""
    _start_budget()
    try:
        yield
    finally:
        _end_budget(None)


def was_lost_since(instant: float) -> bool:
    """Whether a connection broke, or stopped answering, after that instant (time.monotonic)."""
    return _lost_at >= instant


def engine_options(settings: Settings) -> dict[str, Any]:
    """The arguments of create_engine: autocommit, and one connection for each thread."""
    options: dict[str, Any] = {
        # A statement is its own transaction: one round trip instead of three, and no lock is held between statements.
        "isolation_level": "AUTOCOMMIT",
        "poolclass": Pool,
        "pool_size": settings.threads,
        "max_overflow": 0,
        # Under autocommit a connection that returns has nothing to roll back. Code that begins a transaction ends it.
        "pool_reset_on_return": None,
        # Users wrote the parameters: they must not be in the text of errors.
        "hide_parameters": True,
    }
    if settings.database_url.get_backend_name() == "sqlite":
        # Named parameters, like PostgreSQL's driver (todo/db/statements.py).
        return options | {"connect_args": {"timeout": SQLITE_BUSY_TIMEOUT}, "paramstyle": "named"}
    url = settings.database_url
    # If the URL names a host, PGHOSTADDR in the environment must not replace it.
    address = {"hostaddr": ""} if (url.host or "host" in url.query) and "hostaddr" not in url.query else {}
    return options | {
        "pool_use_lifo": True,
        # Else each new connection would look up a type that nothing uses.
        "use_native_hstore": False,
        # The kernel's probes find a peer that went away without a word. All of these are options of libpq itself, so
        # that a connection pooler does not see them.
        "connect_args": {
            "connection_factory": acting_user.Connection,
            "cursor_factory": LimitedCursor,
            **address,
            "application_name": "todo",
            # PGCLIENTENCODING, the role or the database may set another encoding, which lacks letters.
            "client_encoding": "utf8",
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            # In milliseconds. The kernel gives up data that the server's machine does not acknowledge. It could else
            # deliver a statement long after its 503, and overwrite what has been written since.
            "tcp_user_timeout": 5000,
        },
    }


def init_app(app: Flask, engine: Engine, request_id: Callable[[], str | None]) -> None:
    """Set up each new connection, limit the time of each request, and replace lost connections.

    request_id: the id of the current request. It must not be able to end a comment.
    """
    app.before_request(partial(_start_request, request_id))
    app.teardown_request(_end_budget)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    else:
        event.listen(engine, "do_connect", _resolve_hosts)
        event.listen(engine, "connect", acting_user.ask_once(engine))
        event.listen(engine, "connect", _note_age)
        event.listen(engine, "checkout", _replace_if_lost)
        # psycopg2 has one callback for the whole process. Without it a server that stops answering blocks the thread.
        extensions.set_wait_callback(_wait_within_budget)


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    # In WAL mode readers and the writer do not wait for each other, across processes too. The file keeps the mode.
    # While another process writes to a new file SQLite refuses at once, and a later connection sets it.
    with suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")
    connection.set_progress_handler(_is_overdue, STEPS)


def _is_overdue() -> bool:
    """Whether SQLite, which asks every STEPS, must stop the statement."""
    limit, deadline = _limit.get(), _deadline.get()
    now = monotonic()
    return (limit is not None and now > limit[1]) or (deadline is not None and now > deadline)


def _resolve_hosts(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
    if (deadline := _deadline.get()) is not None:
        resolve_hosts(parameters, deadline)


def _note_age(_connection: object, record: Any) -> None:
    record.info["connected_at"] = monotonic()
    record.info["is_new"] = True


def _replace_if_lost(connection: Any, record: Any, _proxy: object) -> None:
    """Replace a pooled connection that the server has closed, or that is older than the last loss of another.

    Neither check takes a round trip. An idle connection has nothing to read, unless the server ended it: it restarted,
    went to sleep, or was told to. Whatever broke one connection (a firewall that forgot it, say) may have broken those
    of its age, and each would take a request's whole budget to notice. A new connection is not checked: SQLAlchemy
    gives up after replacing two, with an error that is not the database's.
    """
    if record.info.pop("is_new", False):
        return
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    if record.info["connected_at"] < _lost_at or poller.poll(0):
        raise DisconnectionError


def _start_request(request_id: Callable[[], str | None]) -> None:
    _start_budget()
    _comment.set(f"/* {request_id()} */ ")


def _start_budget() -> None:
    _deadline.set(monotonic() + REQUEST_BUDGET)


def _end_budget(_error: BaseException | None) -> None:
    _deadline.set(None)
    _comment.set("")
    acting_user.current.set(None)


def _wait_within_budget(connection: Any) -> None:
    """Wait for the server, as psycopg2's wait callback, but not beyond the request's deadline.

    Raises OperationalError then, and psycopg2 closes the connection: the outcome of the statement is unknown.
    """
    global _lost_at  # noqa: PLW0603 (one for the process, like the callback)
    deadline = _deadline.get()
    try:
        while (state := connection.poll()) != extensions.POLL_OK:
            poller = select.poll()
            poller.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
            # poll() counts in milliseconds.
            patience = None if deadline is None else max(0, round((deadline - monotonic()) * 1000))
            if not poller.poll(patience):
                raise psycopg2.OperationalError("the database did not answer in time")
    except psycopg2.Error:
        _lost_at = monotonic()
        raise
