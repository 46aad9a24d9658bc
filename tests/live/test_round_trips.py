"""How often a request goes to the database and back, counted on the wire."""

from collections.abc import Iterator

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.conftest import url_of
from tests.live.test_sharding import status_of
from tests.live.wire import Wire, wire_to
from tests.support import REQUESTS, Caller, Make, close, migrated_database, settings
from todo import create_app

pytestmark = pytest.mark.sql


@pytest.fixture(scope="module")
def wired(server: URL) -> Iterator[tuple[Flask, Wire]]:
    """An app whose database is behind a wire, and the wire."""
    with migrated_database("postgresql", server) as url, wire_to(url) as (wire, wired_url):
        app = create_app(settings(wired_url, threads=1))
        Caller(app, "alice", "shared@example.com").create()
        yield app, wire
        close(app)


def test_a_known_user_costs_one_round_trip(wired: tuple[Flask, Wire]) -> None:
    app, wire = wired
    alice = Caller(app, "alice")
    for method, path, options in [*REQUESTS, ("GET", "/9223372036854775807", {})]:
        task = alice.create() | {"since": alice.since()}
        wire.reset()
        status = 404 if "9" in path else status_of(method, path)
        assert alice.send(task, method, path, options).status_code == status
        assert (wire.round_trips, wire.connections) == (1, 0), (method, path, options)


@pytest.mark.parametrize(
    ("user_id", "email", "round_trips"),
    [("bob", None, 1), ("carol", "carol@example.com", 1), ("dave", "shared@example.com", 2)],
)
def test_a_first_task_costs_one_and_with_the_email_of_another_user_two(
    wired: tuple[Flask, Wire], user_id: str, email: str | None, round_trips: int
) -> None:
    app, wire = wired
    wire.reset()
    Caller(app, user_id, email).create()
    assert (wire.round_trips, wire.connections) == (round_trips, 0)


def test_a_create_under_a_key_costs_one_and_its_repetition_too(wired: tuple[Flask, Wire]) -> None:
    """On the same connection; a user's first create costs no more."""
    app, wire = wired
    for user_id in ("alice", "erin"):
        for _ in range(3):
            wire.reset()
            response = Caller(app, user_id)("POST", json={"title": "x"}, headers={"Idempotency-Key": "key"})
            assert response.status_code == 201
            assert (wire.round_trips, wire.connections) == (1, 0)


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "another"}])
def test_a_limit_costs_none(wired: tuple[Flask, Wire], make: Make, headers: dict[str, str]) -> None:
    """For a first task, a second, and one that is refused."""
    app, wire = wired
    frank = Caller(make(url_of(app), threads=1, max_tasks=2), f"frank{len(headers)}")
    frank("GET")
    for number, status in enumerate((201, 201, 409, 409)):
        wire.reset()
        named = {name: f"{value} {number}" for name, value in headers.items()}
        assert frank("POST", json={"title": "x"}, headers=named).status_code == status
        assert (wire.round_trips, wire.connections) == (1, 0)


def test_a_refused_request_costs_none(wired: tuple[Flask, Wire]) -> None:
    app, wire = wired
    wire.reset()
    alice = Caller(app, "alice")
    assert app.test_client().get("/api/alice/tasks").status_code == 401
    assert alice.open("GET", "/api/bob/tasks").status_code == 403
    assert alice("GET", "/x").status_code == 400
    assert alice("POST", json={}).status_code == 400
    assert app.test_client().options("/api/alice/tasks").status_code == 200
    assert (wire.round_trips, wire.connections) == (0, 0)


def test_a_look_at_all_that_the_database_must_have_costs_one(wired: tuple[Flask, Wire]) -> None:
    app, wire = wired
    wire.reset()
    assert app.test_client().get("/health/ready").status_code == 200
    assert (wire.round_trips, wire.connections) == (1, 0)
