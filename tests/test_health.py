"""GET /health/live and /health/ready."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.conftest import DATABASES, url_of
from tests.support import (
    ROLE,
    Caller,
    Make,
    close,
    migrated_database,
    partition,
    postgresql_database,
    session,
    settings,
    sql,
)
from todo import create_app
from todo.db import connections as database
from todo.db import readiness
from todo.db.ownership import Owned
from todo.web import health

pytestmark = pytest.mark.sql


def test_it_lives_and_says_its_version_and_is_ready_and_keeps_users_apart(
    app: Flask, url: URL, statements: list[str]
) -> None:
    version = app.test_client().get("/openapi.json").get_json()["info"]["version"]
    security = "none" if url.get_backend_name() == "sqlite" else "enforced"
    for name, told in (("live", {"status": "ok", "version": version}), ("ready", ready(security))):
        for path in (f"/health/{name}", f"/health/{name}/"):
            response = app.test_client().get(path)
            assert (response.status_code, response.get_json()) == (200, told)
            assert app.test_client().head(path).status_code == 200
    statements.clear()
    app.test_client().get("/health/ready")
    assert len([statement for statement in statements if "SELECT" in statement]) == 1


def test_without_the_database_it_lives_and_is_not_ready(make: Make) -> None:
    client = make(URL.create("postgresql+psycopg2", host="127.0.0.1", port=9, database="todo")).test_client()
    assert client.get("/health/live").status_code == 200
    response = client.get("/health/ready")
    assert (response.status_code, response.get_json()) == (503, {"error": "Service unavailable"})
    assert response.headers["Retry-After"] == "1"
    # Query parameters are refused before it is asked.
    for path in ("/health/live", "/health/ready"):
        response = client.get(f"{path}?probe=1")
        assert (response.status_code, response.get_json()) == (400, {"error": "Unknown query parameter: probe"})


def test_ready_says_that_the_tables_are_missing_and_calls_are_500(fresh: URL, make: Make) -> None:
    empty = make(fresh)
    response = empty.test_client().get("/health/ready")
    message = "The database has no tables yet: run flask db upgrade"
    assert (response.status_code, response.get_json()) == (503, {"error": message})
    for call in (Caller(empty, "alice")("GET"), Caller(empty, "alice")("POST", json={"title": "x"})):
        assert (call.status_code, call.get_json()) == (500, {"error": "Internal server error"})


def ready(security: str) -> dict[str, object]:
    """The answer of an app on a database that has all migrations."""
    head = readiness.revision_wanted()
    return {"status": "ok", "row_level_security": security, "schema_revision": head, "schema_revision_wanted": head}


TABLES = ["users", *(model.__tablename__ for model in Owned.__subclasses__())]
State = tuple[str, str, str, str]
SAYS_MORE = "the log of the service says more"


def renamed(form: str, name: str) -> tuple[str, str]:
    """Statements that rename a thing, and give it its name back."""
    return form.format(name, "elsewhere"), form.format("elsewhere", name)


def granted(right: str, table: str = "tasks", columns: str = "") -> tuple[str, str]:
    """Statements that take a right away, but for those columns, and grant it again."""
    rest = f"; GRANT {right} ({columns}) ON {table} TO {ROLE}" if columns else ""
    return f"REVOKE {right} ON {table} FROM {ROLE}{rest}", f"GRANT {right} ON {table} TO {ROLE}"


def policy(table: str, rule: str) -> tuple[str, str]:
    """Statements that make a policy more, and drop it."""
    return f"CREATE POLICY everybody ON {table} {rule}", f"DROP POLICY everybody ON {table}"


OWN_ROWS = "(user_id = nullif(current_setting('app.user_id', true), ''))"


def replaced(table: str, rule: str = "") -> tuple[str, str]:
    """Statements that make another policy, or none, in the place of the one for the user's rows, and that one again."""
    drop, make = f"DROP POLICY IF EXISTS {table}_of_user ON {table}", f"; CREATE POLICY {table}_of_user ON {table} "
    return drop + (make + rule if rule else ""), f"{drop}{make}USING {OWN_ROWS}"


DENIED, HIDDEN = "denies rights that the service needs", "has policies that hide or refuse rows of the user"
LACKS_COLUMNS = "lacks tables or columns"
NO_FUNCTION = "lacks a function, or has one that fails"
#: States in which some call fails: what brings them about, what undoes it, the answer, and what stands in the log.
UNFIT_ON_BOTH: dict[str, State] = {
    "a table is missing": (
        *renamed("ALTER TABLE {} RENAME TO {}", "idempotency_keys"),
        LACKS_COLUMNS,
        "table idempotency_keys: .*idempotency_keys.*; all its migrations have been run",
    ),
    "a column is missing": (
        *renamed("ALTER TABLE tasks RENAME COLUMN {} TO {}", "description"),
        LACKS_COLUMNS,
        "table tasks: .*description.*; all its migrations have been run",
    ),
}
UNFIT_ON_POSTGRESQL: dict[str, State] = {
    **{
        f"the right to {right} is missing": (
            *granted(right),
            DENIED,
            f"table tasks: .*{denied}",
        )
        for right, denied in {
            "SELECT": f"permission denied for table tasks; as the owner .* IN SCHEMA public TO {ROLE}$",
            **dict.fromkeys(("INSERT", "UPDATE", "DELETE"), "denies rights"),
        }.items()
    },
    "new rows get no id": (
        "ALTER TABLE tasks ALTER id DROP IDENTITY; CREATE SEQUENCE unused;"
        f"ALTER SEQUENCE unused OWNER TO {ROLE}; ALTER SEQUENCE unused OWNED BY tasks.id",
        "DROP SEQUENCE unused; ALTER TABLE tasks ALTER id ADD GENERATED ALWAYS AS IDENTITY (START 1000)",
        LACKS_COLUMNS,
        "table tasks: lacks",
    ),
    "a table has lost its key, as after a restore that ended early": (
        "ALTER TABLE users DROP CONSTRAINT pk_users CASCADE",
        "ALTER TABLE users ADD CONSTRAINT pk_users PRIMARY KEY (id)"
        + "".join(
            f"; ALTER TABLE {name} ADD CONSTRAINT fk_{name}_user_id FOREIGN KEY (user_id) REFERENCES users (id)"
            for name in TABLES[1:]
        ),
        LACKS_COLUMNS,
        "table users: lacks",
    ),
    "a function is missing": (
        *renamed("ALTER FUNCTION {}(text) RENAME TO {}", "fold_case"),
        NO_FUNCTION,
        "fold_case\\(\\): UndefinedFunction .*; run flask db upgrade$",
    ),
    "a function is of another server": (
        "ALTER FUNCTION fold_case(text) RENAME TO elsewhere; SET check_function_bodies = off;"
        " CREATE FUNCTION fold_case(text) RETURNS text LANGUAGE sql IMMUTABLE"
        ' AS $$ SELECT lower($1 COLLATE "of_another_server") $$',
        "DROP FUNCTION fold_case(text); ALTER FUNCTION elsewhere(text) RENAME TO fold_case",
        NO_FUNCTION,
        "fold_case\\(\\): UndefinedObject .*of_another_server.*; run flask db upgrade$",
    ),
    "no policy holds for the role": (
        "ALTER POLICY tasks_of_user ON tasks TO pg_monitor",
        "ALTER POLICY tasks_of_user ON tasks TO PUBLIC",
        HIDDEN,
        f"table tasks: {HIDDEN}",
    ),
    "rows may be changed, but not the clock": (*granted("UPDATE", "users", "email"), DENIED, f"table users: {DENIED}"),
    "rows may be created, but have no owner": (*granted("INSERT", "tasks", "title"), DENIED, f"table tasks: {DENIED}"),
    "no policy is for the user's deletions": (*replaced("deletions"), HIDDEN, "table deletions: "),
    "no policy is for the user's keys": (*replaced("idempotency_keys"), HIDDEN, "table idempotency_keys: "),
    "the policy is for reads": (*replaced("tasks", f"FOR SELECT USING {OWN_ROWS}"), HIDDEN, "table tasks: "),
    "a policy refuses all rows": (*policy("tasks", "AS RESTRICTIVE USING (false)"), HIDDEN, "table tasks: "),
}
STANDS_AT = "UPDATE alembic_version SET version_num = '{}'".format
BYPASSED = ("bypassed", "row-level security is bypassed")
#: States in which every call is served: what brings them about, what undoes it, how users are kept apart, and the log.
FIT_ON_BOTH: dict[str, State] = {
    "the migrations are behind": (
        *(STANDS_AT("0001"), STANDS_AT("{head}"), "enforced"),
        "is at migration 0001, this code at {head}: run flask db upgrade",
    ),
    "the migrations are ahead": (
        *(STANDS_AT("9999"), STANDS_AT("{head}"), "enforced"),
        "is at migration 9999, this code at {head}: it has all that this code needs",
    ),
    "no migration is known of": (*renamed("ALTER TABLE {} RENAME TO {}", "alembic_version"), "enforced", ""),
}
FIT_ON_POSTGRESQL: dict[str, State] = {
    "the policies do not bind the owner": (
        "ALTER TABLE tasks NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE tasks FORCE ROW LEVEL SECURITY",
        *BYPASSED,
    ),
    "a policy lets everybody read": (*policy("tasks", "USING (true)"), *BYPASSED),
    "a policy lets everybody create": (*policy("idempotency_keys", "FOR INSERT WITH CHECK (true)"), *BYPASSED),
    "a policy lets another role read": (*policy("tasks", "TO pg_monitor USING (true)"), "enforced", ""),
}


def statuses(app: Flask) -> set[int]:
    """The answers to one call of each kind."""
    alice = Caller(app, "alice")
    key = {"Idempotency-Key": str(time.monotonic_ns())}
    created = alice("POST", json={"title": "x"})
    path = f"/{(created.get_json() or {}).get('id', 1)}"
    answers = [created, alice("POST", json={"title": "x"}, headers=key), alice("GET"), alice("GET", query="?q=x")]
    answers += [alice("GET", path), alice("PUT", path, json={"title": "y"}), alice("PATCH", f"{path}/complete")]
    answers += [alice("DELETE", path)]
    return {answer.status_code for answer in answers}


@pytest.fixture(scope="module", params=DATABASES)
def served(request: pytest.FixtureRequest, server: URL) -> Iterator[Flask]:
    """An app whose database the tests spoil and mend."""
    backend = "sqlite" if request.param == "sqlite" else "postgresql"
    with migrated_database(backend, server) as url:
        if request.param == "partitioned":
            partition(url)
        app = create_app(settings(url))
        yield app
        close(app)


def on(app: Flask, on_both: dict[str, State], on_postgresql: dict[str, State]) -> list[State]:
    """The states that the app's database can be in."""
    is_sqlite = url_of(app).get_backend_name() == "sqlite"
    return [*on_both.values(), *({} if is_sqlite else on_postgresql).values()]


@contextmanager
def spoilt(app: Flask, spoil: str, mend: str) -> Iterator[None]:
    """The app's database, in that state."""
    (head,) = sql(url_of(app), "SELECT version_num FROM alembic_version")[0]
    sql(url_of(app), spoil)
    health._warn.cache_clear()
    try:
        yield
    finally:
        sql(url_of(app), mend.format(head=head))


def test_the_service_is_not_ready_if_a_call_would_be_a_500(served: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """Afterwards all is well again."""
    for spoil, mend, wrong, logged in on(served, UNFIT_ON_BOTH, UNFIT_ON_POSTGRESQL):
        caplog.clear()
        with spoilt(served, spoil, mend):
            response = served.test_client().get("/health/ready")
            way_back = "run flask db upgrade" if logged.endswith("flask db upgrade$") else SAYS_MORE
            assert (response.status_code, response.get_json()) == (503, {"error": f"The database {wrong}: {way_back}"})
            (line,) = caplog.messages
            assert re.search(logged, line), line
            assert 500 in statuses(served)
            result = served.test_cli_runner().invoke(args=["ready"])
            assert (result.exit_code, result.stdout) == (1, "")
            assert re.search(logged, result.stderr.strip()), result.stderr
        assert served.test_client().get("/health/ready").status_code == 200
    assert statuses(served) == {200, 201, 204}
    assert served.test_cli_runner().invoke(args=["ready"]).exit_code == 0


def test_the_service_is_ready_if_every_call_works(served: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """It says what is odd, once."""
    is_sqlite = url_of(served).get_backend_name() == "sqlite"
    (head,) = sql(url_of(served), "SELECT version_num FROM alembic_version")[0]
    for spoil, mend, security, logged in on(served, FIT_ON_BOTH, FIT_ON_POSTGRESQL):
        security = "none" if is_sqlite else security
        caplog.clear()
        with spoilt(served, spoil, mend):
            stands_at = re.search("version_num = '(.+)'", spoil)
            for _ in range(2):
                response = served.test_client().get("/health/ready")
                assert (response.status_code, response.get_json()["row_level_security"]) == (200, security)
                if stands_at:
                    found = [response.get_json()[name] for name in ("schema_revision", "schema_revision_wanted")]
                    assert found == [stands_at[1], head]
            assert statuses(served) == {200, 201, 204}
            assert logged.format(head=head) in "\n".join(caplog.messages)
            assert len(caplog.messages) == bool(logged)
            result = served.test_cli_runner().invoke(args=["ready"])
            told = f"The database has what the service needs; row-level security: {security}\n"
            assert (result.exit_code, result.stdout) == (0, told)
            assert logged.format(head=head) in result.stderr


def test_what_is_missing_because_the_code_is_behind_takes_other_code(
    postgresql: URL, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    sql(postgresql, "UPDATE alembic_version SET version_num = '9999'; ALTER TABLE tasks DROP COLUMN description")
    response = make(postgresql).test_client().get("/health/ready")
    assert response.get_json() == {"error": f"The database lacks tables or columns: {SAYS_MORE}"}
    assert "deploy the code that belongs to them" in capsys.readouterr().err


@contextmanager
def locked(app: Flask, table: str) -> Iterator[None]:
    """While somebody else has that table for themselves."""
    with session(url_of(app)) as connection:
        connection.exec_driver_sql(f"LOCK TABLE {table}")
        yield


@pytest.mark.parametrize("served", DATABASES[1:], indirect=True)
def test_where_a_lock_is_in_the_way_it_is_an_outage(served: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "STATEMENT_LIMITS", database.STATEMENT_LIMITS.replace("'1s'", "'100ms'"))
    with locked(served, "tasks"):
        response = served.test_client().get("/health/ready")
    assert (response.status_code, response.get_json()) == (503, {"error": "Service unavailable"})
    # Also where it has already been found that something is missing.
    spoil, mend = (f"ALTER TABLE users RENAME COLUMN {names}" for names in ("email TO mail", "mail TO email"))
    with spoilt(served, spoil, mend), locked(served, "alembic_version"):
        response = served.test_client().get("/health/ready")
    assert (response.status_code, response.get_json()) == (503, {"error": "Service unavailable"})
    assert served.test_client().get("/health/ready").status_code == 200


def test_code_that_comes_without_its_migrations_is_ready(
    app: Flask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(readiness, "MIGRATIONS", tmp_path / "nowhere")
    readiness.known_revisions.cache_clear()
    assert app.test_client().get("/health/ready").status_code == 200
    readiness.known_revisions.cache_clear()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_another_encoding_than_utf8_makes_it_unready(server: URL, make: Make, encoding: str) -> None:
    with postgresql_database(server, encoding) as url:
        response = make(url).test_client().get("/health/ready")
        assert response.status_code == 503
        assert f"is not encoded in UTF8: {SAYS_MORE}" in response.get_json()["error"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "The database has no tables yet: run flask db upgrade"), (b"no database" * 100, "Service unavailable")],
)
def test_another_file_in_the_place_of_sqlite_makes_it_unready(
    sqlite: URL, make: Make, content: bytes, message: str
) -> None:
    Path(str(sqlite.database)).write_bytes(content)
    response = make(sqlite).test_client().get("/health/ready")
    assert (response.status_code, response.get_json()) == (503, {"error": message})
