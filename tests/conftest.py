"""The databases and the apps on them.

Each test that takes `app` or `call` runs on SQLite and PostgreSQL. A test that is marked `sql` also runs on PostgreSQL
with the tasks in partitions, on one that the service takes for Citus, and in a leg of its own on Citus (tests/citus).
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
from flask import Flask
from sqlalchemy import URL, text

from tests.citus.cluster import IS_ON_CITUS, distributed_database, runs_on_citus
from tests.ecosystem.pgbouncer import goes_through, pgbouncer
from tests.identity.issuer import Issuer, running_issuer
from tests.support import (
    PASSWORD,
    PATIENCE,
    ROLE,
    Call,
    Caller,
    Make,
    close,
    direct,
    empty_database,
    migrated_database,
    partition,
    pooled,
    pretend,
    quick_server,
    settings,
    sql,
    statements_of,
    templates,
)
from todo import create_app
from todo.db import db, search
from todo.db.ownership import Owned
from todo.web import accounts

DATABASES = ("sqlite", "postgresql", "partitioned", "like citus")
#: For a test of PostgreSQL's own; in the leg of tests/citus, Citus.
on_postgresql = pytest.mark.parametrize("watched", ["citus"] if IS_ON_CITUS else DATABASES[1:], indirect=True)
THROUGH_PGBOUNCER = os.environ.get("TEST_THROUGH") == "pgbouncer"


def pytest_configure(config: pytest.Config) -> None:
    """Under pytest-xdist, start one server for all workers, which inherit the environment."""
    if config.getoption("numprocesses", None) and not config.option.collectonly:
        stack = ExitStack()
        config.add_cleanup(stack.close)
        url = stack.enter_context(quick_server())
        environ = {"TEST_DATABASE_URL": url.render_as_string(hide_password=False)}
        stack.enter_context(mock.patch.dict(os.environ, environ))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the kinds of database for a test that takes `watched` and does not choose by itself."""
    chosen = {name for mark in metafunc.definition.iter_markers("parametrize") for name in mark.args[:1]}
    if "watched" in metafunc.fixturenames and "watched" not in chosen:
        is_sql = metafunc.definition.get_closest_marker("sql") is not None
        kinds = ("citus",) if IS_ON_CITUS and is_sql else DATABASES if is_sql else DATABASES[:2]
        metafunc.parametrize("watched", kinds, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With TEST_THROUGH=pgbouncer or TEST_ON=citus, leave out what has no app there, and the few that cannot pass."""
    for is_on, can_pass in ((THROUGH_PGBOUNCER, goes_through), (IS_ON_CITUS, runs_on_citus)):
        if is_on:
            config.hook.pytest_deselected(items=[test for test in items if not can_pass(test)])
            items[:] = filter(can_pass, items)


@pytest.fixture(scope="session")
def server() -> Iterator[URL]:
    """A PostgreSQL server; with TEST_THROUGH=pgbouncer, the apps reach its databases by way of PgBouncer."""
    with quick_server() as url, ExitStack() as stack:
        if THROUGH_PGBOUNCER:
            pooler = stack.enter_context(pgbouncer(url, 4, url.set(username=ROLE, password=PASSWORD)))
            stack.enter_context(pooled(url, pooler))
        stack.enter_context(templates(url))
        yield url


@pytest.fixture(scope="session")
def apps(server: URL) -> Iterator[dict[str, Flask]]:
    """The app on each database. Nothing is slow to it, so that a busy machine makes nobody a 429 or a 422."""
    with ExitStack() as stack:
        kinds = ("sqlite", *["postgresql"] * 3)
        urls = dict(
            zip(DATABASES, (stack.enter_context(migrated_database(kind, server)) for kind in kinds), strict=True)
        )
        partition(urls["partitioned"])
        if IS_ON_CITUS:
            urls["citus"] = stack.enter_context(distributed_database())
        with mock.patch.multiple(accounts, SLOW=PATIENCE, SLOW_SEARCH=PATIENCE):
            apps = {name: create_app(settings(url)) for name, url in urls.items()}
        pretend(apps["like citus"])
        stack.enter_context(mock.patch.object(search, "SEARCH_LIMIT", PATIENCE))
        yield apps
        for app in apps.values():
            close(app)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """What a test's own app sets up for the whole process, to a stream that ends with the test, ends with it too."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def watched(request: pytest.FixtureRequest, apps: dict[str, Flask]) -> Iterator[tuple[Flask, list[str]]]:
    """The app on one of the databases, empty, and what it executes."""
    app = apps[request.param]
    with statements_of(app) as statements:
        yield app, statements
    refuse_unowned(statements)
    with app.app_context():
        db.session.execute(text("DELETE FROM users"))


@pytest.fixture
def app(watched: tuple[Flask, list[str]]) -> Flask:
    """The app on one of the databases, empty."""
    return watched[0]


@pytest.fixture
def statements(watched: tuple[Flask, list[str]]) -> list[str]:
    """What the app has executed, and "checkout" where it took a connection."""
    return watched[1]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes apps on a database, with settings of their own: `make(url, threads=1)`."""
    made: list[Flask] = []

    def make_app(url: URL, **changes: Any) -> Flask:
        made.append(create_app(settings(url, **changes)))
        return made[-1]

    yield make_app
    for app in made:
        close(app)


@pytest.fixture
def sqlite(server: URL) -> Iterator[URL]:
    """A migrated SQLite database of the test's own."""
    with migrated_database("sqlite", server) as url:
        yield url


@pytest.fixture
def postgresql(server: URL) -> Iterator[URL]:
    """A migrated PostgreSQL database of the test's own."""
    with migrated_database("postgresql", server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def own(request: pytest.FixtureRequest, server: URL) -> Iterator[URL]:
    """A migrated database of the test's own, of each kind."""
    with migrated_database(request.param, server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, server: URL) -> Iterator[URL]:
    """An empty database."""
    with empty_database(request.param, server) as url:
        yield url


@pytest.fixture
def bare(fresh: URL, make: Make) -> Flask:
    """An app on an empty database, at the server itself: migrations go past a pooler (README)."""
    return make(direct(fresh))


@pytest.fixture
def database(apps: dict[str, Flask]) -> Iterator[URL]:
    """A database with its tables, empty, for what is the same on all kinds."""
    url = url_of(apps["sqlite"])
    yield url
    sql(url, "DELETE FROM users")


@pytest.fixture
def url(app: Flask) -> URL:
    """The app's database."""
    return url_of(app)


@pytest.fixture
def call(app: Flask) -> Call:
    """Makes a caller of a user id: `call("alice")("GET")` lists the tasks of alice."""
    return lambda user_id="alice", email=None: Caller(app, user_id, email)


@pytest.fixture
def alice(call: Call) -> Caller:
    """A user."""
    return call("alice")


@pytest.fixture
def bob(call: Call) -> Caller:
    """Another user."""
    return call("bob")


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer without keys."""
    with running_issuer() as issuer:
        yield issuer


def url_of(app: Flask) -> URL:
    """The database of an app."""
    with app.app_context():
        return db.engine.url


def refuse_unowned(statements: list[str]) -> None:
    """Fail whatever test made the app read, change or delete rows of users without naming their owner in each table."""
    for table, owner in {"users": "id", **{each.__tablename__: "user_id" for each in Owned.__subclasses__()}}.items():
        for statement in statements:
            # What todo/db/readiness.py asks reads no row, and /metrics only counts rows.
            is_public = re.search("server_encoding|WHERE false|WHERE 0 = 1|AS prunable", statement) is not None
            touched = re.findall(rf"\b(?:FROM|JOIN|UPDATE) {table}\b", statement)
            assert is_public or len(touched) <= statement.count(f"{table}.{owner} = "), statement
