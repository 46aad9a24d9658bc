"""The hook, and the providers that it can ask; bearer tokens have their own tests."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import URL
from werkzeug.test import TestResponse

from config import ConfigurationError
from tests.identity.conftest import with_who
from tests.identity.tokens import assert_challenged, no_database_connection
from tests.support import Make, sql
from todo.identity import current_identity
from todo.refusals import Refusal

PROVIDERS = "tests.identity.providers"
INVALID = 'Bearer error="invalid_token"'
MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(make: Make, database: URL) -> MakeApp:
    """Makes an app that asks that provider."""

    def make_app(provider: str, *, is_flask_command: bool = True) -> Flask:
        return make(database, identity_provider=provider, jwt=None, is_flask_command=is_flask_command)

    return make_app


@pytest.fixture
def development(make_app: MakeApp) -> Flask:
    """An app that believes the path."""
    return make_app("development")


@pytest.fixture
def gateway(make_app: MakeApp) -> Flask:
    """An app that believes a header, with a view that shows who is calling."""
    return with_who(make_app(f"{PROVIDERS}:by_header"))


def get(app: Flask, path: str = "/api/alice/tasks", **headers: str) -> TestResponse:
    """The answer to a GET."""
    return app.test_client().get(path, headers=headers)


def assert_unauthorized(response: TestResponse, challenge: str) -> None:
    assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
    assert response.headers["WWW-Authenticate"] == challenge


class TestDevelopment:
    """IDENTITY_PROVIDER=development."""

    def test_the_path_is_believed(self, development: Flask, database: URL) -> None:
        response = development.test_client().post("/api/alice/tasks", json={"title": "x"})
        assert (response.status_code, response.get_json()["user_id"]) == (201, "alice")
        assert sql(database, "SELECT id, email FROM users") == [("alice", None)]
        assert get(development, "/api/alice/tasks").get_json() == [response.get_json()]
        assert get(development, "/api/bob/tasks").get_json() == []

    @pytest.mark.parametrize(
        "name", [".", "..", "%2E", "%00", "a%0Ab", "%7F", "%C2%80", "%ff", "%ED%A0%80", "%EF%BF%BD", "a" * 256]
    )
    def test_a_name_that_cannot_be_a_user_id_is_401(self, development: Flask, name: str) -> None:
        with no_database_connection(development):
            response = get(development, f"/api/{name}/tasks")
        assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
        assert response.headers["WWW-Authenticate"].startswith("Bearer")

    def test_a_route_that_names_nobody_is_401(self, development: Flask) -> None:
        development.add_url_rule("/mine", "mine", lambda: "")
        assert_unauthorized(get(development, "/mine"), "Bearer")


@pytest.mark.parametrize(
    ("provider", "is_flask_command", "warnings"),
    [
        ("development", False, ["IDENTITY_PROVIDER=development: no authentication, the user in the path is trusted"]),
        ("development", True, []),
        (f"{PROVIDERS}:by_header", False, []),
    ],
)
def test_a_start_without_authentication_warns_outside_the_flask_command(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, *, provider: str, is_flask_command: bool, warnings: list[str]
) -> None:
    # A start replaces the handlers of the root.
    logging.getLogger("todo.identity.hook").addHandler(caplog.handler)
    make_app(provider, is_flask_command=is_flask_command)
    logging.getLogger("todo.identity.hook").removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == warnings


class TestCustomProvider:
    """IDENTITY_PROVIDER=package.module:callable."""

    def test_whom_it_names_reaches_their_own_path(self, gateway: Flask, database: URL) -> None:
        headers = {"X-User": "alice", "X-Email": "a@example.com"}
        response = gateway.test_client().post("/api/alice/tasks", json={"title": "x"}, headers=headers)
        assert (response.status_code, response.get_json()["user_id"]) == (201, "alice")
        assert sql(database, "SELECT id, email FROM users") == [("alice", "a@example.com")]

    def test_it_may_be_a_dotted_name_within_the_module(self, make_app: MakeApp) -> None:
        assert get(make_app(f"{PROVIDERS}:Gateway.identify"), **{"X-User": "alice"}).status_code == 200

    @pytest.mark.parametrize(
        ("provider", "challenge", "reason"),
        [
            ("by_header", "Bearer", Refusal.NO_IDENTITY),
            ("nobody", "Bearer", Refusal.NO_IDENTITY),
            ("aborting", "Bearer", Refusal.NO_IDENTITY),
            ("impossible", INVALID, Refusal.SUBJECT),
            ("refusing", INVALID, Refusal.REFUSED_BY_PROVIDER),
            ("refusing_for_a_reason", INVALID, Refusal.EXPIRED),
            ("quoting", INVALID, Refusal.REFUSED_BY_PROVIDER),
        ],
    )
    def test_a_refusal_is_401_and_nothing_of_the_providers_own_is_logged(
        self, make_app: MakeApp, provider: str, challenge: str, reason: Refusal
    ) -> None:
        assert_challenged(make_app(f"{PROVIDERS}:{provider}"), challenge, reason)

    def test_a_reason_that_is_not_of_the_list_is_a_fault_of_the_provider(self, make_app: MakeApp) -> None:
        assert get(make_app(f"{PROVIDERS}:refusing_in_its_own_words")).status_code == 500

    @pytest.mark.parametrize("provider", ["away", "away_by_url", "away_in_its_own_words"])
    def test_what_is_away_is_503_and_only_its_kind_is_logged(
        self, make_app: MakeApp, provider: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        app = make_app(f"{PROVIDERS}:{provider}")
        with no_database_connection(app):
            response = get(app)
        assert (response.status_code, response.get_json()) == (503, {"error": "Service unavailable"})
        assert response.headers["Retry-After"] == "1"
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "WARNING todo.web.app: GET " in line]
        assert line.endswith("Service unavailable (ConnectionError)" if provider == "away_by_url" else " unavailable")
        assert "secret" not in line

    @pytest.mark.parametrize("provider", ["a_string", "a_truth", "a_dictionary", "a_lookalike", "broken"])
    def test_a_fault_of_the_provider_is_500_and_tells_nothing(self, make_app: MakeApp, provider: str) -> None:
        app = make_app(f"{PROVIDERS}:{provider}")
        with no_database_connection(app):
            response = get(app)
        assert (response.status_code, response.get_json()) == (500, {"error": "Internal server error"})
        assert "secret" not in response.get_data(as_text=True) + str(response.headers)


class TestRoutes:
    """Where the hook asks, and where it does not."""

    @pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/openapi.json"])
    def test_a_public_route_asks_nobody(self, make_app: MakeApp, path: str) -> None:
        assert get(make_app(f"{PROVIDERS}:broken"), path).status_code == 200

    def test_a_new_route_is_not_public(self, gateway: Flask) -> None:
        gateway.add_url_rule("/new", "new", lambda: "")
        assert_unauthorized(get(gateway, "/new"), "Bearer")
        assert get(gateway, "/new", **{"X-User": "alice"}).status_code == 200


class TestCurrentIdentity:
    """What views find."""

    def test_it_is_what_the_provider_made(self, gateway: Flask) -> None:
        response = get(gateway, "/api/alice/who", **{"X-User": "alice", "X-Email": "a@example.com"})
        assert response.get_json() == {"user_id": "alice", "email": "a@example.com", "claims": {"via": ["gateway"]}}

    def test_there_is_none_on_a_public_route(self, gateway: Flask) -> None:
        with gateway.test_request_context("/health/live"), pytest.raises(AttributeError):
            current_identity()


class TestConfiguration:
    """Providers that cannot be had."""

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("tests.identity.nowhere:x", "No module named 'tests.identity.nowhere'"),
            ("nowhere:x", "No module named 'nowhere'"),
            (f"{PROVIDERS}:missing", f"{PROVIDERS} has no missing"),
            (f"{PROVIDERS}:Gateway.missing", f"{PROVIDERS} has no Gateway.missing"),
            (f"{PROVIDERS}:NOT_CALLABLE", "is not callable"),
        ],
    )
    def test_a_name_of_no_provider_stops_the_start(self, make_app: MakeApp, name: str, reason: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            make_app(name)
        assert f"IDENTITY_PROVIDER={name} " in str(caught.value)
        assert reason in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("\nraise RuntimeError('secret')", "RuntimeError in {file}, line 2"),
            ("raise SystemExit('secret')", "SystemExit in {file}, line 1"),
            ("from tests.identity import secret", "ImportError in {file}, line 1"),
            ("import json; json.loads('secret')", "JSONDecodeError in "),
            ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
            ("def provider(secret:", "SyntaxError in {file}, line 1"),
            ("raise SyntaxError('secret')", "SyntaxError in {file}, line 1"),
        ],
    )
    def test_a_module_that_fails_to_import_stops_the_start(
        self, make_app: MakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
    ) -> None:
        (tmp_path / "failing_provider.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ConfigurationError) as caught:
            make_app("failing_provider:provider")
        reason = reason.format(file=tmp_path / "failing_provider.py")
        assert f"IDENTITY_PROVIDER=failing_provider:provider cannot be loaded: {reason}" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        assert "secret" not in str(caught.value)

    def test_jwt_without_its_settings_stops_the_start(self, make_app: MakeApp) -> None:
        with pytest.raises(ConfigurationError, match="IDENTITY_PROVIDER=jwt without its settings"):
            make_app("jwt")
