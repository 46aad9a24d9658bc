"""Cross-origin requests."""

from collections.abc import Callable

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from tests.support import Caller, Make, statements_of

ORIGIN = "https://app.example"
#: What a front end, its HTTP client and its tracer send, as a browser asks for it: in lower case, and in order.
ASKED = [
    *["authorization", "baggage", "cache-control", "content-type", "idempotency-key", "if-match", "if-none-match"],
    *["sentry-trace", "traceparent", "tracestate", "x-request-id", "x-requested-with"],
]
EXPOSED = (
    "ETag, Idempotency-Replayed, Link, Location, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, "
    "X-Request-ID"
)


@pytest.fixture
def of_origins(make: Make, apps: dict[str, Flask]) -> Callable[..., Flask]:
    """Makes an app that lists these origins."""
    return lambda *origins, **changes: make(
        apps["sqlite"].config["SQLALCHEMY_DATABASE_URI"], cors_origins=origins, **changes
    )


@pytest.fixture(params=[(ORIGIN,), (ORIGIN, "http://[::1]:3000")], ids=["one origin", "two origins"])
def app(request: pytest.FixtureRequest, of_origins: Callable[..., Flask]) -> Flask:
    """An app that lists origins."""
    return of_origins(*request.param)


def preflight(app: Flask, names: str, origin: str = ORIGIN) -> TestResponse:
    """The answer to a preflight that asks for these headers."""
    headers = {"Origin": origin, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": names}
    return app.test_client().options("/api/alice/tasks/1/", headers=headers)


def allowed(app: Flask, names: str, origin: str = ORIGIN) -> str | None:
    """Which of the headers that a preflight asks for are allowed."""
    return preflight(app, names, origin).headers.get("Access-Control-Allow-Headers")


def test_a_preflight_needs_no_identity_and_no_database(app: Flask) -> None:
    with statements_of(app) as statements:
        response = preflight(app, ", ".join(ASKED))
    assert statements == []
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert "PUT" in response.headers["Access-Control-Allow-Methods"]
    assert response.headers["Access-Control-Allow-Headers"].lower().split(", ") == ASKED
    assert response.headers["Access-Control-Max-Age"] == "600"
    assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize("spelled", [str.upper, str.title])
def test_a_header_is_allowed_in_any_letter_case(app: Flask, spelled: Callable[[str], str]) -> None:
    names = spelled(", ".join(ASKED))
    assert allowed(app, names) == names


def test_settings_allow_more_headers_and_no_others(of_origins: Callable[..., Flask]) -> None:
    app = of_origins(ORIGIN, cors_headers=("X-Trace-Id", "$app.name^"))
    assert allowed(app, "$app.name^, x-trace-id") == "$app.name^, x-trace-id"
    assert allowed(app, "$appxname^, x-trace-id, x-trace-id2, x-csrf-token") == "x-trace-id"
    assert allowed(app, ", ".join(ASKED)) == ", ".join(ASKED)


def test_without_settings_no_other_header_is_allowed(app: Flask) -> None:
    assert allowed(app, "authorization, x-trace-id, *") == "authorization"


@pytest.mark.parametrize("listed", ["capacitor://localhost", "app://-", "safari-web-extension://0A1B"])
def test_an_origin_of_another_scheme_is_one(of_origins: Callable[..., Flask], listed: str) -> None:
    app = of_origins(listed)
    assert allowed(app, "authorization", listed) == "authorization"
    response = Caller(app, "alice")("GET", headers={"Origin": listed})
    assert response.headers["Access-Control-Allow-Origin"] == listed
    for other in (listed.swapcase(), f"{listed}:80", f"{listed}.evil.example", "ionic://localhost"):
        assert allowed(app, "authorization", other) is None


@pytest.mark.parametrize("path", ["/api/alice/tasks", "/api/bob/tasks", "/api/alice/tasks/x", "/nowhere"])
def test_answers_and_errors_have_the_headers(app: Flask, path: str) -> None:
    response = Caller(app, "alice").open("GET", path, headers={"Origin": ORIGIN})
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert response.headers["Access-Control-Expose-Headers"] == EXPOSED
    assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", f"{ORIGIN}.evil.example", "https://appxexample", f"{ORIGIN}:443", "null", ""]
)
def test_other_origins_get_none(app: Flask, origin: str) -> None:
    for response in (preflight(app, "x", origin), Caller(app, "alice")("GET", headers={"Origin": origin})):
        assert not [name for name, _ in response.headers if name.startswith("Access-Control")]


def test_without_origins_nothing_is_said_of_them(apps: dict[str, Flask]) -> None:
    response = Caller(apps["sqlite"], "alice")("GET", headers={"Origin": ORIGIN})
    assert not [name for name, _ in response.headers if name.startswith("Access-Control")]
    assert "Vary" not in response.headers
