"""Calls at the same moment: beside a session of PostgreSQL that holds rows, and on several threads.

tests/live/test_races.py has those on several workers.
"""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, Connection

from tests.conftest import on_postgresql
from tests.live import WAITING
from tests.support import Call, Caller, Make, later, session, sql, wait_until
from tests.tasks.test_bulk import clear, complete_all
from tests.test_commands import run
from tests.test_idempotency import KEY, age, create, keys_of, prune
from tests.test_surroundings import FAILING, setting
from todo.web import rate_limits

pytestmark = pytest.mark.sql

with_a_key_or_none = pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "x"}])


class Beside:
    """A session of its own that is in a transaction, and calls that wait for it."""

    def __init__(self, connection: Connection, pool: ThreadPoolExecutor) -> None:
        self.connection, self.execute, self._pool = connection, connection.exec_driver_sql, pool

    def waits(self, function: Any, *arguments: Any, **options: Any) -> Future[Any]:
        """The call, which does not end before the transaction does."""
        waiting = self._pool.submit(function, *arguments, **options)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        return waiting


@contextmanager
def beside(url: URL) -> Iterator[Beside]:
    """A session that begins a transaction, which is undone where the test does not commit it."""
    with session(url) as connection, ThreadPoolExecutor(1) as pool:
        yield Beside(connection, pool)


@on_postgresql
@with_a_key_or_none
def test_an_email_that_is_taken_at_the_same_moment_is_none(call: Call, url: URL, headers: dict[str, str]) -> None:
    with beside(url) as other:
        other.execute("INSERT INTO users (id, email) VALUES ('bob', 'shared@example.com')")
        waiting = other.waits(call("alice", "shared@example.com"), "POST", json={"title": "x"}, headers=headers)
        other.connection.commit()
        assert waiting.result().status_code == 201
    users = sql(url, "SELECT id, email FROM users ORDER BY id")
    assert users == [("alice", None), ("bob", "shared@example.com")]


@on_postgresql
@with_a_key_or_none
def test_a_task_of_a_user_who_is_deleted_at_the_same_moment_is_a_new_users_first(
    call: Call, url: URL, headers: dict[str, str]
) -> None:
    alice = call("alice", "alice@example.com")
    alice.create()
    with beside(url) as other:
        other.execute("DELETE FROM users WHERE id = 'alice'")
        waiting = other.waits(alice, "POST", json={"title": "x"}, headers=headers)
        other.connection.commit()
        assert waiting.result().status_code == 201
    assert alice.titles() == ["x"]
    assert sql(url, "SELECT id, email FROM users") == [("alice", "alice@example.com")]


@on_postgresql
def test_a_task_that_is_made_at_the_same_moment_is_erased_with_its_user(app: Flask, alice: Caller, url: URL) -> None:
    alice.create()
    with beside(url) as other:
        other.execute("INSERT INTO tasks (user_id, title) VALUES ('alice', 'late')")
        erasing = other.waits(run, app, "users", "delete", "alice", "--yes")
        other.connection.commit()
        assert "2 tasks" in erasing.result().stdout
    assert sql(url, "SELECT * FROM tasks") == []
    assert sql(url, "SELECT * FROM users") == []


@on_postgresql
def test_a_create_and_the_erasure_of_its_user_do_not_wait_for_each_other(alice: Caller, url: URL) -> None:
    create(alice)
    age(url, KEY, 25)
    with beside(url) as other:
        other.execute("SELECT 1 FROM users WHERE id = 'alice' FOR UPDATE")
        waiting = other.waits(create, alice, "new")
        other.execute("SET lock_timeout = '100ms'")
        other.execute("DELETE FROM idempotency_keys WHERE user_id = 'alice'")
        other.execute("DELETE FROM users WHERE id = 'alice'")
        other.connection.commit()
        assert waiting.result().status_code == 201
    assert keys_of(url) == {"new"}


@on_postgresql
@pytest.mark.parametrize("is_kept", [True, False])
def test_a_create_waits_for_another_under_its_key(alice: Caller, url: URL, is_kept: bool) -> None:
    alice.create()
    with beside(url) as other:
        other.execute(
            "INSERT INTO idempotency_keys (user_id, key, fingerprint, answer)"
            f" VALUES ('alice', '{KEY}', repeat('0', 64), '')"
        )
        waiting = other.waits(create, alice)
        if is_kept:
            other.connection.commit()
        else:
            other.connection.rollback()
        assert waiting.result().status_code == (422 if is_kept else 201)
    assert len(alice("GET").get_json()) == (1 if is_kept else 2)


@on_postgresql
@pytest.mark.parametrize("is_command", [False, True])
def test_old_keys_that_somebody_else_is_deleting_are_passed_over(
    app: Flask, alice: Caller, url: URL, statements: list[str], *, is_command: bool
) -> None:
    for number in range(3):
        create(alice, f"{number}")
    age(url, "%", 25)
    with session(url) as connection:
        connection.exec_driver_sql("DELETE FROM idempotency_keys WHERE key = '1'")
        if is_command:
            assert prune(app).output == "Deleted 2 idempotency keys and 0 deletions\n"
            statements.clear()
        else:
            assert create(alice, "new").status_code == 201
        connection.rollback()
    assert keys_of(url) == ({"1"} if is_command else {"1", "new"})


def an_hour_later(url: URL) -> str:
    """SQL that takes the clock of every user forward."""
    return f"UPDATE users SET changed_at = {later(url, 'changed_at', 3600)}"


# In turn, as on SQLite and Citus, a call begins when it has the clock. It would complete the late task too.
@pytest.mark.parametrize("watched", ["postgresql", "partitioned"], indirect=True)
def test_what_was_completed_meanwhile_is_not_completed_again(alice: Caller, url: URL) -> None:
    """Another change of the user comes first, while the call waits for the user's clock."""
    tasks = [alice.create() for _ in range(3)]
    with beside(url) as other:
        other.execute(an_hour_later(url))
        changed = "UPDATE tasks SET status = 'complete', updated_at = changed_at FROM users"
        other.execute(f"{changed} WHERE tasks.id = {tasks[0]['id']}")
        other.execute("INSERT INTO tasks (user_id, title) VALUES ('alice', 'late')")
        waiting = other.waits(complete_all, alice)
        other.connection.commit()
        assert waiting.result() == {"changed": 2, "more": False}
    after = {task["id"]: task for task in alice("GET").get_json()}
    assert sorted(task["status"] for task in after.values()) == ["complete"] * 3 + ["incomplete"]
    # The change that came first is still the last one of its task.
    assert after[tasks[0]["id"]]["updated_at"] < after[tasks[1]["id"]]["updated_at"]


@on_postgresql
def test_what_was_reopened_meanwhile_is_not_deleted(alice: Caller, url: URL) -> None:
    tasks = [alice.create() for _ in range(2)]
    complete_all(alice)
    with beside(url) as other:
        other.execute(an_hour_later(url))
        other.execute(f"UPDATE tasks SET status = 'incomplete' WHERE id = {tasks[0]['id']}")
        waiting = other.waits(clear, alice)
        other.connection.commit()
        assert waiting.result() == {"deleted": 1, "more": False}
    assert [task["id"] for task in alice("GET").get_json()] == [tasks[0]["id"]]
    assert sql(url, "SELECT row_id FROM deletions") == [(tasks[1]["id"],)]


@pytest.mark.parametrize(("name", "value", "_called"), FAILING)
def test_a_change_that_waited_for_another_is_503_under_a_setting_that_fails_some_calls(
    postgresql: URL, make: Make, name: str, value: str, _called: str
) -> None:
    """So is every write to a read-only database."""
    alice = Caller(make(postgresql), "alice")
    task = alice.create()["id"]
    with setting(postgresql, **{name: value}), session(postgresql) as connection, ThreadPoolExecutor(1) as pool:
        connection.exec_driver_sql("SET TRANSACTION READ WRITE, ISOLATION LEVEL READ COMMITTED")
        connection.exec_driver_sql(f"UPDATE tasks SET title = 'new' WHERE id = {task}")
        change = pool.submit(Caller(make(postgresql), "alice"), "PATCH", f"/{task}/complete")
        while not change.done() and sql(postgresql, WAITING) == []:
            time.sleep(0.01)
        connection.commit()
        assert change.result().status_code == 503


@on_postgresql
@pytest.mark.parametrize("keys", [("", ""), ("a", "b")])
def test_of_two_creates_that_wait_for_the_user_one_has_room(make: Make, url: URL, keys: tuple[str, str]) -> None:
    """tests/live/test_races.py has fifty at once. These two are sure to have begun before either ends."""
    alice = Caller(make(url, max_tasks=2), "alice")
    alice.create()
    with session(url) as connection, ThreadPoolExecutor(2) as pool:
        connection.exec_driver_sql("SELECT 1 FROM users WHERE id = 'alice' FOR UPDATE")
        each = [{"Idempotency-Key": key} if key else {} for key in keys]
        creates = [pool.submit(alice, "POST", json={"title": "x"}, headers=headers) for headers in each]
        wait_until(lambda: len(sql(url, WAITING)) == len(creates))
        connection.commit()
        assert sorted(create.result().status_code for create in creates) == [201, 409]


def test_fifty_first_tasks_at_once_make_one_user_and_fifty_tasks(call: Call, url: URL) -> None:
    carol = call("carol", "carol@example.com")
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda number: carol("POST", json={"title": f"{number}"}).status_code, range(50)))
    assert statuses == [201] * 50
    assert sql(url, "SELECT id, email FROM users") == [("carol", "carol@example.com")]
    assert sorted(map(int, carol.titles())) == list(range(50))


def test_first_tasks_of_many_users_with_one_email_are_all_kept(call: Call, url: URL) -> None:
    callers = [call(f"user{number}", "shared@example.com") for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda caller: caller("POST", json={"title": "x"}).status_code, callers))
    assert statuses == [201] * 24
    assert sql(url, "SELECT count(*), count(email) FROM users") == [(24, 1)]


def test_of_toggles_at_once_none_is_lost(alice: Caller) -> None:
    path = f"/{alice.create()['id']}/complete"
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: alice("PATCH", path).get_json(), range(41)))
    assert alice("GET", path.removesuffix("/complete")).get_json()["status"] == "complete"
    assert len({answer["updated_at"] for answer in answers}) == 41


def test_no_increment_is_lost_among_threads() -> None:
    memory, interval = rate_limits.Memory(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(16) as pool:
            for number in range(100):
                sums = list(pool.map(lambda _, key=str(number): memory.incr(key, 60), range(32)))
                assert sorted(sums) == list(range(1, 33))
    finally:
        sys.setswitchinterval(interval)
