"""A deploy: two versions run at once, and one takes over what another has kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.live import gunicorn
from tests.live.test_flask_db import flask_db
from tests.support import ROOT, Caller, Make, sql
from tests.test_idempotency import MILK, create

#: What docs/migrations.md asks of the code when a field is added, and two columns more: one of numbers, one of nulls.
NEW_FIELDS = {
    "models.py": (
        "    description: Mapped",
        '    priority: Mapped[str] = mapped_column(Text, server_default="normal")\n'
        '    stars: Mapped[int] = mapped_column(server_default=text("3"))\n'
        "    place: Mapped[str | None] = mapped_column(Text)\n",
    ),
    "queries.py": ("    description: str", "    priority: str\n    stars: int\n    place: str | None\n"),
    "schemas.py": (
        "    description = ",
        "    priority = fields.String()\n    stars = fields.Integer()\n    place = fields.String(allow_none=True)\n",
    ),
}


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """A copy of the service whose tasks have more fields."""
    copy = tmp_path / "next"
    shutil.copytree(ROOT / "todo", copy / "todo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("config.py", "wsgi.py", "gunicorn.conf.py"):
        shutil.copy(ROOT / name, copy)
    for name, (before, added) in NEW_FIELDS.items():
        path = copy / "todo/tasks" / name
        path.write_text(path.read_text().replace(before, added + before).replace("Index, Text", "Index, Text, text"))
    return copy


def test_a_key_outlives_a_deploy_that_adds_fields(own: URL, make: Make, next_version: Path, tmp_path: Path) -> None:
    """Also in the other direction, for as long as both versions run."""
    alice = Caller(make(own), "alice")
    first = create(alice, "before").get_json()
    for column in ("priority TEXT DEFAULT 'normal' NOT NULL", "stars INT DEFAULT 3 NOT NULL", "place TEXT"):
        sql(own, f"ALTER TABLE tasks ADD COLUMN {column}")
    with gunicorn(own, tmp_path / "log", cwd=next_version, WEB_CONCURRENCY="1") as newer:

        def send(key: str, **body: object) -> tuple[int, Any]:
            return newer.request("POST", "/api/alice/tasks", json=body, **{"Idempotency-Key": key})

        defaults = {"priority": "normal", "stars": 3, "place": None}
        assert send("before", **MILK) == (201, first | defaults)
        assert send("before", **MILK, place=None) == (201, first | defaults)
        assert send("before", **MILK, priority="high")[0] == 422
        status, task = send("meanwhile", **MILK)
        assert (status, {name: task.pop(name) for name in defaults}) == (201, defaults)
        assert create(alice, "meanwhile").get_json() == task
        assert send("after", **MILK, priority="high")[1]["priority"] == "high"
        assert send("after", **MILK, priority="high")[1]["priority"] == "high"
        assert send("after", **MILK)[0] == 422
    assert len(alice.titles()) == 3


#: What version 1.0 kept of three creates, with its digests of "Buy milk" without a description, and with one.
OLD_ANSWER = (
    '{"id":1,"user_id":"alice","title":"Buy milk","description":null,"status":"incomplete",'
    '"created_at":"2025-01-09T12:34:56.123456Z","updated_at":"2025-01-09T12:34:56.123456Z","version":1}'
)
OLD_DIGESTS = {
    "3861aa8fec126a861635f6adba45dfddb91cebfd830448347f62cd276d118478": [
        {"title": "Buy milk"},
        {"description": None, "title": "Buy milk"},
    ],
    "a6be2f59d0ae1aa4fb0c8804a8dbb7dab5257c80e0306913e2f361bba0da41a5": [MILK],
}
KEEP = "INSERT INTO idempotency_keys (user_id, key, fingerprint, answer) VALUES ('alice', :key, :digest, :answer)"


def test_a_key_that_version_1_0_kept_is_honoured(alice: Caller, url: URL) -> None:
    alice.create()
    for digest, bodies in OLD_DIGESTS.items():
        sql(url, KEEP, key=digest, digest=digest, answer=OLD_ANSWER)
        for body in bodies:
            repeated = create(alice, digest, body)
            assert (repeated.status_code, repeated.headers["Idempotency-Replayed"]) == (201, "true")
            assert repeated.get_json()["created_at"] == "2025-01-09T12:34:56.123456Z"
        assert create(alice, digest, {"title": "Buy bread"}).status_code == 422
    assert len(alice.titles()) == 1


def test_version_1_0_honours_a_key_that_this_one_kept(alice: Caller, url: URL) -> None:
    """Both run at once while a new version is brought in."""
    for number, (digest, bodies) in enumerate(OLD_DIGESTS.items()):
        for position, body in enumerate(bodies):
            key = f"{number} {position}"
            create(alice, key, body)
            ((kept, answer),) = sql(url, "SELECT fingerprint, answer FROM idempotency_keys WHERE key = :key", key=key)
            assert kept == digest
            # Without the version, which has its default there.
            assert json.loads(answer).keys() >= json.loads(OLD_ANSWER).keys() - {"version"}


#: What version 1.1 executes to create, to change, and to delete a task; and a change of the version after it.
OLD_CREATE = "INSERT INTO tasks (title, user_id) SELECT 'x', users.id FROM users WHERE users.id = 'alice' RETURNING id"
OLD_CHANGE = "UPDATE tasks SET title = 'y', version = version + 1 WHERE user_id = 'alice' AND version = {} RETURNING id"
OLD_DELETE = "DELETE FROM tasks WHERE user_id = 'alice' AND version = {} RETURNING id"
NEW_CHANGE = "UPDATE tasks SET status = 'complete', updated_at = updated_at WHERE user_id = 'alice' RETURNING id"


def test_version_1_1_works_until_the_last_migration_of_the_clock(bare: Flask, fresh: URL) -> None:
    """And sees the changes of the version after it."""
    assert flask_db(bare, "upgrade", "0006").exit_code == 0
    sql(fresh, "INSERT INTO users (id) VALUES ('alice'), ('bob')")
    (task,) = sql(fresh, OLD_CREATE)
    assert flask_db(bare, "upgrade", "0008").exit_code == 0
    assert sql(fresh, OLD_CHANGE.format(1)) == sql(fresh, NEW_CHANGE) == [task]
    assert sql(fresh, OLD_CHANGE.format(2)) == sql(fresh, OLD_DELETE.format(2)) == []
    assert sql(fresh, OLD_CHANGE.format(3)) == sql(fresh, OLD_DELETE.format(4)) == [task]
    assert len(sql(fresh, OLD_CREATE)) == 1


CLOCKS = "SELECT id, changed_at, forgotten_at FROM users ORDER BY id"


def test_the_last_migration_of_the_clock_makes_every_client_start_again(bare: Flask, fresh: URL) -> None:
    """Version 1.1 has changed rows without the clock, some of them with a clock that was ahead."""
    assert flask_db(bare, "upgrade", "0008").exit_code == 0
    past, ahead = {
        "sqlite": ("1767225600000000", "4070908800000000"),
        "postgresql": ("timestamptz '2026-01-01 00:00:00Z'", "timestamptz '2099-01-01 00:00:00Z'"),
    }[fresh.get_backend_name()]
    clocks = f"('alice', {past}, {past}), ('bob', {past}, {past}), ('carol', {ahead}, {past})"
    sql(fresh, f"INSERT INTO users (id, changed_at, forgotten_at) VALUES {clocks}")
    sql(fresh, f"INSERT INTO tasks (user_id, title, updated_at) VALUES ('alice', 'x', {past}), ('bob', 'x', {ahead})")
    before = sql(fresh, CLOCKS)
    assert flask_db(bare, "upgrade", "0009").exit_code == 0
    for (user_id, *old), (_, changed_at, forgotten_at) in zip(before, sql(fresh, CLOCKS), strict=True):
        assert changed_at == forgotten_at > max(old), user_id
        latest = sql(fresh, "SELECT updated_at FROM tasks WHERE user_id = :user_id", user_id=user_id)
        assert all(changed_at > updated_at for (updated_at,) in latest), user_id
    assert flask_db(bare, "downgrade", "0006").exit_code == 0
