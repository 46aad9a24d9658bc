"""The documentation in a browser: Swagger UI on a live gunicorn that wants tokens."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from sqlalchemy import URL

from tests.ecosystem.browser import CALLS, Visit, visiting
from tests.live import Server, gunicorn
from tests.support import sql, token

pytestmark = pytest.mark.ecosystem

TITLES = "SELECT title FROM tasks WHERE user_id = 'alice' ORDER BY id"


@pytest.fixture(scope="module")
def live(database: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gunicorn on it."""
    with gunicorn(database, tmp_path_factory.mktemp("live") / "log") as server:
        yield server


@pytest.fixture
def url(database: URL) -> URL:
    """The database, empty: its first task will be the one of the document's examples."""
    sql(database, "DELETE FROM users")
    sql(database, "DELETE FROM sqlite_sequence WHERE name = 'tasks'")
    return database


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A page of a new profile."""
    with visiting(browser) as visit:
        yield visit


def site(live: Server) -> str:
    """Where the service is."""
    return f"http://127.0.0.1:{live.port}"


def authorize(page: Page, bearer: str) -> None:
    """Enter the token, as a reader would."""
    page.get_by_role("button", name="Authorize", exact=True).click()
    dialog = page.locator(".modal-ux")
    dialog.get_by_label("Value").fill(bearer)
    dialog.get_by_role("button", name="Apply credentials").click()
    dialog.get_by_role("button", name="Close").last.click()


def try_out(page: Page, operation_id: str) -> Locator:
    """Open the operation, ready to be filled in."""
    operation = page.locator(f"#operations-tasks-{operation_id}")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    return operation


def execute(operation: Locator, status: int) -> None:
    """Send it, as it is filled in, and wait for the answer."""
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table tbody td.response-col_status")).to_have_text(str(status))


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/"])
def test_a_task_is_created_from_the_page(visit: Visit, live: Server, url: URL, path: str) -> None:
    visit.page.goto(f"{site(live)}{path}")
    expect(visit.page).to_have_title("Todo API")
    expect(visit.page.locator("h1, h2").first).to_contain_text("Todo API")
    authorize(visit.page, token("alice"))
    execute(try_out(visit.page, "createTask"), 201)
    assert sql(url, TITLES) == [("Buy milk",)]
    assert visit.complaints == []
    assert visit.hosts() == {f"127.0.0.1:{live.port}"}


def test_each_call_works_as_it_is_filled_in(visit: Visit, live: Server, url: URL) -> None:
    visit.page.goto(f"{site(live)}/docs")
    authorize(visit.page, token("alice"))
    create = try_out(visit.page, "createTask")
    execute(create, 201)
    create.locator("textarea").fill('{"title": "Call the bank"}')
    execute(create, 201)
    expect(create.locator(".live-responses-table")).to_contain_text("Call the bank")
    assert sql(url, TITLES) == [("Buy milk",), ("Call the bank",)]
    for operation_id in ("listTasks", "getTask", "updateTask", "completeTask"):
        operation = try_out(visit.page, operation_id)
        execute(operation, 200)
        expect(operation.locator(".live-responses-table")).to_contain_text('"title": "Buy milk"')
    execute(try_out(visit.page, "deleteTask"), 204)
    assert sql(url, TITLES) == [("Call the bank",)]
    assert visit.complaints == []


def test_every_corner_of_the_page_keeps_to_the_policy(visit: Visit, live: Server) -> None:
    visit.page.goto(f"{site(live)}/docs")
    expect(visit.page.locator(".opblock")).to_have_count(CALLS)
    schemas = ".models .json-schema-2020-12-expand-deep-button"
    for kind in (".opblock-summary-control", ".tabitem:has-text('Schema') button", schemas):
        assert visit.page.locator(kind).count() > 5, kind
        for part in visit.page.locator(kind).all():
            part.click()
    assert visit.complaints == []
    assert visit.hosts() == {f"127.0.0.1:{live.port}"}


def test_the_token_is_forgotten_with_the_page(visit: Visit, live: Server) -> None:
    visit.page.goto(f"{site(live)}/docs")
    authorize(visit.page, token("alice"))
    execute(try_out(visit.page, "listTasks"), 200)
    assert visit.page.context.storage_state(indexed_db=True) == {"cookies": [], "origins": []}
    assert visit.page.evaluate("sessionStorage.length") == 0
    visit.page.reload()
    execute(try_out(visit.page, "listTasks"), 401)


def test_the_address_names_no_other_document(visit: Visit, live: Server) -> None:
    other = "http://localhost:9/openapi.json"
    visit.page.goto(f"{site(live)}/docs?url={other}&configUrl={other}&urls.primaryName={other}")
    expect(visit.page.locator(".opblock")).to_have_count(CALLS)
    assert visit.hosts() == {f"127.0.0.1:{live.port}"}


@pytest.mark.parametrize(
    "breach",
    [
        "document.body.append(Object.assign(document.createElement('script'), {textContent: '1'}))",
        "document.body.append(Object.assign(document.createElement('style'), {textContent: 'p {color: red}'}))",
        "document.body.setAttribute('style', 'color: red')",
        "document.body.append(Object.assign(document.createElement('script'), {src: 'http://localhost:9/x.js'}))",
        "fetch('http://localhost:9/x').catch(() => 0)",
    ],
    ids=["inline script", "inline style", "style of an element", "script of another host", "call of another host"],
)
def test_a_breach_of_the_policy_would_be_heard(visit: Visit, live: Server, breach: str) -> None:
    visit.page.goto(f"{site(live)}/docs")
    with visit.page.expect_console_message():
        visit.page.evaluate(f"() => {{ {breach} }}")
    assert "Content Security Policy" in visit.complaints[0]
