"""A front end on another origin, in a browser: what it may send to a live gunicorn, and read of the answers."""

import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import dumps
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page
from sqlalchemy import URL

from tests.ecosystem.browser import visiting
from tests.live import Server, free_port, gunicorn
from tests.support import sql, token

pytestmark = pytest.mark.ecosystem

#: What a front end writes.
FETCH = """async ({url, ...options}) => {
    const response = await fetch(url, {credentials: "include", ...options});
    const text = await response.text();
    return [response.status, text ? JSON.parse(text) : null, Object.fromEntries(response.headers)];
}"""

#: Calls the service from the page: the status, the body and the headers that the script may read.
Fetch = Callable[..., tuple[int, Any, dict[str, str]]]


class FrontEnd(BaseHTTPRequestHandler):
    """An empty page, whatever is asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><title>Front end</title><link rel='icon' href='data:,'>")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def front_end() -> Iterator[int]:
    """The port of a front end. It has two origins: by its name, which is listed, and by its address, which is not."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FrontEnd) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def live(database: URL, front_end: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gunicorn that lists the front end, and counts what its users ask for."""
    settings = {
        "CORS_ORIGINS": f"https://app.example,http://localhost:{front_end}",
        "CORS_HEADERS": "X-Trace-Id",
        "RATE_LIMIT": "1000 per 30 days",
        "WEB_CONCURRENCY": "1",
    }
    with gunicorn(database, tmp_path_factory.mktemp("live") / "log", **settings) as server:
        yield server


@pytest.fixture(autouse=True)
def _empty(database: URL) -> None:
    sql(database, "DELETE FROM users")


@pytest.fixture
def page(browser: Browser, front_end: int) -> Iterator[Page]:
    """The page of the listed origin."""
    with visiting(browser) as visit:
        visit.page.goto(f"http://localhost:{front_end}/")
        yield visit.page


def fetch_from(page: Page, server: Server, user_id: str = "alice") -> Fetch:
    """fetch() of that page, as that user."""

    def fetch(method: str, path: str = "", *, json: object = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        options: dict[str, Any] = {"method": method, "headers": {"Authorization": f"Bearer {token(user_id)}"}}
        if json is not None:
            options["body"] = dumps(json)
            options["headers"]["Content-Type"] = "application/json"
        options["headers"] |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://127.0.0.1:{server.port}/api/alice/tasks{path}"
        status, body, read = page.evaluate(FETCH, {"url": url, **options})
        return status, body, read

    return fetch


def test_the_six_calls_with_all_that_may_be_sent_and_read(page: Page, live: Server, database: URL) -> None:
    fetch = fetch_from(page, live)
    status, task, read = fetch("POST", json={"title": "Buy milk"}, Idempotency_Key="one")
    assert (status, task["title"], read["location"]) == (201, "Buy milk", f"/api/alice/tasks/{task['id']}")
    assert "idempotency-replayed" not in read
    assert len(read["x-request-id"]) == 32
    assert read["ratelimit-limit"] == "1000"
    assert int(read["ratelimit-remaining"]) < 1000
    assert int(read["ratelimit-reset"]) > 0
    status, again, read = fetch("POST", json={"title": "Buy milk"}, Idempotency_Key="one")
    assert (status, again, read["idempotency-replayed"]) == (201, task, "true")

    path, tag = f"/{task['id']}", read["etag"]
    status, got, read = fetch("GET", path)
    assert (status, got, read["etag"]) == (200, task, tag)
    status, body, read = fetch("GET", path, If_None_Match=tag)
    assert (status, body, read["etag"]) == (304, None, tag)

    status, changed, read = fetch("PUT", path, json={"title": "Buy bread"}, If_Match=tag)
    assert (status, changed["title"]) == (200, "Buy bread")
    assert read["etag"] != tag
    status, completed, read = fetch("PATCH", f"{path}/complete", json={"status": "complete"}, If_Match=read["etag"])
    assert (status, completed["status"]) == (200, "complete")

    other = fetch("POST", json={"title": "Call the bank"})[1]
    status, listed, first = fetch("GET", "?limit=1")
    assert (status, listed) == (200, [other])
    target, _, relation = first["link"].partition(">; ")
    assert relation == 'rel="next"'
    assert fetch("GET", target.removeprefix("</api/alice/tasks"))[:2] == (200, [completed])

    assert fetch("DELETE", path, If_Match=read["etag"])[:2] == (204, None)
    assert sql(database, "SELECT title FROM tasks") == [("Call the bank",)]


@pytest.mark.parametrize("path", ["", "/changes"])
def test_a_browser_asks_by_itself_whether_what_it_keeps_is_current(page: Page, live: Server, path: str) -> None:
    fetch = fetch_from(page, live)
    assert fetch("POST", json={"title": "Buy milk"})[0] == 201
    begun = len(answers_in(live.log, path))
    first, again = fetch("GET", path), fetch("GET", path)
    assert first[:2] == again[:2]
    assert first[0] == 200
    assert fetch("POST", json={"title": "Call the bank"})[0] == 201
    assert fetch("GET", path)[1] != first[1]
    assert answers_in(live.log, path)[begun:] == ["200", "304", "200"]


def answers_in(log: Path, path: str) -> list[str]:
    """The statuses of the answers to GET of that path."""
    return re.findall(rf"GET /api/<user_id>/tasks{path} (\d+)", log.read_text())


def test_a_tracer_and_an_http_client_may_add_their_headers(page: Page, live: Server) -> None:
    added = {
        "Cache_Control": "no-cache",
        "X_Requested_With": "XMLHttpRequest",
        "X_Request_ID": "from-the-front-end",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "app=1",
        "baggage": "release=1",
        "sentry_trace": "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
        "X_Trace_Id": "1",
    }
    status, _, read = fetch_from(page, live)("POST", json={"title": "Buy milk"}, **added)
    assert (status, read["x-request-id"]) == (201, "from-the-front-end")


def test_another_header_is_not_sent(browser: Browser, live: Server, front_end: int, database: URL) -> None:
    with visiting(browser) as visit:
        visit.page.goto(f"http://localhost:{front_end}/")
        with pytest.raises(Error, match="Failed to fetch"):
            fetch_from(visit.page, live)("POST", json={"title": "Buy milk"}, X_Other="1")
        assert "x-other is not allowed by Access-Control-Allow-Headers" in visit.complaints[0]
    assert sql(database, "SELECT * FROM tasks") == []


@pytest.mark.parametrize(
    ("user_id", "call", "status", "message"),
    [
        ("alice", {"method": "POST", "json": {"title": " "}}, 400, "Title cannot be empty"),
        ("", {"method": "GET"}, 401, "Unauthorized"),
        ("bob", {"method": "DELETE", "path": "/1"}, 403, "Forbidden"),
        ("alice", {"method": "GET", "path": "/999"}, 404, "Task not found"),
        ("alice", {"method": "PUT", "path": ""}, 405, "Method not allowed"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_an_error_can_be_read(
    page: Page, live: Server, user_id: str, call: dict[str, Any], status: int, message: str
) -> None:
    assert fetch_from(page, live, user_id)(**call)[:2] == (status, {"error": message})


def test_a_503_and_when_to_come_again_can_be_read(
    page: Page, front_end: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    nowhere = URL.create("postgresql", "todo", host="127.0.0.1", port=free_port(), database="todo")
    log = tmp_path_factory.mktemp("nowhere") / "log"
    origin = f"http://localhost:{front_end}"
    with gunicorn(nowhere, log, ready="/health/live", CORS_ORIGINS=origin) as server:
        status, body, read = fetch_from(page, server)("GET")
    assert (status, body, read["retry-after"]) == (503, {"error": "Service unavailable"}, "1")


@pytest.mark.parametrize("call", [{"method": "GET"}, {"method": "POST", "json": {"title": "Stolen"}}])
def test_another_origin_can_neither_read_nor_write(
    browser: Browser, live: Server, front_end: int, database: URL, call: dict[str, Any]
) -> None:
    with visiting(browser) as visit:
        visit.page.goto(f"http://127.0.0.1:{front_end}/")
        with pytest.raises(Error, match="Failed to fetch"):
            fetch_from(visit.page, live)(**call)
        assert "blocked by CORS policy" in visit.complaints[0]
    assert sql(database, "SELECT * FROM tasks") == []


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_origin_cannot_do_so_without_asking_first_either(
    browser: Browser, live: Server, front_end: int, database: URL, method: str
) -> None:
    """What takes no preflight reaches the service, which knows nobody then."""
    url = f"http://127.0.0.1:{live.port}/api/alice/tasks"
    with visiting(browser) as visit:
        visit.page.goto(f"http://127.0.0.1:{front_end}/")
        with pytest.raises(Error, match="Failed to fetch"):
            visit.page.evaluate(FETCH, {"url": url, "method": method})
    assert sql(database, "SELECT * FROM tasks") == []
