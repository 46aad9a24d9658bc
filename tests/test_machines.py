"""On Citus the requests for one machine hold a part of the connections, and the others are there for other machines.

Here the machine of a user is the length of the name. tests/citus has the machines.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask import Flask
from sqlalchemy import URL
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tests.support import Caller, Make, acting_for
from todo.db import acting_user, db, machines, pool
from todo.db.failures import DRIVER_ERRORS


@pytest.fixture
def app(make: Make, postgresql: URL, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """An app with four connections, which knows that its database is Citus."""
    monkeypatch.setattr(acting_user, "IS_CITUS", "SELECT true")
    monkeypatch.setattr(machines, "MACHINE_OF", "SELECT length(%(user_id)s) WHERE %(user_id)s <> 'nobody'")
    monkeypatch.setattr(pool, "TIMEOUT", 0.1)
    app = make(postgresql, threads=4)
    Caller(app, "alice").create()
    return app


@contextmanager
def held(app: Flask, user_id: str, count: int) -> Iterator[None]:
    """So many requests of the user have a connection."""
    with acting_for(app, user_id):
        connections = [db.engine.connect() for _ in range(count)]
    yield
    for connection in connections:
        connection.close()


def test_the_requests_for_one_machine_hold_three_quarters_of_the_connections(app: Flask) -> None:
    alice, same, other = Caller(app, "alice"), Caller(app, "carol"), Caller(app, "bob")
    for _ in range(2):
        with held(app, "alice", 3):
            for caller in (alice, same, alice):
                assert caller("GET").status_code == 503
            assert other("GET").get_json() == []
            assert app.test_client().get("/health/ready").status_code == 200
        with held(app, "bob", 1):
            assert alice.titles() == ["Buy milk"]


def test_only_the_first_of_those_who_are_refused_has_waited(app: Flask) -> None:
    waits: list[float] = []
    with held(app, "alice", 3), acting_for(app, "alice"):
        db.engine.pool.observe(waits.append)  # type: ignore[attr-defined]
        for _ in range(3):
            with pytest.raises(PoolTimeout, match="one machine"):
                db.engine.connect()
    assert [wait for wait in waits if wait > 0.05] == waits[:1]


def test_a_connection_that_cannot_be_made_is_counted_no_more(app: Flask) -> None:
    assert Caller(app, "bob").titles() == []
    with held(app, "carl", 1), held(app, "alice", 3), acting_for(app, "bob"), pytest.raises(PoolTimeout):
        db.engine.connect()
    with held(app, "bob", 3):
        assert Caller(app, "alice").titles() == ["Buy milk"]


def test_without_a_machine_there_is_no_share(app: Flask) -> None:
    """Before users is distributed. And a question that fails keeps no connection."""
    with held(app, "nobody", 4):
        pass
    with acting_for(app, "\0"), pytest.raises((*DRIVER_ERRORS, ValueError)):
        db.engine.connect()
    with held(app, "nobody", 4):
        pass
