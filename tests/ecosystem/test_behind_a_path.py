"""nginx before the service, as docs/decisions/behind-a-path.md has it: a client and a browser that know /todo alone."""

import re
from collections.abc import Iterator
from json import dumps, loads
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, urljoin
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, expect
from sqlalchemy import URL

from tests.ecosystem.browser import visiting
from tests.ecosystem.proxy import nginx
from tests.ecosystem.test_docs import authorize, execute, try_out
from tests.live import Server, gunicorn
from tests.support import ROOT, sql, token

pytestmark = pytest.mark.ecosystem

PAGE = (ROOT / "docs/decisions/behind-a-path.md").read_text()
PASSED_ON, REMOVED = re.findall(r"```nginx\n(location .*\n)    (proxy_pass .*\n)```", PAGE)
METRICS = "a-token-for-prometheus"
USER = "auth0|jörg 100%?#;+"


@pytest.fixture(scope="module", params=[PASSED_ON, REMOVED], ids=["passed on", "removed"])
def site(request: pytest.FixtureRequest, database: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the service, behind an nginx that passes the prefix on or removes it."""
    folder: Path = tmp_path_factory.mktemp("site")
    changes = dict(zip(("location / {\n", "proxy_pass http://todo;\n"), request.param, strict=True))
    with (
        gunicorn(database, folder / "gunicorn", SCRIPT_NAME="/todo", METRICS_TOKEN=METRICS) as live,
        nginx(live, folder, changes, prefix="/todo") as proxy,
    ):
        yield address(proxy)


def address(proxy: Server) -> str:
    """The address that a client knows."""
    return f"http://127.0.0.1:{proxy.port}/todo"


@pytest.fixture(autouse=True)
def _empty(database: URL) -> None:
    sql(database, "DELETE FROM users")
    sql(database, "DELETE FROM sqlite_sequence WHERE name = 'tasks'")


def test_a_client_finds_its_way_by_what_the_answers_say(site: str) -> None:
    headers = {"Authorization": f"Bearer {token(USER)}", "Content-Type": "application/json"}
    first = f"{site}/api/{quote(USER, safe='')}/tasks"
    for number in range(1, 6):
        made = urlopen(Request(first, dumps({"title": f"Task {number}"}).encode(), headers))
        got = urlopen(Request(urljoin(first, made.headers["Location"]), headers=headers))
        assert loads(got.read()) == loads(made.read())
    found, url = [], f"{first}?limit=2"
    while url:
        page = urlopen(Request(url, headers=headers))
        found += [task["title"] for task in loads(page.read())]
        link = re.fullmatch('<(.*)>; rel="next"', page.headers["Link"] or "")
        url = urljoin(url, link[1]) if link else ""
    assert found == [f"Task {number}" for number in range(5, 0, -1)]


def test_the_figures_are_not_for_the_outside(site: str) -> None:
    with pytest.raises(HTTPError, match="404"):
        urlopen(Request(f"{site}/metrics", headers={"Authorization": f"Bearer {METRICS}"}))


def test_the_document_names_the_server_that_it_comes_from(site: str) -> None:
    document = loads(urlopen(f"{site}/openapi.json").read())
    (server,) = document["servers"]
    assert urljoin(f"{site}/openapi.json", server["url"]) == site


@pytest.mark.parametrize("path", ["", "/", "/docs", "/docs/"])
def test_the_documentation_works_in_a_browser(browser: Browser, site: str, database: URL, path: str) -> None:
    with visiting(browser) as visit:
        visit.page.goto(f"{site}{path}")
        expect(visit.page).to_have_title("Todo API")
        authorize(visit.page, token("alice"))
        execute(try_out(visit.page, "createTask"), 201)
        assert sql(database, "SELECT title FROM tasks") == [("Buy milk",)]
        assert visit.complaints == []
        assert all(asked.startswith(site) for asked in visit.asked), visit.asked
