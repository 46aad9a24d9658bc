"""Settings of the role, of the database and of the environment (PG…): no answer changes, or readiness names them."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import quote

import pytest
from flask import Flask
from sqlalchemy import URL
from werkzeug.test import TestResponse

from tests.support import ROLE, Caller, Make, close, migrated_database, session, settings, sql
from tests.wire import wire_to
from todo import create_app
from todo.web import health

pytestmark = pytest.mark.sql

ODD = ["a\\b", "it's", 'quo"te', "%s %(x)s", "ß Größe", "日本 🥛", "\\'; DROP TABLE tasks; --", "E'\\n'", ":q", "$$"]
SEARCHED = ["\\", "GRÖSSE", "'", "%", "🥛", "$$"]
COMMANDS = [
    ["seed", "dave", "--count", "3"],
    ["users", "export", "carol"],
    ["prune"],
    ["users", "delete", "dave", "--yes"],
]
#: What differs in each round: instants, and the random number of a user.
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z|(?<=\"incarnation\":)\d+")

Answer = tuple[object, ...]


def round_of_calls(app: Flask) -> list[Answer]:
    """Each call and each command, for a user whose name is hard to quote and for others; what comes of them."""
    answers: list[Answer] = []
    alice, bob, carol = Caller(app, "alice\\'é", "a\\'@é"), Caller(app, "bob"), Caller(app, "carol")

    def keep(response: TestResponse) -> TestResponse:
        names = ("ETag", "Location", "Idempotency-Replayed")
        headers = {name: value for name, value in response.headers.items() if name in names and "W/" not in value}
        headers |= {"ETag": INSTANT.sub("", headers["ETag"])} if "ETag" in headers else {}
        answers.append((response.status_code, INSTANT.sub("", response.get_data(as_text=True)), headers))
        return response

    keep(app.test_client().get("/health/ready"))
    keep(alice("GET"))
    first, *_ = [keep(alice("POST", json={"title": title, "description": title * 2})) for title in ODD]
    keep(bob("POST", json={"title": "of bob"}))
    keep(alice("GET"))
    for q in SEARCHED:
        keep(alice("GET", query=f"?q={quote(q)}"))
    page = keep(alice("GET", query="?limit=2"))
    keep(alice.open("GET", re.findall("<(.+?)>", page.headers.get("Link", "<>"))[0] or "/"))
    task = f"/{(first.get_json() or {}).get('id', 1)}"
    keep(alice("PUT", task, json={"title": "new\\ti'tle"}))
    keep(alice("PUT", task, json={"title": "x"}, headers={"If-Match": first.headers.get("ETag", '"x"')}))
    keep(alice("PATCH", f"{task}/complete"))
    keep(alice("PATCH", f"{task}/complete", json={"status": "complete"}))
    keep(alice("GET", query="?status=complete"))
    for method in ("GET", "PUT", "DELETE"):
        keep(bob(method, task, json={"title": "x"}))
    for title in ("k\\ey'é", "k\\ey'é", "another"):
        keep(alice("POST", json={"title": title}, headers={"Idempotency-Key": "k'\\1"}))
    keep(carol("POST", json={"title": "c"}, headers={"Idempotency-Key": "c"}))
    keep(alice("DELETE", task))
    keep(alice("GET", task))
    for command in COMMANDS:
        result = app.test_cli_runner().invoke(args=command)
        answers.append((result.exit_code, INSTANT.sub("", result.output)))
    return answers


@pytest.fixture(scope="module")
def url(server: URL) -> Iterator[URL]:
    """A migrated database."""
    with migrated_database("postgresql", server) as url:
        sql(url, "CREATE SCHEMA other")
        yield url


def answers_of(url: URL) -> list[Answer]:
    """What comes of a round of calls to a new app, on the emptied database."""
    app = create_app(settings(url))
    try:
        return round_of_calls(app)
    finally:
        close(app)


def empty(url: URL) -> None:
    """Delete all rows, and let ids begin again."""
    sql(url, "TRUNCATE users RESTART IDENTITY CASCADE")


@pytest.fixture(scope="module")
def plain(url: URL) -> list[Answer]:
    """What comes of a round of calls without any such setting."""
    empty(url)
    answers = answers_of(url)
    assert {answer[0] for answer in answers} == {0, 200, 201, 204, 404, 412, 422}
    return answers


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


def pairs(text: str) -> dict[str, str]:
    """The settings of a text: name=value, separated by spaces."""
    return dict(pair.split("=", 1) for pair in text.split())


#: Settings that hold at the same time. If an answer changes, look for the one by leaving others out.
HARMLESS = [
    pairs(
        "client_encoding=LATIN1 standard_conforming_strings=off escape_string_warning=on backslash_quote=off"
        " search_path=other,public DateStyle=German IntervalStyle=sql_standard TimeZone='Asia/Kathmandu'"
        " extra_float_digits=-15 bytea_output=escape client_min_messages=debug5 transform_null_equals=on"
        " array_nulls=off quote_all_identifiers=on xmloption=document"
        " default_transaction_deferrable=on plpgsql.extra_errors='all'"
    ),
    pairs(
        "client_encoding=SQL_ASCII search_path=\"$user\",public statement_timeout='1s' lock_timeout=1"
        " idle_in_transaction_session_timeout='2s' exit_on_error=on synchronous_commit=off row_security=on"
        " session_replication_role=local plan_cache_mode=force_generic_plan enable_indexscan=off jit_above_cost=0"
        " default_tablespace=nowhere"
    ),
    pairs("client_encoding=EUC_JP debug_parallel_query=regress"),
]


@pytest.mark.parametrize("settings_of_role", HARMLESS, ids=range(len(HARMLESS)))
def test_a_setting_of_the_role_changes_no_answer(
    url: URL, plain: list[Answer], settings_of_role: dict[str, str]
) -> None:
    empty(url)
    with setting(url, **settings_of_role):
        assert answers_of(url) == plain


OPTIONS = "-c client_encoding=LATIN1 -c standard_conforming_strings=off -c TimeZone=Asia/Kathmandu"
ENVIRONMENT = [
    pairs(
        "PGCLIENTENCODING=LATIN1 PGHOSTADDR=127.0.0.9 PGHOST=nowhere.invalid PGPORT=1 PGDATABASE=nothing PGUSER=nobody"
        " PGPASSWORD=wrong PGPASSFILE=/nowhere PGAPPNAME=another PGTZ=Asia/Kathmandu PGDATESTYLE=German PGGEQO=off"
        " PGTARGETSESSIONATTRS=read-write PGLOADBALANCEHOSTS=random PGSSLMODE=require PGSSLROOTCERT=/nowhere"
        " PGSYSCONFDIR=/nowhere"
    )
    | {"PGOPTIONS": OPTIONS},
    pairs("PGCLIENTENCODING=SQL_ASCII"),
]


@pytest.mark.parametrize("environ", ENVIRONMENT, ids=range(len(ENVIRONMENT)))
def test_a_setting_of_the_environment_changes_no_answer(
    url: URL, plain: list[Answer], monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    empty(url)
    with wire_to(url) as (_, wired):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert answers_of(wired) == plain


def test_commands_and_requests_go_to_the_host_of_the_url(url: URL, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands look no host up by themselves, and libpq would follow PGHOSTADDR."""
    with wire_to(url) as (_, wired):
        monkeypatch.setenv("PGHOSTADDR", "127.0.0.9")
        assert Caller(make(wired), "alice")("GET").status_code == 200
        assert make(wired).test_cli_runner().invoke(args=["ready"]).exit_code == 0


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


@pytest.mark.parametrize(
    ("name", "value", "called"),
    [
        ("default_transaction_isolation", "'serializable'", "default_transaction_isolation"),
        ("default_transaction_isolation", "'repeatable read'", "default_transaction_isolation"),
        ("default_transaction_read_only", "on", "default_transaction_read_only, or a standby"),
    ],
)
def test_a_setting_that_fails_some_calls_is_named_in_the_log(
    url: URL, make: Make, capsys: pytest.CaptureFixture[str], name: str, value: str, called: str
) -> None:
    """And those are 503: writes to a read-only database, or a change that waited for another one."""
    health._warn.cache_clear()
    empty(url)
    task = Caller(make(url), "alice").create()["id"]
    with setting(url, **{name: value}):
        app = make(url)
        assert app.test_client().get("/health/ready").status_code == 200
        result = app.test_cli_runner().invoke(args=["ready"])
        status = status_of_a_change_after_another(url, Caller(app, "alice"), task)
    warning = f"calls may get a 503, because of these settings of the database: {called}"
    assert f"WARNING todo.web.health: {warning}\n" in capsys.readouterr().err
    assert (result.exit_code, f"Warning: {warning}\n" in result.output) == (0, True)
    assert status == 503


def status_of_a_change_after_another(url: URL, caller: Caller, task: int) -> int:
    """The status of a change of the task that began before another change of it was committed."""
    with session(url) as connection, ThreadPoolExecutor(1) as pool:
        connection.exec_driver_sql("SET TRANSACTION READ WRITE, ISOLATION LEVEL READ COMMITTED")
        connection.exec_driver_sql(f"UPDATE tasks SET title = 'new' WHERE id = {task}")
        change = pool.submit(caller, "PATCH", f"/{task}/complete")
        while not change.done() and sql(url, "SELECT 1 FROM pg_locks WHERE NOT granted") == []:
            time.sleep(0.01)
        connection.commit()
        return change.result().status_code
