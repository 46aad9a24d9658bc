"""The pool of connections: the time that a request may spend on the database, and connections that are lost.

Must not know any table.
"""

import select
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from time import monotonic
from typing import Any

import psycopg2
from flask import Flask
from psycopg2 import errors, extensions
from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError

from config import Settings
from todo.db.hosts import resolve_hosts

#: Seconds that one request may spend on the database, the making of a connection included. A hosted database that
#: sleeps takes most of this to wake.
REQUEST_BUDGET = 9.0
#: What goes before each statement of a request, in the same round trip and, autocommit being on, the same transaction:
#: PostgreSQL itself stops a statement that is too slow or waits for a lock, so that none goes on that nobody waits
#: for. Unlike a plain SET it passes a transaction pooler, and unlike a limit of the role it needs no set-up.
STATEMENT_LIMITS = "SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '3s'; "
#: What goes before those where somebody is known to ask: the policies of the tables (migration 0003) let a statement
#: see and touch that user's rows alone, whatever it says itself. Gone with the transaction, like them.
ACTING_USER = "SET LOCAL app.user_id = %(app_user_id)s; "
#: Seconds to wait for a connection of the pool. Threads and connections are equally many, so that this only ever
#: passes under a server with more threads than WEB_THREADS says.
POOL_TIMEOUT = 2.0
#: Seconds to wait for SQLite's one writer. A first task may wait thrice: with the pool's wait, still within 10 s.
SQLITE_BUSY_TIMEOUT = 2.5
#: After so many of SQLite's instructions, some ten rows of a search, a look whether the statement takes too long.
STEPS = 1000

#: When the request at hand must be done with the database (time.monotonic); outside one, in a migration say, None.
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
#: Within limited_to(): the seconds that a statement may take, and when they are over (time.monotonic).
_limit: ContextVar[tuple[float, float] | None] = ContextVar("limit", default=None)
#: When a connection last broke, or was found silent, in the middle of something (time.monotonic).
_lost_at = 0.0
#: Whose request it is.
_acting_user: ContextVar[str | None] = ContextVar("acting_user", default=None)


class LimitedCursor(extensions.cursor):
    """A cursor that bounds the time of a request's statements on the server, and tells it who asks."""

    def execute(self, query: Any, vars: Any = None) -> None:
        """As psycopg2's, behind STATEMENT_LIMITS and ACTING_USER where there is a request.

        Without parameters it tells of nobody: what reads or writes owned rows names their owner in one.
        """
        if (limit := _limit.get()) is not None:
            query = f"SET LOCAL statement_timeout = {round(limit[0] * 1000)}; {query}"
        if _deadline.get() is not None:
            query = STATEMENT_LIMITS + query
        if vars and (user_id := _acting_user.get()) is not None:
            query, vars = ACTING_USER + query, {**vars, "app_user_id": user_id}
        try:
            super().execute(query, vars)
        except errors.ReadOnlySqlTransaction:
            # The session may stay so after the database, or another that took over, is to be written to again.
            self.connection.close()
            raise


def act_for(user_id: str | None) -> None:
    """Whose rows the statements to come may see and touch, in this thread and until the end of the request."""
    _acting_user.set(user_id)


@contextmanager
def limited_to(seconds: float) -> Iterator[None]:
    """Stop each statement within that takes longer: see is_stopped() in todo/db/failures.py."""
    token = _limit.set((seconds, monotonic() + seconds))
    try:
        yield
    finally:
        _limit.reset(token)


def was_lost_since(instant: float) -> bool:
    """Whether a connection broke, or was found silent, after that (time.monotonic)."""
    return _lost_at >= instant


def engine_options(settings: Settings) -> dict[str, Any]:
    """The arguments of create_engine: autocommit, and one connection for each thread."""
    options: dict[str, Any] = {
        # A statement is its own transaction: one round trip in place of three, and no lock is held between two.
        "isolation_level": "AUTOCOMMIT",
        "pool_size": settings.threads,
        "max_overflow": 0,
        "pool_timeout": POOL_TIMEOUT,
        # Under autocommit there is nothing to roll back when a connection comes home; a session that began a
        # transaction ends it by itself.
        "pool_reset_on_return": None,
        # What users wrote stays out of whatever prints an error.
        "hide_parameters": True,
    }
    if settings.database_url.get_backend_name() == "sqlite":
        # Named parameters, like PostgreSQL's driver (todo/db/statements.py).
        return options | {"connect_args": {"timeout": SQLITE_BUSY_TIMEOUT}, "paramstyle": "named"}
    url = settings.database_url
    # Where the URL names a host, no PGHOSTADDR of the environment leads elsewhere.
    address = {"hostaddr": ""} if (url.host or "host" in url.query) and "hostaddr" not in url.query else {}
    return options | {
        "pool_use_lifo": True,
        # A look-up on every new connection for a type that is not used.
        "use_native_hstore": False,
        # The kernel's probes find a peer that went away without a word; all of this is libpq's own, so that a
        # connection pooler between never sees it.
        "connect_args": {
            "cursor_factory": LimitedCursor,
            **address,
            "application_name": "todo",
            # Else PGCLIENTENCODING, the role or the database may say another, which has not all letters.
            "client_encoding": "utf8",
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            # In milliseconds: where the server's machine acknowledges nothing, the kernel gives up what was sent. It
            # would else deliver a statement long after its 503, over what has been written since.
            "tcp_user_timeout": 5000,
        },
    }


def init_app(app: Flask, engine: Engine) -> None:
    """Set up each new connection, bound every request's time, and replace connections that are lost."""
    app.before_request(_start_budget)
    app.teardown_request(_end_budget)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    else:
        event.listen(engine, "do_connect", _resolve_hosts)
        event.listen(engine, "connect", _note_age)
        event.listen(engine, "checkout", _replace_if_lost)
        # psycopg2 knows one callback for the whole process. Without it a connection gone silent blocks its thread.
        extensions.set_wait_callback(_wait_within_budget)


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    # Readers and the writer do not wait for each other, across processes too. The file remembers it; while somebody
    # writes to a new file SQLite refuses at once, and a later connection will do it.
    with suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")
    connection.set_progress_handler(_is_overdue, STEPS)


def _is_overdue() -> bool:
    """Tell SQLite, which asks now and then, whether to stop the statement."""
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
    """Drop a pooled connection on which the server has said good-bye, or that is older than the loss of another.

    Both at no round trip. An idle connection has nothing to read unless the server ended it: restarted, put to sleep,
    or told to. And what one connection was lost to (a firewall that forgot it, say) the others of its time may have
    met too: each would cost somebody a whole budget to find out. One that was just made is taken as it is: SQLAlchemy
    gives up after two, with an error that is none of the database.
    """
    if record.info.pop("is_new", False):
        return
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    if record.info["connected_at"] < _lost_at or poller.poll(0):
        raise DisconnectionError


def _start_budget() -> None:
    _deadline.set(monotonic() + REQUEST_BUDGET)


def _end_budget(_error: BaseException | None) -> None:
    _deadline.set(None)
    _acting_user.set(None)


def _wait_within_budget(connection: Any) -> None:
    """psycopg2's wait callback: wait for the server, but never past the request's deadline.

    Raises OperationalError, on which psycopg2 closes the connection: what became of the statement is unknown.
    """
    global _lost_at  # noqa: PLW0603 (like the callback itself, one for the process)
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
