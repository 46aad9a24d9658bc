"""SCRIPT_NAME, on a live gunicorn: the same whether the proxy before it removes the prefix or not."""

import re
from collections.abc import Iterator

import pytest
from flask import Flask

from config import OWN_PATHS
from tests.live import Server, gunicorn
from tests.support import close, migrated_app, sqlite_database, token


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gunicorn under /apps/todo."""
    with sqlite_database() as url:
        close(migrated_app(url))
        folder = tmp_path_factory.mktemp("live")
        with gunicorn(url, folder / "log", SCRIPT_NAME="/apps/todo", CORS_ORIGINS="https://app.example") as server:
            yield server


def headers(server: Server, method: str, path: str, *lines: str, body: str = "") -> dict[str, str]:
    """The headers of the answer, and its status under ":status"."""
    fixed = ["Host: evil.example", f"Authorization: Bearer {token()}", "Connection: close"]
    fixed += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    answer = server.raw("\r\n".join([f"{method} {path} HTTP/1.1", *fixed, *lines, "", body]).encode()).decode()
    status, *fields = answer.partition("\r\n\r\n")[0].split("\r\n")
    return {":status": status.split()[1], **dict(field.split(": ", 1) for field in fields)}


@pytest.mark.parametrize("prefix", ["/apps/todo", ""], ids=["passed on", "removed"])
def test_what_leads_on_has_the_prefix(live: Server, prefix: str) -> None:
    for title in ("x", "y"):
        made = headers(live, "POST", f"{prefix}/api/alice/tasks", body=f'{{"title": "{title}"}}')
        assert re.fullmatch("/apps/todo/api/alice/tasks/[0-9]+", made["Location"])
        assert live.request("GET", made["Location"])[1]["title"] == title
    link = headers(live, "GET", f"{prefix}/api/alice/tasks?limit=1")["Link"]
    target = link.removeprefix("<").removesuffix('>; rel="next"')
    assert target.startswith("/apps/todo/api/alice/tasks?limit=1&cursor=")
    for followed in (target, target.removeprefix("/apps/todo")):
        assert [task["title"] for task in live.request("GET", followed)[1]] == ["x"]
    assert live.request("GET", f"{prefix}/openapi.json")[1]["servers"] == [{"url": "/apps/todo"}]
    assert headers(live, "GET", f"{prefix}/")["Location"] == "/apps/todo/docs"


def test_the_prefix_alone_leads_to_the_documentation(live: Server) -> None:
    assert headers(live, "GET", "/apps/todo")["Location"] == "/apps/todo/docs"


@pytest.mark.parametrize(
    "path", ["/apps", "/apps/todos/health/live", "/apps/todo/apps/todo/health/live", "/apps/todox"]
)
def test_what_only_looks_like_the_prefix_is_an_unknown_route(live: Server, path: str) -> None:
    assert live.request("GET", path) == (404, {"error": "Unknown route"})


@pytest.mark.parametrize("prefix", ["/apps/todo", ""], ids=["passed on", "removed"])
def test_a_preflight_and_a_refusal_are_the_same_as_ever(live: Server, prefix: str) -> None:
    asked = ("Origin: https://app.example", "Access-Control-Request-Method: PUT")
    preflight = headers(live, "OPTIONS", f"{prefix}/api/alice/tasks/1", *asked)
    assert (preflight[":status"], preflight["Access-Control-Allow-Origin"]) == ("200", "https://app.example")
    assert live.request("GET", f"{prefix}/api/bob/tasks") == (403, {"error": "Forbidden"})
    assert live.request("GET", f"{prefix}/api/alice/tasks/0") == (400, {"error": "Invalid task ID"})


@pytest.mark.parametrize(
    "name", ["SCRIPT_NAME", "Script-Name", "X-Script-Name", "X-Forwarded-Prefix", "X-Forwarded-Path"]
)
def test_no_header_says_where_links_lead(live: Server, name: str) -> None:
    assert headers(live, "GET", "/", f"{name}: /evil")["Location"] == "/apps/todo/docs"


def test_every_first_part_of_a_route_is_refused_as_a_prefix(apps: dict[str, Flask]) -> None:
    roots = {rule.rule.split("/")[1] for rule in apps["sqlite"].url_map.iter_rules()}
    assert roots - {""} <= set(OWN_PATHS)
