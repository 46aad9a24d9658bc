"""What the two databases do not share: column types, functions, connections and time limits.

Must not know any table.
"""

import json
import select
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from socket import SOCK_STREAM, getaddrinfo
from threading import Thread
from time import monotonic
from typing import Any

import psycopg2
from flask import Flask
from psycopg2 import errors, extensions
from sqlalchemy import TIMESTAMP, BigInteger, Boolean, ColumnElement, Dialect, Engine, Integer, Text, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from config import Settings
from todo.instants import from_microseconds, to_microseconds

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

#: A 64-bit integer; SQLite counts up by itself only in a column declared INTEGER, which holds 64 bits there.
BigIdentity = BigInteger().with_variant(Integer(), "sqlite")


class UtcInstant(TypeDecorator[str]):
    """An instant with microseconds: in Python the text that answers show, RFC 3339 in UTC with six digits and `Z`.

    PostgreSQL: timestamp with time zone, which it writes as that text by itself, at less cost than Python makes a
    datetime of it and a text of that. SQLite, which has no such type: an integer, microseconds since 1970.
    """

    impl = TIMESTAMP
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column's type in that database."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(BigInteger())
        return dialect.type_descriptor(TIMESTAMP(timezone=True))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """What the database is given."""
        return to_microseconds(value) if value is not None and dialect.name == "sqlite" else value

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[str]:
        """What is selected, or returned, in place of a column of this type."""
        return instant_text(column)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], str | None] | None:
        """What turns the database's value into the text; None where it is the text."""
        if dialect.name == "sqlite":
            return lambda value: None if value is None else from_microseconds(value)
        return None


class IntegerList(TypeDecorator[Sequence[int]]):
    """A parameter, never a column: a list of integers, for is_among(). Each driver is given what it can make one of."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Collection[int] | None, dialect: Dialect) -> Any:
        """What the database is given."""
        if value is None:
            return None
        return json.dumps(list(value)) if dialect.name == "sqlite" else list(value)


class instant_text(FunctionElement[str]):  # noqa: N801 (a SQL function, named like SQLAlchemy's own)
    """SQL: the instant as text; on SQLite the instant as it is, which UtcInstant turns into text."""

    type = UtcInstant()
    inherit_cache = True


class current_instant(FunctionElement[str]):  # noqa: N801
    """SQL: the database's clock at the start of the statement. SQLite's has milliseconds."""

    type = UtcInstant()
    inherit_cache = True


class hours_ago(FunctionElement[str]):  # noqa: N801
    """SQL: the instant that is so many hours before the database's clock."""

    type = UtcInstant()
    inherit_cache = True


class later_instant(FunctionElement[str]):  # noqa: N801
    """SQL: now, or one microsecond after the argument where the clock does not yet read more than that."""

    type = UtcInstant()
    inherit_cache = True


class octets(FunctionElement[int]):  # noqa: N801
    """SQL: how many bytes the text has in UTF-8; 0 for NULL."""

    type = BigInteger()
    inherit_cache = True


class is_among(FunctionElement[bool]):  # noqa: N801
    """SQL: whether the first argument is in the second, an IntegerList. For a list of NULL never true."""

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
    # By way of UTC, since adding to a timestamptz is not IMMUTABLE, and an update of shards takes nothing else.
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


def is_limited() -> bool:
    """Whether statements are within limited_to()."""
    return _limit.get() is not None


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
    """Look the server's addresses up within the request's budget: libpq would block in that, beyond any callback.

    The names stay beside the addresses, for TLS to check. Of several hosts, one without an address is left out.
    """
    hosts = parameters.get("host", "").split(",")
    deadline = _deadline.get()
    if deadline is None or parameters.get("hostaddr") or all(map(_is_local, hosts)):
        return
    ports = str(parameters.get("port", "")).split(",")
    look_ups = [_look_up(host) for host in hosts]
    if len(hosts) > 1:
        # A name that is never found must leave time for the other hosts.
        deadline = (deadline + monotonic()) / 2
    found, failures = [], []
    for host, port, look_up in zip(hosts, ports * (len(hosts) // len(ports)), look_ups, strict=True):
        try:
            found += [(host, address, port) for address in look_up.result(timeout=max(0.0, deadline - monotonic()))]
        except (OSError, UnicodeError) as error:
            # TimeoutError is an OSError too. UnicodeError: a label that is too long, or empty.
            kind = getattr(error, "strerror", None) or type(error).__name__
            failures.append(f"could not find the address of {host}: {kind}")
    if not found:
        # libpq must not try again, without a bound.
        raise psycopg2.OperationalError("; ".join(failures))
    parameters["host"] = ",".join(host for host, *_ in found)
    parameters["hostaddr"] = ",".join(address for _, address, _ in found)
    if len(ports) > 1:
        parameters["port"] = ",".join(port for *_, port in found)


def _is_local(host: str) -> bool:
    """Whether libpq takes that for a socket of this machine."""
    return not host or host.startswith(("/", "@"))


def _look_up(host: str) -> "Future[list[str]]":
    look_up: Future[list[str]] = Future()

    def find() -> None:
        try:
            if _is_local(host):
                look_up.set_result([""])
            else:
                look_up.set_result([str(address[0]) for *_, address in getaddrinfo(host, None, type=SOCK_STREAM)])
        except (OSError, UnicodeError) as error:
            look_up.set_exception(error)

    # A daemon: a look-up that never ends holds up neither the request nor the end of the process.
    Thread(target=find, daemon=True).start()
    return look_up


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
