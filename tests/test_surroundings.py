"""Settings of the role, of the database and of the environment (PG…): readiness names those under which calls fail.

tests/live/test_surroundings.py has those under which no answer changes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import URL

from tests.support import ROLE, Make, migrated_database, sql
from todo.web import health

pytestmark = pytest.mark.sql


@pytest.fixture(scope="module")
def url(server: URL) -> Iterator[URL]:
    """A migrated database."""
    with migrated_database("postgresql", server) as url:
        yield url


@contextmanager
def setting(url: URL, **values: str) -> Iterator[None]:
    """While these settings hold for the sessions of the app's role in that database."""
    role = f"ALTER ROLE {ROLE} IN DATABASE {url.database}"
    for name, value in values.items():
        sql(url, f"{role} SET {name} = {value}")
    try:
        yield
    finally:
        sql(url, f"{role} RESET ALL")


BREAKING = [
    ("row_security", "off"),
    ("session_replication_role", "replica"),
    ("app.user_id", "bob"),
]


@pytest.mark.parametrize("by", ["role", "environment"])
@pytest.mark.parametrize(("name", "value"), BREAKING)
def test_a_setting_that_breaks_calls_is_named(
    url: URL,
    make: Make,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    by: str,
) -> None:
    """By readiness, which is 503, and by the commands, which do nothing."""
    if by == "environment":
        if name == "session_replication_role":
            sql(url, f"GRANT SET ON PARAMETER {name} TO {ROLE}")
        monkeypatch.setenv("PGOPTIONS", f"-c {name}={value}")
    with setting(url, **({name: value} if by == "role" else {})):
        app = make(url)
        response = app.test_client().get("/health/ready")
        result = app.test_cli_runner().invoke(args=["users", "delete", "alice", "--yes"])
    monkeypatch.undo()
    wrong = "The database has a setting under which calls fail, or users are not kept apart"
    assert response.status_code == 503
    assert response.get_json() == {"error": f"{wrong}: the log of the service says more"}
    named = f"{wrong}: setting {name}: "
    assert named in capsys.readouterr().err
    assert result.exit_code == 1
    assert f"Error: {named}" in result.output
    assert "GRANT" not in result.output


#: And the name by which the log calls it.
FAILING = [
    ("default_transaction_isolation", "'serializable'", "default_transaction_isolation"),
    ("default_transaction_isolation", "'repeatable read'", "default_transaction_isolation"),
    ("default_transaction_read_only", "on", "default_transaction_read_only, or a standby"),
]


@pytest.mark.parametrize(("name", "value", "called"), FAILING)
def test_a_setting_that_fails_some_calls_is_named_in_the_log(
    url: URL, make: Make, capsys: pytest.CaptureFixture[str], name: str, value: str, called: str
) -> None:
    """tests/live/test_concurrent.py has such calls."""
    health._warn.cache_clear()
    with setting(url, **{name: value}):
        app = make(url)
        assert app.test_client().get("/health/ready").status_code == 200
        result = app.test_cli_runner().invoke(args=["ready"])
    warning = f"calls may get a 503, because of these settings of the database: {called}"
    assert f"WARNING todo.web.health: {warning}\n" in capsys.readouterr().err
    assert (result.exit_code, f"Warning: {warning}\n" in result.output) == (0, True)
