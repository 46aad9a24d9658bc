"""The migrations: up, down and up again, the same as the models, with every constraint of the contract."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from flask_migrate import downgrade
from sqlalchemy import URL, create_engine, inspect
from sqlalchemy.exc import DatabaseError

from tests.support import ROOT, Make, empty_database, migrate, postgresql_database, sql
from todo.extensions import db
from todo.tasks.models import WHITE_SPACE

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


def flask_db(command: str, url: URL) -> subprocess.Popen[str]:
    """`flask db …` as a process."""
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "IDENTITY_PROVIDER": "development",
    }
    arguments = [sys.executable, "-m", "flask", "db", command]
    return subprocess.Popen(arguments, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_process_that_migrates_waits_for_another(fresh: URL) -> None:
    engine = create_engine(fresh, isolation_level="AUTOCOMMIT")
    with engine.connect() as other:
        if fresh.get_backend_name() == "sqlite":
            other.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            other.exec_driver_sql("BEGIN")
            other.exec_driver_sql("SELECT pg_advisory_xact_lock(7236158401)")
        process = flask_db("upgrade", fresh)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=2)
        other.exec_driver_sql("ROLLBACK")
        _, log = process.communicate(timeout=20)
    engine.dispose()
    assert process.returncode == 0, log
    assert tables(fresh) == {"users", "tasks", "idempotency_keys"}
    check = flask_db("check", fresh)
    assert check.communicate(timeout=20)[0].strip() == "No new upgrade operations detected."
    assert check.returncode == 0
