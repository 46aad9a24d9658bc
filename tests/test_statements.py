"""Statements on a plain cursor: what becomes of the connection, of parameters that are missing, and of the types."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from flask import Flask
from sqlalchemy import URL, bindparam, literal, select

from tests.support import Caller, Make, close, migrated_app, postgresql_database, sql
from todo.database import UtcInstant
from todo.extensions import db
from todo.faults import DRIVER_ERRORS
from todo.statements import Statement
from todo.tasks import queries

INSTANT = datetime(2025, 1, 9, 12, 34, 56, 123456, tzinfo=UTC)


class Instants(NamedTuple):
    """Two instants."""

    literal: datetime
    parameter: datetime


def connections(app: Flask) -> tuple[int, int]:
    """How many connections lie in the pool, and how many are out."""
    with app.app_context():
        return db.engine.pool.checkedin(), db.engine.pool.checkedout()  # type: ignore[attr-defined]


def test_types_are_converted_on_both_ways(app: Flask) -> None:
    columns = [literal(INSTANT, UtcInstant), bindparam("instant", type_=UtcInstant)]
    statement = Statement(select(*columns), Instants)
    later = INSTANT + timedelta(days=1)
    with app.app_context():
        row = statement.one_or_none(instant=later)
    assert row == (INSTANT, later)
    assert [instant.tzinfo for instant in row] == [UTC, UTC]


def test_instants_are_in_utc_whatever_the_servers_time_zone(make: Make, server: URL) -> None:
    with postgresql_database(server) as url:
        task = Caller(migrated_app(url), "alice").create()
        app = make(url.update_query_dict({"options": "-c timezone=Asia/Kathmandu"}))
        assert Caller(app, "alice")("GET").get_json() == [task]


@pytest.mark.parametrize("missing", ["user_id", "task_id"])
def test_a_parameter_that_is_missing_is_an_error_rather_than_null(app: Flask, missing: str) -> None:
    named = {"user_id": "alice", "task_id": 1}
    del named[missing]
    with app.app_context(), pytest.raises((KeyError, *DRIVER_ERRORS), match=missing):
        queries.FIND.all(**named)
    assert connections(app)[1] == 0


def test_an_error_of_the_statement_keeps_its_connection(app: Flask, alice: Caller) -> None:
    alice.create()
    before = connections(app)
    with app.app_context(), pytest.raises(DRIVER_ERRORS):
        queries.insert_task("alice", None, title="", description=None)
    assert connections(app) == before
    assert alice.titles() == ["Buy milk"]


def test_a_connection_that_breaks_under_a_statement_is_503_and_replaced(server: URL) -> None:
    with postgresql_database(server) as url:
        alice = Caller(migrated_app(url, threads=1), "alice")
        alice.create()
        sql(url, "ALTER TABLE tasks ADD CHECK (title <> 'x' OR pg_terminate_backend(pg_backend_pid())) NOT VALID")
        for _ in range(2):
            assert alice("POST", json={"title": "x"}).status_code == 503
            assert connections(alice.app) == (1, 0)
            assert alice.titles() == ["Buy milk"]
        close(alice.app)
