"""What the database reads for a page, by its own account."""

import json
import re
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.support import Caller, acting_for, plans_of_statements, sql
from todo.pages import PageWanted
from todo.tasks.queries import TASKS

pytestmark = pytest.mark.sql


def work(url: URL, statement: str, plans: list[Any]) -> int:
    """How often PostgreSQL has read tasks or deletions; the steps that the statement takes SQLite."""
    if url.get_backend_name() != "sqlite":
        return len(re.findall(r'"Relation Name": "(?:tasks|deletions)[^{}]*"Actual Loops": [1-9]', json.dumps(plans)))
    steps: list[None] = []
    with closing(sqlite3.connect(str(url.database))) as connection:
        connection.set_progress_handler(lambda: steps.append(None), 1)
        connection.execute(statement).fetchall()
    return len(steps)


@pytest.mark.parametrize("path", ["", "?status=incomplete&limit=5", "/changes", "/changes?since={}"])
def test_a_page_that_the_caller_has_is_read_no_further_than_the_clock(
    alice: Caller, url: URL, statements: list[str], path: str
) -> None:
    """However many rows there are. Another page comes in one statement, too."""
    alice.create()
    path, tag = path.format(alice.since()), alice("GET").headers["ETag"]

    def work_of(tag: str, status: int) -> int:
        statements.clear()
        with plans_of_statements("ANALYZE") as plans:
            assert alice("GET", path, headers={"If-None-Match": tag}).status_code == status
        assert len(statements) == 2
        return work(url, statements[1], plans)

    few = work_of(tag, 304)
    sql(url, "INSERT INTO tasks (user_id, title) VALUES " + ", ".join(["('alice', 'x')"] * 500))
    sql(url, "INSERT INTO deletions SELECT 'tasks', id, updated_at, user_id FROM tasks")
    assert work_of(tag, 304) == few
    alice.create()
    assert work_of(tag, 200) > few


@pytest.mark.parametrize(("size", "rows"), [(1, 1), (23, 1), (24, 2), (46, 2), (47, 3), (1000, 6)])
def test_the_database_sends_no_more_texts_than_a_page_has(app: Flask, alice: Caller, size: int, rows: int) -> None:
    """A thousand of the longest tasks would be many times the page. Here the texts of each task have 23 bytes."""
    gone = alice.create()["id"]
    for _ in range(6):
        alice.create("1234", description="éé")
    alice("DELETE", f"/{gone}")
    changes = PageWanted(1000, size, deletions_after=("2000-01-01T00:00:00.000000Z", 0))
    with acting_for(app, "alice"):
        assert len(TASKS.list("alice", {}, PageWanted(1000, size)).rows) == rows
        assert len(TASKS.changes("alice", changes).rows) == (7 if size == 1000 else rows)


def test_the_change_feed_is_read_off_the_index(alice: Caller, url: URL) -> None:
    """However many tasks the user has: what comes after the token is next to it."""
    explain = "EXPLAIN QUERY PLAN" if url.get_backend_name() == "sqlite" else "EXPLAIN"
    alice.create()
    if url.get_backend_name() == "postgresql":
        sql(url, "INSERT INTO tasks (user_id, title) SELECT 'alice', 'x' FROM generate_series(1, 5000)")
        sql(url, "ANALYZE tasks")
    place = "((SELECT max(updated_at) FROM tasks WHERE user_id = 'alice'), 10)"
    statement = f"SELECT * FROM tasks WHERE user_id = 'alice' AND (updated_at, id) > {place}"
    plan = " ".join(map(str, sql(url, f"{explain} {statement} ORDER BY updated_at, id LIMIT 10")))
    assert "user_id_updated_at_id" in plan
    assert "TEMP B-TREE" not in plan
