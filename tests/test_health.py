"""GET /health/live and /health/ready."""

from collections.abc import Iterator

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.support import Caller, Make, empty_database


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, server: URL, make: Make) -> Iterator[Flask]:
    """An app whose database has no tables."""
    with empty_database(request.param, server) as url:
        yield make(url)


@pytest.fixture
def lost(make: Make) -> Flask:
    """An app whose database is away."""
    return make(URL.create("postgresql+psycopg2", host="127.0.0.1", port=9, database="todo"))


@pytest.mark.parametrize("path", ["/health/live", "/health/live/"])
def test_it_lives_and_says_its_version(app: Flask, path: str) -> None:
    response = app.test_client().get(path)
    version = app.test_client().get("/openapi.json").get_json()["info"]["version"]
    assert (response.status_code, response.get_json()) == (200, {"status": "ok", "version": version})
    assert app.test_client().head(path).status_code == 200


@pytest.mark.parametrize("path", ["/health/ready", "/health/ready/"])
def test_it_is_ready_and_the_database_keeps_users_apart(app: Flask, url: URL, path: str) -> None:
    response = app.test_client().get(path)
    security = "none" if url.get_backend_name() == "sqlite" else "enforced"
    assert (response.status_code, response.get_json()) == (200, {"status": "ok", "row_level_security": security})
    assert app.test_client().head(path).status_code == 200


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_query_parameters_are_refused_without_a_look_at_the_database(lost: Flask, path: str) -> None:
    response = lost.test_client().get(f"{path}?probe=1")
    assert (response.status_code, response.get_json()) == (400, {"error": "Unknown query parameter: probe"})


def test_live_asks_no_database(lost: Flask) -> None:
    assert lost.test_client().get("/health/live").status_code == 200


def test_ready_is_503_without_the_database(lost: Flask) -> None:
    response = lost.test_client().get("/health/ready")
    assert (response.status_code, response.get_json()) == (503, {"error": "Service unavailable"})
    assert response.headers["Retry-After"] == "1"


def test_ready_says_that_the_tables_are_missing_and_calls_are_500(empty: Flask) -> None:
    response = empty.test_client().get("/health/ready")
    message = "The database has no tables yet: run flask db upgrade"
    assert (response.status_code, response.get_json()) == (503, {"error": message})
    for call in (Caller(empty, "alice")("GET"), Caller(empty, "alice")("POST", json={"title": "x"})):
        assert (call.status_code, call.get_json()) == (500, {"error": "Internal server error"})
