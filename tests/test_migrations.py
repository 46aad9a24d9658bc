"""The migrations: the same as the models, with every constraint of the contract."""

import re

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from sqlalchemy import URL
from sqlalchemy.exc import DatabaseError

from tests.support import ROOT, Make, direct, migrated_database, sql
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
    return sorted(
        clause.strip(" \t,") for clause in [name, *re.split(r"\n|,(?= [a-z_]+ [A-Z]+)|(?= CONSTRAINT)", body)]
    )


def test_white_space_is_what_python_says() -> None:
    assert set(WHITE_SPACE) == {chr(point) for point in range(0x110000) if chr(point).isspace()}


#: By column: values that the database takes, and values that it refuses.
GOOD_TASKS = {"title": ["x", "🥛" * 255], "description": [None, "", "🥛" * 5000], "status": ["complete"]}
BAD_TASKS = {
    "id": [0],
    "user_id": [None, "nobody"],
    "title": [None, "", " \t\u3000\x1c\x85", "🥛" * 256, "x" * 255 + " "],
    "description": ["🥛" * 5001],
    "status": ["done", None],
    "created_at": [None],
    "updated_at": [None],
}
GOOD_USERS = {"id": ["🥛" * 255], "email": [None, "x" * 320]}
BAD_USERS = {"id": [None, "", "🥛" * 256, "alice"], "email": ["", "x" * 321, "alice@example.com"]}


@pytest.mark.parametrize(
    ("table", "row", "good", "bad"),
    [
        ("tasks", {"user_id": "alice", "title": "x"}, GOOD_TASKS, BAD_TASKS),
        ("users", {"id": "bob", "email": None}, GOOD_USERS, BAD_USERS),
    ],
    ids=["tasks", "users"],
)
def test_the_database_itself_holds_the_rules(
    url: URL, table: str, row: dict[str, object], good: dict[str, list[object]], bad: dict[str, list[object]]
) -> None:
    sql(url, "INSERT INTO users (id, email) VALUES ('alice', 'alice@example.com')")

    def taken(values: dict[str, list[object]]) -> list[tuple[str, object]]:
        return [(name, one) for name in values for one in values[name] if is_accepted(url, table, row | {name: one})]

    assert taken(good) == [(name, one) for name in good for one in good[name]]
    assert taken(bad) == []


def is_accepted(url: URL, table: str, values: dict[str, object]) -> bool:
    """Whether the database takes that row; a row that it takes is deleted."""
    try:
        names = ", ".join(f":{name}" for name in values)
        sql(url, f"INSERT INTO {table} ({', '.join(values)}) VALUES ({names})", **values)
    except DatabaseError:
        return False
    sql(url, "DELETE FROM tasks" if table == "tasks" else "DELETE FROM users WHERE id <> 'alice'")
    return True


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
    # 9000 and more are for the examples of the documents.
    files = sorted(path.name for path in (ROOT / "migrations/versions").glob("[0-8]*.py"))
    assert [name[:5] for name in files] == [f"{number:04}_" for number in range(1, len(files) + 1)]
