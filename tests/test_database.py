"""What the databases do not share, and what becomes of a request when they fail. All of it with real databases."""

import re
import sqlite3
import time
from socket import gaierror
from threading import Event
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, event, text
from sqlalchemy.exc import InvalidRequestError, OperationalError, ProgrammingError

from tests.support import Caller, Make, close, pretend, session, silent_database, sql
from todo.db import connections as database
from todo.db import db, hosts, pool
from todo.db import failures as faults

pytestmark = [pytest.mark.sql, pytest.mark.usefixtures("_task")]


@pytest.fixture
def _task(make: Make, request: pytest.FixtureRequest) -> None:
    """A task of alice in each database of the test's own."""
    for name in {"postgresql", "sqlite"} & set(request.fixturenames):
        app = make(request.getfixturevalue(name))
        Caller(app, "alice").create()
        close(app)


def is_unavailable(caller: Caller, method: str = "GET", **options: Any) -> bool:
    """Whether the call is answered as an outage of the database."""
    response = caller(method, **options)
    assert response.status_code in (200, 201, 503), response.get_json()
    if response.status_code == 503:
        assert response.get_json() == {"error": "Service unavailable"}
        assert response.headers["Retry-After"] == "1"
    return response.status_code == 503


NEW = {"json": {"title": "x"}}


def test_no_connection_is_opened_before_the_first_request(make: Make, postgresql: URL) -> None:
    app = make(postgresql)
    with app.app_context():
        assert db.engine.pool.checkedin() == 0
    assert Caller(app, "alice").titles() == ["Buy milk"]


def test_a_connection_that_the_server_closed_is_replaced(make: Make, postgresql: URL) -> None:
    alice = Caller(make(postgresql), "alice")
    for method, options in (("GET", {}), ("POST", NEW)):
        assert not is_unavailable(alice)
        sql(
            postgresql,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        assert not is_unavailable(alice, method, **options)


def still_running(url: URL) -> list[str]:
    """What the server does for the app, or waits to do."""
    running = "application_name = 'todo' AND state <> 'idle' AND datname = current_database()"
    return [query for (query,) in sql(url, f"SELECT query FROM pg_stat_activity WHERE {running}")]


def test_a_locked_row_is_503_within_a_second_and_leaves_nothing_waiting(make: Make, postgresql: URL) -> None:
    alice = Caller(make(postgresql), "alice")
    task = alice("GET").get_json()[0]
    with session(postgresql) as connection:
        connection.execute(text("SELECT 1 FROM tasks FOR UPDATE"))
        started = time.monotonic()
        assert is_unavailable(alice, "PATCH", path=f"/{task['id']}/complete")
        assert 1 <= time.monotonic() - started < 2.5
        assert still_running(postgresql) == []
    assert alice("GET").get_json() == [task]


def test_a_statement_that_is_too_slow_is_503_and_stopped(
    make: Make, postgresql: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "statement_timeout = '3s'" in database.STATEMENT_LIMITS
    monkeypatch.setattr(database, "STATEMENT_LIMITS", database.STATEMENT_LIMITS.replace("3s", "300ms"))
    alice = Caller(make(postgresql), "alice")
    sql(postgresql, "ALTER TABLE tasks ADD CHECK (pg_sleep(30) IS NOT NULL) NOT VALID")
    started = time.monotonic()
    assert is_unavailable(alice, "POST", **NEW)
    assert 0.3 <= time.monotonic() - started < 4
    assert still_running(postgresql) == []
    assert alice.titles() == ["Buy milk"]


def test_a_statement_has_the_id_of_its_request(make: Make, postgresql: URL) -> None:
    alice = Caller(make(postgresql, threads=1), "alice")
    last = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '/* %'"
    for request_id in ("from-nginx", "b" * 128):
        assert not is_unavailable(alice, headers={"X-Request-ID": request_id})
        ((query,),) = sql(postgresql, last)
        assert query.startswith(f"/* {request_id} */ ")
    # One that could end the comment is replaced.
    assert not is_unavailable(alice, headers={"X-Request-ID": "*/ SELECT 1; /*"})
    ((query,),) = sql(postgresql, last)
    assert re.match(r"/\* [0-9a-f]{32} \*/ ", query)


def test_a_server_that_never_answers_is_503_within_the_budget(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "REQUEST_BUDGET", 0.4)
    with silent_database() as (_, url):
        started = time.monotonic()
        assert is_unavailable(Caller(make(url), "alice"))
        assert 0.4 <= time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("unknown.example", "Name or service not known"),
        ("slow.example", "TimeoutError"),
        # It is refused before any name server is asked.
        ("d" * 64, "UnicodeError"),
    ],
)
def test_a_name_that_is_not_resolved_is_503_within_the_budget(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, host: str, reason: str
) -> None:
    go, ask = Event(), hosts.getaddrinfo

    def look_up(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "unknown.example":
            raise gaierror(-2, "Name or service not known")
        return go.wait(20) and [] if host == "slow.example" else ask(host, *arguments, **options)

    monkeypatch.setattr(hosts, "getaddrinfo", look_up)
    monkeypatch.setattr(database, "REQUEST_BUDGET", 1.0)
    started = time.monotonic()
    assert is_unavailable(Caller(make(URL.create("postgresql+psycopg2", host=host, database="todo")), "alice"))
    assert time.monotonic() - started < 4
    go.set()
    said = capsys.readouterr().err.replace("UnicodeEncodeE", "UnicodeE")  # so since Python 3.13
    assert f"could not find the address of {host}: {reason}" in said


def test_the_bounds_add_up_to_less_than_ten_seconds() -> None:
    assert database.REQUEST_BUDGET < 10
    # A first task waits for SQLite's writer up to three times.
    assert pool.TIMEOUT + 3 * database.SQLITE_BUSY_TIMEOUT < 10


def test_what_the_server_cannot_do_now_is_503(make: Make, postgresql: URL) -> None:
    alice = Caller(make(postgresql), "alice")
    raising = "'BEGIN RAISE EXCEPTION USING ERRCODE = NEW.title; END'"
    sql(postgresql, f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS {raising}")
    sql(postgresql, "CREATE TRIGGER fail BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION fail()")
    for code in ("08006", "53100", "53200", "53300", "57014", "58030", "55P03", "25006", "40001", "40P01"):
        assert is_unavailable(alice, "POST", json={"title": code}), code
    assert alice("POST", json={"title": "XX000"}).status_code == 500
    # It is the code with which Citus tells of a lost worker.
    assert is_unavailable(Caller(pretend(make(postgresql)), "alice"), "POST", json={"title": "XX000"})


@pytest.mark.parametrize("code", [5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 26, 5 | 1 << 8, 10 | 3 << 8])
def test_what_sqlite_cannot_do_now_is_an_outage(code: int) -> None:
    cause = sqlite3.OperationalError()
    cause.sqlite_errorcode = code
    assert faults.is_outage(OperationalError("", {}, cause))


def test_a_new_file_can_be_opened_while_somebody_writes_to_it(make: Make, sqlite: URL) -> None:
    assert sql(sqlite, "PRAGMA journal_mode = DELETE") == [("delete",)]
    with session(sqlite) as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        assert not is_unavailable(Caller(make(sqlite), "alice"))
    assert not is_unavailable(Caller(make(sqlite), "alice"))
    assert sql(sqlite, "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "1"}])
def test_a_session_that_began_read_only_is_left_once_a_write_has_shown_it(
    make: Make, postgresql: URL, headers: dict[str, str]
) -> None:
    """Hosted databases make themselves read-only so, until a full disk has room again."""
    sql(postgresql, f"ALTER DATABASE {postgresql.database} SET default_transaction_read_only = on")
    alice = Caller(make(postgresql, threads=1), "alice")
    assert not is_unavailable(alice)
    assert is_unavailable(alice, "POST", headers=headers, **NEW)
    sql(
        postgresql.set(query=postgresql.query | {"options": "-cdefault_transaction_read_only=off"}),
        f"ALTER DATABASE {postgresql.database} RESET default_transaction_read_only",
    )
    assert not is_unavailable(alice, "POST", headers=headers, **NEW)


def test_no_free_connection_is_503(make: Make, postgresql: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "TIMEOUT", 0.1)
    app = make(postgresql, threads=1)
    alice = Caller(app, "alice")
    with app.app_context(), db.engine.connect():
        started = time.monotonic()
        assert all(is_unavailable(alice) for _ in range(30))
        # The first waits, and after it nobody.
        assert time.monotonic() - started < 2
    assert not is_unavailable(alice)


def test_a_writer_that_stays_is_503_to_writes_alone(make: Make, sqlite: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "SQLITE_BUSY_TIMEOUT", 0.1)
    alice = Caller(make(sqlite), "alice")
    with session(sqlite) as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        assert is_unavailable(alice, "POST", **NEW)
        assert not is_unavailable(alice)
    assert not is_unavailable(alice, "POST", **NEW)


def test_a_read_only_file_is_503_to_writes_alone(make: Make, sqlite: URL) -> None:
    url = sqlite.set(database=f"file:{sqlite.database}", query={"mode": "ro", "uri": "true"})
    alice = Caller(make(url), "alice")
    assert is_unavailable(alice, "POST", **NEW)
    assert not is_unavailable(alice)


def test_a_full_disk_is_503_and_loses_nothing(make: Make, sqlite: URL) -> None:
    app = make(sqlite)
    with app.app_context():
        event.listen(db.engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 1"))
    alice = Caller(app, "alice")
    # The migrations have left a few pages free.
    made = 0
    while not is_unavailable(alice, "POST", json={"title": "x", "description": "x" * 5000}):
        made += 1
        assert made < 10
    assert alice.titles() == ["x"] * made + ["Buy milk"]


def test_a_fault_of_the_statement_is_no_outage(apps: dict[str, Flask]) -> None:
    for app in apps.values():
        with app.app_context(), pytest.raises(Exception, match="nowhere") as caught:
            db.session.execute(text("SELECT * FROM nowhere"))
        assert not faults.is_outage(caught.value)
    assert not faults.is_outage(InvalidRequestError())
    assert not faults.is_outage(ProgrammingError("", {}, ValueError()))


@pytest.mark.parametrize("fault", ["DROP TABLE tasks", "ALTER TABLE tasks RENAME COLUMN status TO state"])
def test_titles_stay_out_of_the_log(
    make: Make, sqlite: URL, postgresql: URL, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    for url in (sqlite, postgresql):
        alice = Caller(make(url), "alice")
        sql(url, fault)
        assert alice("POST", json={"title": "a private matter"}).status_code == 500
        log = capsys.readouterr().err
        assert "ERROR todo.web.app: POST /api/<user_id>/tasks: " in log
        assert "in create_task" in log
        assert "private" not in log


def test_the_row_that_breaks_a_rule_stays_out_of_the_log(
    make: Make, postgresql: URL, capsys: pytest.CaptureFixture[str]
) -> None:
    alice = Caller(make(postgresql), "alice")
    sql(postgresql, "ALTER TABLE tasks ADD CHECK (title NOT LIKE '%private%')")
    assert alice("POST", json={"title": "a private matter"}).status_code == 500
    log = capsys.readouterr().err
    assert "CheckViolation 23514: new row for relation" in log
    assert "private" not in log
