"""Going back: what docs/upgrade.md says that it costs, with data."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from flask import Flask
from flask_migrate import downgrade
from sqlalchemy import URL, create_engine, inspect

from tests.live import gunicorn
from tests.live.test_deploy import OLD_CHANGE, OLD_CREATE, OLD_DELETE
from tests.live.test_migrations import Load, ended, fill, flask_db
from tests.support import ROOT, Caller, Make, migrate, sql
from tests.test_health import statuses

PAGE = (ROOT / "docs/upgrade.md").read_text()
#: What the page says that each step down deletes, by its target.
DELETED = {
    target: set(re.findall("`([a-z_.]+)`", what))
    for target, what in re.findall(r"^\| `(\d{4}|base)` \| (.*) \|$", PAGE, re.MULTILINE)
}
(BACK_TO_1_1,) = set(re.findall("`flask db downgrade ([0-9]+)` with 1.2", PAGE))
REVISIONS = [script.revision for script in ScriptDirectory(str(ROOT / "migrations")).walk_revisions()]


@pytest.fixture
def served(own: URL, make: Make) -> Flask:
    """An app whose users have done something of everything."""
    app = make(own)
    assert statuses(app) == {200, 201, 204}
    for name in ("alice", "bob"):
        user = Caller(app, name, f"{name}@example.com")
        for number in range(3):
            user("POST", json={"title": f"Task {number}"}, headers={"Idempotency-Key": str(number)})
        user("PATCH", f"/{user.create('x', description='y')['id']}/complete")
        user("DELETE", f"/{user.create()['id']}")
    return app


def rows_of(url: URL) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, Alembic's own left out."""
    engine = create_engine(url)
    columns = {
        table: [column["name"] for column in inspect(engine).get_columns(table)]
        for table in inspect(engine).get_table_names()
        if table != "alembic_version"
    }
    engine.dispose()
    found = {
        table: sql(url, f"SELECT {', '.join(names)} FROM {table} ORDER BY 1, 2") for table, names in columns.items()
    }
    return {table: [dict(zip(columns[table], row, strict=True)) for row in rows] for table, rows in found.items()}


def go_back(app: Flask, revision: str) -> None:
    with app.app_context():
        downgrade(directory=str(ROOT / "migrations"), revision=revision)


def test_each_step_back_deletes_what_the_page_says_and_nothing_else(own: URL, served: Flask) -> None:
    before = rows_of(own)
    assert all(before.values())
    for target in [*REVISIONS[1:], "base"]:
        go_back(served, target)
        after = rows_of(own)
        lost = before.keys() - after.keys()
        for table, rows in after.items():
            gone = before[table][0].keys() - rows[0].keys()
            lost |= {f"{table}.{name}" for name in gone}
            kept = [{name: value for name, value in row.items() if name not in gone} for row in before[table]]
            added = rows[0].keys() - before[table][0].keys()
            assert [{name: value for name, value in row.items() if name not in added} for row in rows] == kept
        assert lost == DELETED.get(target, set()), target
        before = after


def test_the_release_before_works_after_the_way_back_and_so_does_this_one(own: URL, served: Flask) -> None:
    """While both run, and after the next upgrade."""
    before = rows_of(own)
    go_back(served, BACK_TO_1_1)
    assert {version for (version,) in sql(own, "SELECT version FROM tasks")} == {1}
    assert statuses(served) == {200, 201, 204}
    (task,) = sql(own, OLD_CREATE)
    change, delete = (statement.replace("WHERE", f"WHERE id = {task[0]} AND") for statement in (OLD_CHANGE, OLD_DELETE))
    assert sql(own, change.format(1)) == sql(own, change.format(2)) == sql(own, delete.format(3)) == [task]
    migrate(served)
    after = rows_of(own)
    for table, key in (("tasks", "id"), ("idempotency_keys", "key"), ("deletions", "row_id")):
        left = {(row["user_id"], row[key]): row for row in after[table]}
        assert all(left[row["user_id"], row[key]] == row for row in before[table])
    assert statuses(served) == {200, 201, 204}
    assert Caller(served, "alice")("GET", "/changes").status_code == 200


def test_on_postgresql_the_way_back_fails_no_request(postgresql: URL, tmp_path: Path) -> None:
    fill(postgresql, 20_000)
    with gunicorn(postgresql, tmp_path / "log") as server:
        load = Load(server)
        with load.going_on():
            time.sleep(1)
            status, said = ended(flask_db(postgresql, ROOT / "migrations", "downgrade", BACK_TO_1_1))
            time.sleep(1)
    assert status == 0, said
    load.check()
