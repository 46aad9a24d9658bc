"""Settings of the role and of the environment (PG…) under which no answer changes: a round of all calls under each."""

import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from flask import Flask
from sqlalchemy import URL
from werkzeug.test import TestResponse

from tests.live.wire import wire_to
from tests.support import Caller, close, migrated_database, settings, sql
from tests.test_surroundings import setting
from todo import create_app

ODD = ["a\\b", "it's", 'quo"te', "%s %(x)s", "ß Größe", "日本 🥛", "\\'; DROP TABLE tasks; --", "E'\\n'", ":q", "$$"]
SEARCHED = ["\\", "GRÖSSE", "'", "%", "🥛", "$$"]
COMMANDS = [
    ["ready"],
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
    """Nor of a command: these look no host up by themselves, and libpq would follow PGHOSTADDR."""
    empty(url)
    with wire_to(url) as (_, wired):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert answers_of(wired) == plain
