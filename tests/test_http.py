"""Bodies, errors and routes of each kind of call; tasks are the example."""

import json
import logging

import pytest
from flask import Flask
from werkzeug.exceptions import ImATeapot, ServiceUnavailable, Unauthorized

from tests.support import Caller, settings
from todo import create_app
from todo.errors import OwnershipViolated, Unavailable
from todo.web.app import LONGEST_CHAIN
from todo.web.paging import PAGE_BYTES, fit

CALLS_WITH_BODY = [("POST", ""), ("PUT", "/1"), ("PATCH", "/1/complete")]


#: A fault of each kind; more are in test_hostile_input.py.
BAD_JSON: list[tuple[bytes, str]] = [
    (b"{", "Request body is not valid JSON"),
    (b"null", "Request body must be a JSON object"),
    (b'{"title": "a", "x": {"y": 1, "y": 2}}', "Key given twice: y"),
    (b'{"title": ' + b"1" * 5000 + b"}", "Request body has a number that is too long"),
    (b'{"title": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "Request body is nested too deeply"),
]


@pytest.mark.parametrize(("method", "path"), CALLS_WITH_BODY)
class TestBody:
    """Each call that takes a body."""

    def test_a_fault_of_the_json_stands_alone(self, alice: Caller, method: str, path: str) -> None:
        for body, message in BAD_JSON:
            response = alice(method, path, data=body, content_type="application/json")
            assert (response.status_code, response.get_json()) == (400, {"error": message})
        assert alice("GET").get_json() == []

    def test_another_type_is_415(self, alice: Caller, method: str, path: str) -> None:
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", "", None):
            response = alice(method, path, data=b'{"title": "x"}', content_type=content_type)
            message = "Content-Type must be application/json"
            assert (response.status_code, response.get_json()) == (415, {"error": message})

    def test_over_one_mebibyte_it_is_413(self, alice: Caller, method: str, path: str) -> None:
        body = b'{"status": "x"}'.ljust(1024 * 1024)
        assert alice(method, path, data=body, content_type="application/json").status_code == 400
        response = alice(method, path, data=body + b" ", content_type="application/json")
        assert (response.status_code, response.get_json()) == (413, {"error": "Request body must be 1 MiB or less"})

    def test_cut_short_it_is_400(self, alice: Caller, method: str, path: str) -> None:
        options = {"content_type": "application/json", "environ_overrides": {"CONTENT_LENGTH": "20"}}
        response = alice(method, path, data=b'{"status": "x"}', **options)
        message = "Request body is shorter than its Content-Length"
        assert (response.status_code, response.get_json()) == (400, {"error": message})

    def test_chunked_it_is_411(self, alice: Caller, method: str, path: str) -> None:
        response = alice(method, path, headers={"Transfer-Encoding": "chunked"}, content_type="application/json")
        message = "Content-Length is required: a chunked body is not accepted"
        assert (response.status_code, response.get_json()) == (411, {"error": message})


@pytest.mark.parametrize(("method", "path"), CALLS_WITH_BODY[:2])
def test_a_body_is_required(alice: Caller, method: str, path: str) -> None:
    for content_type in ("application/json", "text/plain", None):
        response = alice(method, path, data=b"", content_type=content_type)
        assert (response.status_code, response.get_json()) == (400, {"error": "Request body is required"})


def test_a_body_of_http_2_without_a_length_is_not_taken_for_none(alice: Caller) -> None:
    task = alice.create()
    environ = {"SERVER_PROTOCOL": "HTTP/2", "CONTENT_LENGTH": "", "wsgi.input_terminated": True}
    body = b'{"status": "incomplete"}'
    response = alice("PATCH", f"/{task['id']}/complete", data=body, environ_overrides=environ)
    assert response.status_code == 400
    assert alice("GET").get_json() == [task]
    assert alice("PATCH", f"/{task['id']}/complete", environ_overrides=environ).status_code == 200


def test_an_unknown_route_is_404_without_identity(app: Flask) -> None:
    for path in ("/api", "/api/alice", "/api//tasks", "//api/alice/tasks", "/api/alice/tasks//1"):
        response = app.test_client().get(f"http://localhost{path}")
        assert (response.status_code, response.get_json()) == (404, {"error": "Unknown route"})
        assert response.headers["Content-Type"] == "application/json"


def test_another_method_is_405_without_identity(app: Flask) -> None:
    for method, path, allowed in (
        ("PUT", "/api/alice/tasks", {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST"}),
        ("PUT", "/api/alice/tasks/changes", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", "/api/alice/tasks/changes/", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/api/alice/tasks/1/", {"DELETE", "GET", "HEAD", "OPTIONS", "PUT"}),
        ("GET", "/api/alice/tasks/1/complete", {"OPTIONS", "PATCH"}),
        ("POST", "/health/live", {"GET", "HEAD", "OPTIONS"}),
        ("BREW", "/api/alice/tasks/1", {"DELETE", "GET", "HEAD", "OPTIONS", "PUT"}),
    ):
        response = app.test_client().open(path, method=method)
        assert (response.status_code, response.get_json()) == (405, {"error": "Method not allowed"})
        assert set(response.headers["Allow"].split(", ")) == allowed


def test_a_trailing_slash_is_accepted_without_a_redirect(alice: Caller) -> None:
    task = alice("POST", "/", json={"title": "x"}).get_json()
    assert alice("GET", "/").get_json() == [task]
    assert alice("GET", f"/{task['id']}/").get_json() == task
    assert alice("PUT", f"/{task['id']}/", json={"title": "y"}).status_code == 200
    assert alice("PATCH", f"/{task['id']}/complete/").status_code == 200
    assert alice("DELETE", f"/{task['id']}/").status_code == 204


def test_no_answer_repeats_the_host_header(alice: Caller) -> None:
    for host in ("evil.example", "evil.example:1", "evil host", '<>"', ""):
        created = alice("POST", json={"title": "x"}, headers={"Host": host})
        alice.create()
        page = alice("GET", query="?limit=1", headers={"Host": host})
        assert created.headers["Location"].startswith("/api/alice/tasks/")
        assert page.headers["Link"].startswith("</api/alice/tasks?")


def test_a_websocket_and_a_bad_host_are_refused_in_json(alice: Caller) -> None:
    websocket, host = {"Connection": "Upgrade", "Upgrade": "websocket"}, {"Host": "a" * 5000}
    for headers, message in ((websocket, "WebSocket is not supported"), (host, "Invalid Host header")):
        response = alice("GET", headers=headers)
        assert (response.status_code, response.get_json()) == (400, {"error": message})


def test_a_sentence_has_an_end(alice: Caller) -> None:
    response = alice("POST", json={f"{number}": 1 for number in range(1000)})
    assert response.status_code == 400
    message = response.get_json()["error"]
    assert message.startswith("Title is required; Unknown field: 0; Unknown field: 1; ")
    assert (len(message), message[-1]) == (2001, "…")


#: What views raise, and what the caller gets.
FAILURES: dict[str, tuple[Exception, int, str]] = {
    "fault": (RuntimeError("a secret of ours"), 500, "Internal server error"),
    "violation": (OwnershipViolated("task 1 of 'bob' came back for 'alice'"), 500, "Internal server error"),
    "unauthorized": (Unauthorized("a secret of ours"), 401, "Unauthorized"),
    "unavailable": (ServiceUnavailable("a secret of ours"), 503, "Service unavailable"),
    "no keys": (Unavailable(), 503, "Service unavailable"),
    "teapot": (ImATeapot("a secret of ours"), 418, "I'm a teapot"),
}


@pytest.fixture
def faulty(apps: dict[str, Flask]) -> Caller:
    """A caller of an app with views that fail."""
    app = create_app(settings(apps["sqlite"].config["SQLALCHEMY_DATABASE_URI"]))

    @app.get("/api/<user_id>/fail/<kind>")
    def fail(kind: str) -> str:
        raise FAILURES[kind][0]

    return Caller(app, "alice")


@pytest.mark.parametrize("kind", FAILURES)
def test_any_failure_is_called_by_its_name_and_no_secret_is_told(faulty: Caller, kind: str) -> None:
    _, status, error = FAILURES[kind]
    response = faulty.open("GET", f"/api/alice/fail/{kind}")
    assert (response.status_code, response.get_json()) == (status, {"error": error})
    assert response.headers.get("Retry-After") == ("1" if status == 503 else None)
    assert response.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)


@pytest.mark.parametrize(
    ("kind", "level", "message"),
    [
        ("fault", logging.ERROR, "RuntimeError"),
        ("violation", logging.CRITICAL, "OWNERSHIP VIOLATED: task 1 of 'bob' came back for 'alice'"),
    ],
)
def test_a_fault_of_ours_is_in_the_log(
    faulty: Caller, caplog: pytest.LogCaptureFixture, kind: str, level: int, message: str
) -> None:
    faulty.open("GET", f"/api/alice/fail/{kind}")
    (record,) = caplog.records
    first_line = f"GET /api/<user_id>/fail/<kind>: {message}"
    assert (record.levelno, record.getMessage().partition("\n")[0]) == (level, first_line)


def rise(secret: str) -> None:
    """Raise an error from another; both quote a secret."""
    try:
        int(secret)
    except ValueError as error:
        raise RuntimeError(secret) from error


def test_of_a_fault_the_log_has_the_lines_of_code_and_no_message(
    faulty: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.app.add_url_rule("/api/<user_id>/rise", "rise", lambda: rise("a title"))
    assert faulty.open("GET", "/api/alice/rise").status_code == 500
    (record,) = caplog.records
    said = record.getMessage()
    assert [line for line in said.splitlines() if not line.startswith(" ")] == [
        "GET /api/<user_id>/rise: RuntimeError",
        "RuntimeError",
        "rose from",
        "ValueError",
    ]
    assert "raise RuntimeError(secret) from error" in said
    assert "int(secret)" in said
    assert "a title" not in said.replace('rise("a title")', "")


def test_an_error_that_is_its_own_cause_is_logged_too(faulty: Caller, caplog: pytest.LogCaptureFixture) -> None:
    def rise_again() -> None:
        error = ValueError()
        raise error from error

    faulty.app.add_url_rule("/api/<user_id>/rise", "rise", rise_again)
    assert faulty.open("GET", "/api/alice/rise").status_code == 500
    (record,) = caplog.records
    assert record.getMessage().count("\nrose from\n") == LONGEST_CHAIN - 1


SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def test_every_answer_has_the_headers_that_restrict_browsers(
    alice: Caller, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/{alice.create()['id']}"
    tag = alice("GET", path).headers["ETag"]
    answers = [
        alice("GET"),
        alice("GET", path),
        alice("GET", path, headers={"If-None-Match": tag}),
        alice("HEAD", path),
        alice("POST", json={"title": "x"}),
        alice("PUT", path, json={"title": "x"}),
        alice("PUT", path, json={"title": "x"}, headers={"If-Match": tag}),
        alice("PATCH", f"{path}/complete"),
        alice("DELETE", path),
        alice("GET", path),
        alice("GET", "/x"),
        alice("OPTIONS"),
        alice("TRACE"),
        alice.open("GET", "/api/bob/tasks"),
        alice.open("GET", "/nowhere"),
        app.test_client().get("/api/alice/tasks"),
        app.test_client().get("/health/live"),
        app.test_client().get("/openapi.json"),
    ]
    monkeypatch.setattr(app, "view_functions", {})
    answers.append(alice("GET"))
    assert {answer.status_code for answer in answers} == {
        200, 201, 204, 304, 400, 401, 403, 404, 405, 412, 500,
    }  # fmt: skip
    for answer in answers:
        assert {name: answer.headers.getlist(name) for name in SECURITY_HEADERS} == {
            name: [value] for name, value in SECURITY_HEADERS.items()
        }
        is_conditional = "ETag" in answer.headers and answer.request.method in ("GET", "HEAD")
        assert answer.headers["Cache-Control"] == ("private, no-cache" if is_conditional else "no-store")


def test_a_page_is_filled_to_the_last_byte_and_has_a_row_at_least() -> None:
    # The JSON of two texts has two quotes each, two brackets and a comma. A line feed ends the page.
    filled = "x" * (PAGE_BYTES - 8)
    for rows, limit, count in (([filled, ""], 2, 2), ([filled, "x"], 2, 1), ([filled * 2, ""], 2, 1), (["", ""], 1, 1)):
        fitting, raw = fit(rows, limit)
        assert (fitting, json.loads(bytes(raw))) == (count, rows[:count])
