"""Statements on a plain cursor: what becomes of the connection, of parameters that are missing, and of the types."""

from typing import Any

import pytest
from flask import Flask
from msgspec import Struct
from sqlalchemy import URL, Select, Text, bindparam, literal, select

from tests.support import Caller, Make, pretend, sql
from todo.db import db
from todo.db.failures import DRIVER_ERRORS
from todo.db.statements import Names, Statement, _Compiled
from todo.db.types import UtcInstant
from todo.tasks import queries

pytestmark = pytest.mark.sql

INSTANTS = [
    f"{second}.{microseconds}Z"
    for second in ("0001-01-01T00:00:00", "0999-12-31T23:59:59", "1969-12-31T23:59:59", "2025-01-09T12:34:56")
    for microseconds in ("000000", "000001", "100000", "123000", "123456", "999999")
]


class Instants(Struct):
    """Two instants, and none."""

    literal: str
    parameter: str
    none: None


class Pair(Struct):
    """Two texts."""

    one: str
    two: str


def connections(app: Flask) -> tuple[int, int]:
    """How many connections lie in the pool, and how many are out."""
    with app.app_context():
        return db.engine.pool.checkedin(), db.engine.pool.checkedout()  # type: ignore[attr-defined]


def test_an_instant_comes_back_as_it_went_in(app: Flask) -> None:
    for instant in (*INSTANTS, "9999-12-31T23:59:59.999999Z"):
        columns = [literal(instant, UtcInstant), bindparam("instant", type_=UtcInstant), literal(None, UtcInstant)]
        with app.app_context():
            assert Statement(select(*columns), Instants).all(instant=instant) == [Instants(instant, instant, None)]


def test_a_parameter_that_a_statement_names_twice_is_converted_once(app: Flask) -> None:
    columns = [
        bindparam("instant", type_=UtcInstant),
        bindparam("instant", type_=UtcInstant),
        literal(None, UtcInstant),
    ]
    with app.app_context():
        statement = Statement(select(*(column.label(None) for column in columns)), Instants)
        assert statement.all(instant=INSTANTS[0]) == [Instants(INSTANTS[0], INSTANTS[0], None)]


def test_instants_are_in_utc_whatever_the_servers_time_zone_and_style(make: Make, postgresql: URL) -> None:
    task = Caller(make(postgresql), "alice").create()
    for options in ("-c timezone=Asia/Kathmandu", "-c datestyle=German"):
        app = make(postgresql.update_query_dict({"options": options}))
        assert Caller(app, "alice")("GET").get_json() == [task]


PAIR = Statement(select(bindparam("one", type_=Text), bindparam("two", type_=Text)), Pair)


@pytest.mark.parametrize("missing", ["one", "two"])
def test_a_parameter_that_is_missing_is_an_error_rather_than_null(app: Flask, missing: str) -> None:
    named = {"one": "1", "two": "2"}
    del named[missing]
    with app.app_context(), pytest.raises((KeyError, *DRIVER_ERRORS), match=missing):
        PAIR.all(**named)
    assert connections(app)[1] == 0


def test_a_statement_is_written_once_for_each_set_of_parameters(app: Flask) -> None:
    written: list[frozenset[str]] = []

    def write(names: Names) -> Select[Any]:
        written.append(names)
        return select(*(literal("") if name not in names else bindparam(name, type_=Text) for name in ("one", "two")))

    statement = Statement(write, Pair)
    with app.app_context():
        for _ in range(2):
            assert statement.first(one="1") == Pair("1", "")
            assert statement.first(two="2", one="1") == statement.first(one="1", two="2") == Pair("1", "2")
    assert written == [{"one"}, {"one", "two"}]


def test_an_error_of_the_statement_keeps_its_connection(app: Flask, alice: Caller) -> None:
    alice.create()
    before = connections(app)
    with app.app_context(), pytest.raises(DRIVER_ERRORS):
        queries.TASKS.insert("alice", None, {"title": ""})
    assert connections(app) == before
    assert alice.titles() == ["Buy milk"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_change_in_turn_does_not_keep_the_lock(
    request: pytest.FixtureRequest, make: Make, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], kind: str
) -> None:
    url: URL = request.getfixturevalue(kind)
    app = make(url) if kind == "sqlite" else pretend(make(url))
    alice = Caller(app, "alice")
    task = alice.create()
    bind = _Compiled.bind
    bound: list[object] = []

    def interrupt(compiled: _Compiled, parameters: Any) -> Any:
        bound.append(compiled)
        if len(bound) == 2:
            raise failure
        return bind(compiled, parameters)

    monkeypatch.setattr(_Compiled, "bind", interrupt)
    with app.app_context(), pytest.raises(failure) as caught:
        queries.TASKS.delete("alice", task["id"])
    monkeypatch.undo()
    sql(url, "UPDATE tasks SET title = 'not locked'")
    sql(url, "UPDATE users SET email = 'not locked'")
    assert alice.titles() == ["not locked"]
    # Until here it has kept the frames of the statement, and so the cursor.
    assert caught.type is failure


def test_a_connection_that_breaks_under_a_statement_is_503_and_replaced(make: Make, postgresql: URL) -> None:
    alice = Caller(make(postgresql, threads=1), "alice")
    alice.create()
    kill = "title <> 'x' OR pg_terminate_backend(pg_backend_pid())"
    sql(postgresql, f"ALTER TABLE tasks ADD CHECK ({kill}) NOT VALID")
    for _ in range(2):
        assert alice("POST", json={"title": "x"}).status_code == 503
        assert connections(alice.app) == (1, 0)
        assert alice.titles() == ["Buy milk"]


FAIL_AT_COMMIT = """
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {how}; RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON tasks DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION fail()
"""
LOST = "PERFORM pg_terminate_backend(pg_backend_pid())"
REFUSED = "RAISE EXCEPTION USING ERRCODE = 'XX000'"


@pytest.mark.parametrize("how", [LOST, REFUSED], ids=["lost", "refused"])
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "key"}], ids=["plain", "key"])
def test_a_commit_in_turn_that_fails_is_503_and_leaves_no_transaction(
    make: Make, postgresql: URL, headers: dict[str, str], how: str
) -> None:
    alice = Caller(pretend(make(postgresql, threads=1)), "alice")
    alice.create()
    sql(postgresql, FAIL_AT_COMMIT.format(how=how))
    for _ in range(2):
        assert alice("POST", json={"title": "x"}, headers=headers).status_code == 503
        assert connections(alice.app) == (1, 0)
    sql(postgresql, "DROP FUNCTION fail CASCADE")
    # The connection commits each statement by itself again.
    assert alice.titles() == ["Buy milk"]
    alice("POST", json={"title": "x"}, headers=headers)
    open_ = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
    assert sql(postgresql, open_) == []
    assert alice.titles() == ["x", "Buy milk"]


def test_a_service_that_falls_silent_between_two_statements_in_turn_keeps_no_lock(make: Make, postgresql: URL) -> None:
    alice = Caller(pretend(make(postgresql)), "alice")
    show = "BEGIN NEW.title := current_setting('idle_in_transaction_session_timeout'); RETURN NEW; END"
    sql(
        postgresql, f"CREATE FUNCTION show() RETURNS trigger LANGUAGE plpgsql AS '{show.replace(chr(39), chr(39) * 2)}'"
    )
    sql(postgresql, "CREATE TRIGGER show BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION show()")
    for headers in ({}, {"Idempotency-Key": "key"}):
        assert alice("POST", json={"title": "x"}, headers=headers).get_json()["title"] == "5s"
