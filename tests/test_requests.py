"""One line for each request, and the id that ties an answer to what was logged on its way."""

import json
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from threading import Barrier
from typing import Any

import pytest
from flask import Flask, request
from limits import parse
from sqlalchemy import URL
from werkzeug.test import TestResponse

from config import refusal
from tests.support import ROOT, Caller, Make, token

ID = re.compile("[0-9a-f]{32}")
TEXT = re.compile(r"[\d-]+ [\d:,]+ \[(?P<request_id>\S+)\] (?P<level>\w+) (?P<logger>[\w.]+): (?P<message>.*)")
#: The message on a request.
MESSAGE = re.compile(r'(\S+) (\S+) (\d{3}) ([\d.]+) ms (-|".*")(?: \((.+)\))?')

Lines = Callable[[], list[str]]


@pytest.fixture
def make_talkative(make: Make, database: URL, log: StringIO) -> Callable[..., Flask]:
    """Makes an app that writes of each request."""

    def make_talkative(**changes: Any) -> Flask:
        app = make(database, **{"log_level": "INFO"} | changes)
        for handler in logging.getLogger().handlers:
            # Among them those of pytest.
            if type(handler) is logging.StreamHandler:
                handler.setStream(log)
        return app

    return make_talkative


@pytest.fixture
def log() -> StringIO:
    """Where the app writes."""
    return StringIO()


@pytest.fixture
def lines(log: StringIO) -> Lines:
    """What has been written so far."""
    # splitlines() breaks at more than a newline, as does many a viewer of logs.
    return lambda: log.getvalue().splitlines()


@pytest.fixture(params=["text", "json"])
def log_format(request: pytest.FixtureRequest) -> str:
    """How lines are written."""
    return str(request.param)


@pytest.fixture
def talkative(make_talkative: Callable[..., Flask], log_format: str) -> Flask:
    """An app that writes of each request, with views and hooks that fail."""
    app = make_talkative(log_format=log_format, cors_origins=("https://app.example",))

    @app.get("/api/<user_id>/broken")
    def broken() -> str:
        raise RuntimeError

    @app.get("/api/<user_id>/asking")
    def asking() -> dict[str, str]:
        asked = app.test_client().get("/health/live")
        logging.getLogger("nested").warning("after it")
        return {"id": asked.headers["X-Request-ID"]}

    @app.before_request
    def die() -> None:
        if "X-Die-Before" in request.headers:
            raise RuntimeError

    @app.after_request
    def die_too(response: Any) -> Any:
        if "X-Die-After" in request.headers:
            raise RuntimeError
        return response

    return app


def said(line: str) -> dict[str, Any]:
    """The fields of the log line of a request, from text or JSON."""
    if line.startswith("{"):
        found = dict(json.loads(line))
        assert found.pop("time")
        assert found.pop("message").startswith(f"{found['method']} {found['route'] or '-'} {found['status']} ")
        return found
    matched = TEXT.fullmatch(line)
    assert matched, line
    found = matched.groupdict()
    message = MESSAGE.fullmatch(found.pop("message"))
    assert message, line
    method, route, status, milliseconds, user_id, reason = message.groups()
    found |= {"method": method, "route": None if route == "-" else route, "status": int(status)}
    found |= {"duration_ms": float(milliseconds), "user_id": None if user_id == "-" else json.loads(user_id)}
    return found | ({"reason": reason} if reason else {})


def the_line(lines: list[str]) -> dict[str, Any]:
    """What the one line on a request says."""
    (line,) = [line for line in lines if "todo.web.request_log" in line]
    return said(line)


LIST, ONE = "/api/<user_id>/tasks", "/api/<user_id>/tasks/<task_id>"
PREFLIGHT = {"Origin": "https://app.example", "Access-Control-Request-Method": "PUT"}
#: A request, and what its line says: the route, the status and the user.
REQUESTS: list[tuple[str, str, dict[str, Any], str | None, int, str | None]] = [
    ("GET", "/api/alice/tasks?q=secret", {}, LIST, 200, "alice"),
    ("GET", "/api/alice/tasks/", {}, LIST, 200, "alice"),
    ("HEAD", "/api/alice/tasks", {}, LIST, 200, "alice"),
    ("GET", "/api/alice/tasks", {"headers": {"If-None-Match": "*"}}, LIST, 304, "alice"),
    ("POST", "/api/alice/tasks", {"json": {"title": "secret"}}, LIST, 201, "alice"),
    ("POST", "/api/alice/tasks", {"json": {"secret": "secret"}}, LIST, 400, "alice"),
    ("DELETE", "/api/alice/tasks/1", {}, ONE, 404, "alice"),
    ("GET", "/api/alice/tasks/secret", {}, ONE, 400, "alice"),
    ("GET", "/api/bob/tasks", {}, LIST, 403, "alice"),
    ("GET", "/api/alice/tasks", {"headers": {"Authorization": "Bearer secret"}}, LIST, 401, None),
    ("GET", "/secret?secret", {}, None, 404, None),
    ("PUT", "/api/alice/tasks", {}, None, 405, None),
    ("SECRET", "/api/alice/tasks", {}, None, 405, None),
    ("OPTIONS", "/api/alice/tasks", {}, LIST, 200, None),
    ("OPTIONS", "/api/alice/tasks", {"headers": PREFLIGHT}, LIST, 200, None),
    ("GET", "/health/live", {}, "/health/live", 200, None),
    ("GET", "/api/alice/broken", {}, "/api/<user_id>/broken", 500, "alice"),
    ("GET", "/health/live", {"headers": {"X-Die-Before": "secret"}}, "/health/live", 500, None),
    ("GET", "/health/live", {"headers": {"X-Die-After": "secret"}}, "/health/live", 500, None),
    ("GET", "/health/live", {"headers": {"Host": "secret" * 1000}}, None, 400, None),
]


@pytest.mark.parametrize(("method", "path", "options", "route", "status", "user_id"), REQUESTS)
def test_each_request_has_one_line_and_its_answer_the_same_id(
    *, talkative: Flask, lines: Lines, method: str, path: str, options: Any, route: Any, status: int, user_id: Any
) -> None:
    response = Caller(talkative, "alice").open(method, path, **options)
    written = lines()
    line = the_line(written)
    assert (line["method"], line["route"]) == ("other" if method == "SECRET" else method, route)
    assert (line["status"], line["user_id"], response.status_code) == (status, user_id, status)
    assert (line["level"], line["logger"]) == ("INFO", "todo.web.request_log")
    assert 0 < line["duration_ms"] < 10_000
    assert response.headers.getlist("X-Request-ID") == [line["request_id"]]
    assert ID.fullmatch(line["request_id"])
    assert "secret" not in str(written).lower()


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        (None, "no token"),
        ("Bearer secret", "malformed"),
        # It holds longer than a run of the suite may take.
        (f"Bearer {token('secret', aud='secret', exp=2**32)}", "audience unexpected"),
    ],
)
def test_a_401_says_why_in_the_log_and_nowhere_else(
    talkative: Flask, lines: Lines, authorization: str | None, reason: str
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    response = talkative.test_client().get("/api/secret/tasks", headers=headers)
    assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
    assert reason not in str(response.headers)
    line = the_line(lines())
    assert (line["status"], line["user_id"], line["reason"]) == (401, None, reason)
    assert "secret" not in str(line)


def test_what_is_no_refusal_has_no_reason(talkative: Flask, lines: Lines) -> None:
    for path in ("/health/live", "/api/alice/tasks", "/api/bob/tasks", "/nowhere"):
        Caller(talkative, "alice").open("GET", path)
    assert ["reason" in said(line) for line in lines()] == [False] * 4


def test_a_refusal_that_is_one_too_many_keeps_its_reason(make_talkative: Callable[..., Flask], lines: Lines) -> None:
    app = make_talkative(rate_limits=(parse("1 per hour"),))
    for _ in range(2):
        app.test_client().get("/api/alice/tasks")
    assert [(said(line)["status"], said(line)["reason"]) for line in lines()] == [(401, "no token"), (429, "no token")]


def test_a_scraper_without_the_right_token_is_told_apart(make_talkative: Callable[..., Flask], lines: Lines) -> None:
    app = make_talkative(metrics_token="x" * 16)
    for headers in ({}, {"Authorization": "Bearer secret"}):
        assert app.test_client().get("/metrics", headers=headers).status_code == 401
    assert [said(line)["reason"] for line in lines()] == ["no token", "metrics token"]


def test_a_provider_that_breaks_leaves_a_line_too(make_talkative: Callable[..., Flask], lines: Lines) -> None:
    app = make_talkative(identity_provider="tests.identity.providers:broken")
    response = app.test_client().get("/api/alice/tasks", headers={"X-Request-ID": "mine"})
    line = the_line(lines())
    assert (response.status_code, response.headers["X-Request-ID"]) == (500, "mine")
    assert (line["status"], line["user_id"], line["request_id"]) == (500, None, "mine")


def ask(app: Flask, path: str = "/health/live", *, request_id: str) -> TestResponse:
    """The answer to a request that brings an id."""
    return Caller(app, "alice").open("GET", path, headers={"X-Request-ID": request_id})


@pytest.mark.parametrize("request_id", ["1", "x" * 128, "3f2a7c1e-90b4-4c0f-8f6e-0c1f6d0f4a11", "Root=1-67/a+b:c_d.e"])
def test_a_sane_id_is_taken(talkative: Flask, lines: Lines, request_id: str) -> None:
    assert ask(talkative, request_id=request_id).headers.getlist("X-Request-ID") == [request_id]
    assert the_line(lines())["request_id"] == request_id


@pytest.mark.parametrize(
    "request_id", ["", "x" * 129, "a b", "a,b", 'a"b', "a]b", "é", "a\tb", "\x1b[31m", "{}", "%0a"]
)
def test_any_other_id_is_replaced(talkative: Flask, lines: Lines, request_id: str) -> None:
    environ = {"HTTP_X_REQUEST_ID": request_id}
    response = talkative.test_client().get("/health/live", environ_overrides=environ)
    (answered,) = response.headers.getlist("X-Request-ID")
    assert ID.fullmatch(answered)
    assert the_line(lines())["request_id"] == answered


def test_each_request_has_an_id_of_its_own(talkative: Flask) -> None:
    client = talkative.test_client()
    assert len({client.get("/health/live").headers["X-Request-ID"] for _ in range(20)}) == 20


def test_every_line_written_meanwhile_has_the_id_and_no_other_does(
    talkative: Flask, lines: Lines, log_format: str
) -> None:
    ask(talkative, "/api/alice/broken", request_id="mine")
    logging.getLogger("elsewhere").info("later")
    if log_format == "json":
        found = [(line["logger"], line.get("request_id", "-")) for line in map(json.loads, lines())]
    else:
        found = [(match["logger"], match["request_id"]) for line in lines() if (match := TEXT.fullmatch(line))]
    assert found == [("todo.web.app", "mine"), ("todo.web.request_log", "mine"), ("elsewhere", "-")]


def test_each_field_in_json_is_documented_and_no_other(make_talkative: Callable[..., Flask], lines: Lines) -> None:
    """What writes a line: a request, any logger, with a traceback too, and a start that is refused."""
    app = make_talkative(log_format="json")
    Caller(app, "alice")("GET")
    app.test_client().get("/api/alice/tasks")
    try:
        raise RuntimeError
    except RuntimeError:
        logging.getLogger("elsewhere").exception("of a program")
    written = [json.loads(line) for line in [*lines(), refusal("PORT is bad", {"LOG_FORMAT": "json"})]]
    kinds = {str: "string", int: "integer", float: "number"}
    found = {(name, kinds[type(value)]) for line in written for name, value in line.items() if value is not None}
    page = (ROOT / "docs/monitoring.md").read_text().partition("## Log in JSON")[2]
    documented = re.findall(r"^\| `(\w+)` \| (\w+)(?: or null)? \| ([\w ]+) \|", page, re.MULTILINE)
    assert found == {(name, kind) for name, kind, _ in documented}
    always = {name for name, _, present in documented if present == "always"}
    assert [line.keys() & always for line in written] == [always] * 4
    assert written[-1].keys() == always
    # Nothing else adds fields.
    code = [*(ROOT / "todo").rglob("*.py"), ROOT / "config.py", ROOT / "gunicorn.conf.py"]
    assert [path.name for path in code if "extra=" in path.read_text()] == ["request_log.py"]


def test_a_request_within_a_request_takes_its_id_away_from_nobody(talkative: Flask, lines: Lines) -> None:
    answer = Caller(talkative, "alice").open("GET", "/api/alice/asking")
    outer, inner = answer.headers["X-Request-ID"], answer.get_json()["id"]
    written = lines()
    assert [outer in line for line in written] == [False, True, True]
    assert inner in written[0]


def test_ids_of_requests_at_once_are_not_mixed_up(talkative: Flask, lines: Lines) -> None:
    together = Barrier(4)

    @talkative.get("/api/<user_id>/slow")
    def slow() -> str:
        together.wait(10)
        logging.getLogger("slow").warning("for %s", request.headers["X-Request-ID"])
        return ""

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: ask(talkative, "/api/alice/slow", request_id=f"id-{number}"), range(40)))
    assert [answer.headers["X-Request-ID"] for answer in answers] == [f"id-{number}" for number in range(40)]
    written = lines()
    for number in range(40):
        of_this = [line for line in written if re.search(rf"\bid-{number}\b", line)]
        assert len(of_this) == 2, of_this
        assert all(re.search(rf'(\[|"request_id": ")id-{number}\b', line) for line in of_this)


@pytest.mark.parametrize(
    "user_id", ["a b", '"x" y', "-", "null", "a\u2028b", "a\u202eb", "é", "\U0001f600", "a\\nb", "a 200 1.0 ms b"]
)
def test_whatever_a_user_is_called_the_line_is_one_and_clear(talkative: Flask, lines: Lines, user_id: str) -> None:
    assert Caller(talkative, user_id)("GET").status_code == 200
    (line,) = lines()
    assert line.isascii()
    assert said(line)["user_id"] == user_id


@pytest.mark.parametrize("method", ["GET\r\nX", "X" * 10_000, "g\u00e9t", '"', ""])
def test_whatever_a_method_is_called_the_line_is_one_and_short(talkative: Flask, lines: Lines, method: str) -> None:
    talkative.test_client().get("/health/live", environ_overrides={"REQUEST_METHOD": method})
    (line,) = lines()
    assert len(line) < 500
    assert said(line)["method"] == "other"


def test_above_info_nothing_is_written_and_the_id_is_still_returned(
    make_talkative: Callable[..., Flask], lines: Lines
) -> None:
    response = ask(make_talkative(log_level="WARNING"), request_id="mine")
    assert (response.headers["X-Request-ID"], lines()) == ("mine", [])
