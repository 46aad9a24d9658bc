"""Row-level security: with the owner left out of a statement, PostgreSQL itself still keeps users apart."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from flask import Flask
from sqlalchemy import URL, text
from werkzeug.test import TestResponse

from tests.conftest import on_postgresql, url_of
from tests.support import (
    REQUESTS,
    Caller,
    Make,
    as_superuser,
    close,
    later,
    plans_of_statements,
    session,
    sql,
    sql_as_role,
    statements_of,
)
from todo.db import acting_user, db, machines
from todo.db import connections as database
from todo.db.ownership import Owned
from todo.web import health

pytestmark = pytest.mark.sql


#: What narrows a statement to its owner, as it is sent.
PREDICATES = [f"{model.__tablename__}.user_id = %(user_id)s" for model in Owned.__subclasses__()]


#: The statements that have such a predicate. A create has none: it inserts its owner.
NARROWED = [(method, path, options) for method, path, options in REQUESTS if method != "POST"]


@contextmanager
def without_the_owner() -> Iterator[list[str]]:
    """Every statement goes out with true in the owner's place; those that did."""
    stripped: list[str] = []
    execute = database.LimitedCursor.execute

    def strip(cursor: database.LimitedCursor, query: str, parameters: Any = None) -> None:
        for predicate in PREDICATES:
            if predicate in query:
                query = query.replace(predicate, "true")
                stripped.append(query)
        execute(cursor, query, parameters)

    with mock.patch.object(database.LimitedCursor, "execute", strip):
        yield stripped


def tasks(app: Flask) -> list[tuple[Any, ...]]:
    """All tasks there are, each with its owner first."""
    return sql(url_of(app), "SELECT user_id, * FROM tasks ORDER BY id")


@on_postgresql
def test_without_the_owners_predicate_no_foreign_row_is_read_or_changed(
    app: Flask, statements: list[str], alice: Caller, bob: Caller
) -> None:
    for method, path, options in NARROWED:
        sql(url_of(app), "DELETE FROM users")
        for caller in (bob, alice):
            gone, since = caller.create()["id"], caller.since()
            caller("DELETE", f"/{gone}")
        own, foreign = alice.create(), bob.create()
        before = tasks(app)
        with without_the_owner() as stripped:
            response = alice.send(foreign | {"since": since}, method, path, options)
            status, answer = response.status_code, response.get_json(silent=True)
        assert stripped
        # Or the fixture, which reads them, would fail the test.
        statements.clear()
        assert [row for row in tasks(app) if row[0] == "bob"] == [row for row in before if row[0] == "bob"]
        if path.startswith("/changes"):
            deletions = [{"id": gone, "task": None}] if "since" in path else []
            assert (status, answer["changes"]) == (200, [*deletions, {"id": own["id"], "task": own}])
        elif method == "GET" and path[:2] != "/{":
            assert (status, answer) == (200, [own])
        elif "?status" in path:
            assert (status, answer.popitem()[1], sum(answer.values())) == (200, False, method == "PATCH")
        else:
            assert tasks(app) == before
            assert (status, answer) == (404, {"error": "Task not found"})


def repeat(caller: Caller) -> TestResponse:
    """A create under a key that everybody uses, of the same task."""
    return caller("POST", json={"title": "x"}, headers={"Idempotency-Key": "shared"})


@on_postgresql
def test_without_the_owners_predicate_nobody_gets_the_answer_of_anothers_key(
    statements: list[str], alice: Caller, bob: Caller
) -> None:
    foreign = repeat(bob).get_json()
    with without_the_owner() as stripped:
        first, second = repeat(alice), repeat(alice)
    statements.clear()
    # The look for the key and the deletion of old ones name it, in each of two creates. In turn, the second one only
    # looks for the key.
    assert len(stripped) in (2, 3)
    assert (first.status_code, second.data) == (201, first.data)
    assert first.get_json()["user_id"] == "alice"
    assert bob("GET").get_json() == [foreign]


@on_postgresql
def test_without_the_owners_predicate_nobody_prunes_anothers_keys(
    statements: list[str], url: URL, alice: Caller, bob: Caller
) -> None:
    for caller in (alice, bob):
        repeat(caller)
    sql(url, f"UPDATE idempotency_keys SET created_at = {later(url, 'created_at', -25 * 3600)}")
    with without_the_owner():
        assert alice("POST", json={"title": "x"}, headers={"Idempotency-Key": "new"}).status_code == 201
    statements.clear()
    keys = sql(url, "SELECT user_id, key FROM idempotency_keys ORDER BY 1, 2")
    assert keys == [("alice", "new"), ("bob", "shared")]


@pytest.fixture
def bypassing(postgresql: URL, make: Make) -> Flask:
    """An app whose role bypasses the policies."""
    return make(as_superuser(postgresql))


def test_a_role_that_bypasses_the_policies_has_two_layers_left(bypassing: Flask) -> None:
    """What shows that the test above can fail, too."""
    alice, bob = Caller(bypassing, "alice"), Caller(bypassing, "bob")
    for method, path, options in NARROWED:
        sql(url_of(bypassing), "DELETE FROM users")
        for caller in (alice, bob):
            caller("PATCH", f"/{caller.create()['id']}/complete")
            foreign = caller.create() | {"since": alice.since()}
        before = tasks(bypassing)
        with without_the_owner():
            response = alice.send(foreign, method, path, options)
            status, answer = response.status_code, response.get_json(silent=True)
        # The service saw whose row came back, but too late.
        assert (status, answer) == (500, {"error": "Internal server error"}), (method, path)
        assert (tasks(bypassing) != before) == (method != "GET")


def test_the_service_does_not_hand_on_the_answer_of_another_users_key(bypassing: Flask) -> None:
    repeat(Caller(bypassing, "bob"))
    with without_the_owner():
        assert repeat(Caller(bypassing, "alice")).status_code == 500
    assert [row[0] for row in tasks(bypassing)] == ["bob"]


@on_postgresql
def test_nobody_is_shown_anything(url: URL, alice: Caller) -> None:
    alice.create()
    assert sql_as_role(url, "SELECT * FROM tasks") == []
    for user_id, shown in (("alice", 1), ("bob", 0), ("", 0)):
        statement = "SELECT set_config('app.user_id', :user_id, true); SELECT count(*) FROM tasks"
        assert sql_as_role(url, statement, user_id=user_id) == [(shown,)]


@on_postgresql
def test_a_statement_evaluates_the_policy_of_tasks_once(alice: Caller) -> None:
    """Not once for each row: it names no column, once the statement has named the owner."""
    alice.create()
    with plans_of_statements("COSTS") as plans:
        for path in ("", "/1", "/changes"):
            alice("GET", path)
    assert len(plans) == 3
    for plan in plans:
        (line,) = re.findall(r'"([^"]*)": "[^"]*current_setting', json.dumps(plan))
        assert line == "One-Time Filter"


USER_IDS = ["o'brien", "a\\b", "100%", "%(user_id)s", "%s", "jörg", "'; --", '"', "$$", "🥛" * 255]


@pytest.mark.parametrize("standard_conforming_strings", ["on", "off"])
def test_any_user_id_reaches_the_policies_as_it_is(
    postgresql: URL, make: Make, standard_conforming_strings: str
) -> None:
    options = f"-c standard_conforming_strings={standard_conforming_strings} -c escape_string_warning=off"
    app = make(postgresql.update_query_dict({"options": options}))
    for user_id in USER_IDS:
        somebody = Caller(app, user_id)
        task = somebody.create()
        assert somebody("GET", f"/{task['id']}").get_json() == task
        assert somebody("DELETE", f"/{task['id']}").status_code == 204


def test_nothing_of_it_nor_of_the_limits_stays_in_the_session(postgresql: URL, make: Make) -> None:
    """A transaction pooler would hand it to the next client."""
    app = make(postgresql, threads=1)
    Caller(app, "alice").create()
    names = ("app.user_id", "statement_timeout", "lock_timeout")
    query = "SELECT " + ", ".join(f"current_setting('{name}', true)" for name in names)
    with app.app_context(), db.engine.connect() as connection:
        assert connection.exec_driver_sql(query).one() == ("", "0", "0")


def test_on_citus_a_query_says_who_acts_where_the_rows_are(
    postgresql: URL, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also works on PostgreSQL itself; tests/citus has the cluster. One connection asks, and tells the others."""
    monkeypatch.setattr(acting_user, "IS_CITUS", "SELECT true")
    monkeypatch.setattr(machines, "MACHINE_OF", "SELECT 1 WHERE false")
    app = make(postgresql, threads=2)
    alice, bob = Caller(app, "alice"), Caller(app, "bob")
    with statements_of(app) as statements:
        task = alice.create()
        with app.app_context(), db.engine.connect() as first, db.engine.connect() as second:
            for connection in (first, second):
                assert connection.connection.driver_connection.is_citus
                assert not connection.exec_driver_sql("SELECT current_setting('app.user_id', true)").scalar()
        assert statements.count("SELECT true") == 1
    with without_the_owner() as stripped:
        assert (alice("GET").get_json(), bob("GET").get_json()) == ([task], [])
        assert len(stripped) == 2
    with session(postgresql) as other:
        other.execute(text("SELECT 1 FROM tasks FOR UPDATE"))
        started = time.monotonic()
        assert alice("DELETE", f"/{task['id']}").status_code == 503
        assert time.monotonic() - started < 2.5
    # A command has the time that it needs.
    assert app.test_cli_runner().invoke(args=["users", "delete", "--yes", "alice"]).exit_code == 0
    assert sql(postgresql, "SELECT * FROM tasks") == []


def test_the_service_says_that_its_role_bypasses_the_policies(
    postgresql: URL, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    role = f"{postgresql.database}_bypass"
    sql(postgresql, f"CREATE ROLE {role} LOGIN PASSWORD 'x' BYPASSRLS IN ROLE {postgresql.username}")
    for bypassing in (as_superuser(postgresql), postgresql.set(username=role, password="x")):
        health._warn.cache_clear()
        app = make(bypassing)
        for _ in range(2):
            response = app.test_client().get("/health/ready")
            assert response.get_json()["row_level_security"] == "bypassed"
        assert capsys.readouterr().err.count("row-level security is bypassed") == 1
        close(app)
    sql(postgresql, f"DROP ROLE {role}")
