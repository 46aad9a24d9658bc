"""Cross-origin requests."""

import pytest
from flask import Flask

from tests.support import Caller, Make

ORIGIN = "https://app.example"
#: What a front end sends, as a browser asks for it: in lower case, and in order.
ASKED = ["authorization", "content-type", "idempotency-key", "if-match", "if-none-match"]
EXPOSED = (
    "ETag, Idempotency-Replayed, Link, Location, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After"
)


@pytest.fixture(params=[(ORIGIN,), (ORIGIN, "http://[::1]:3000")], ids=["one origin", "two origins"])
def app(request: pytest.FixtureRequest, make: Make, apps: dict[str, Flask]) -> Flask:
    """An app that lists origins."""
    return make(apps["sqlite"].config["SQLALCHEMY_DATABASE_URI"], cors_origins=request.param)


def test_a_preflight_needs_no_identity(app: Flask) -> None:
    response = app.test_client().options(
        "/api/alice/tasks/1/",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": ", ".join(ASKED),
        },
    )
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert "PUT" in response.headers["Access-Control-Allow-Methods"]
    assert response.headers["Access-Control-Allow-Headers"].lower().split(", ") == ASKED
    assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize("path", ["/api/alice/tasks", "/api/bob/tasks", "/api/alice/tasks/x", "/nowhere"])
def test_answers_and_errors_bear_the_headers(app: Flask, path: str) -> None:
    response = Caller(app, "alice").open("GET", path, headers={"Origin": ORIGIN})
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert response.headers["Access-Control-Expose-Headers"] == EXPOSED
    assert response.headers["Vary"] == "Origin"


def test_304_bears_them_too(app: Flask) -> None:
    alice = Caller(app, "alice")
    tag = alice("GET").headers["ETag"]
    response = alice("GET", headers={"Origin": ORIGIN, "If-None-Match": tag})
    assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (304, ORIGIN)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", f"{ORIGIN}.evil.example", "https://appxexample", f"{ORIGIN}:443", "null", ""]
)
def test_other_origins_get_none(app: Flask, origin: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "PUT"}
    for response in (
        app.test_client().options("/api/alice/tasks/1", headers=headers),
        Caller(app, "alice")("GET", headers=headers),
    ):
        assert not [name for name, _ in response.headers if name.startswith("Access-Control")]


def test_without_origins_nothing_is_said_of_them(apps: dict[str, Flask]) -> None:
    response = Caller(apps["sqlite"], "alice")("GET", headers={"Origin": ORIGIN})
    assert not [name for name, _ in response.headers if name.startswith("Access-Control")]
    assert "Vary" not in response.headers
