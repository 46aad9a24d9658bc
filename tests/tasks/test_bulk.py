"""PATCH and DELETE of all tasks with a status."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import URL

from tests.conftest import on_postgresql
from tests.support import Call, Caller, later, session, sql
from todo.db import bulk

pytestmark = pytest.mark.sql

UNKNOWN = "Invalid status value. Must be 'incomplete' or 'complete'"
ONLY_COMPLETE = "Query parameter status must be 'complete': only complete tasks can be deleted at once"


def complete_all(caller: Caller, to: str = "complete") -> dict[str, Any]:
    """The answer to a change of all tasks that have the other status."""
    other = {"complete": "incomplete", "incomplete": "complete"}[to]
    response = caller("PATCH", query=f"?status={other}", json={"status": to})
    assert response.status_code == 200, response.get_data(as_text=True)
    return dict(response.get_json())


def clear(caller: Caller) -> dict[str, Any]:
    """The answer to a deletion of the complete tasks."""
    response = caller("DELETE", query="?status=complete")
    assert response.status_code == 200, response.get_data(as_text=True)
    return dict(response.get_json())


@pytest.mark.parametrize("to", ["complete", "incomplete"])
def test_all_that_have_the_other_status_are_changed(alice: Caller, bob: Caller, to: str) -> None:
    tasks = [alice.create() for _ in range(3)]
    alice("PATCH", f"/{tasks[0]['id']}/complete")
    for caller in (bob, bob):
        caller("PATCH", f"/{caller.create()['id']}/complete")
    bob.create()
    before, bobs = alice("GET").get_json(), bob("GET").get_json()
    changed = sum(task["status"] != to for task in before)
    assert complete_all(alice, to) == {"changed": changed, "more": False}
    after = alice("GET").get_json()
    assert {task["status"] for task in after} == {to}
    for old, new in zip(before, after, strict=True):
        assert (old["updated_at"] < new["updated_at"]) == (old["status"] != to)
        assert {**old, "status": to, "updated_at": new["updated_at"]} == new
    assert bob("GET").get_json() == bobs
    assert complete_all(alice, to) == {"changed": 0, "more": False}


def test_the_complete_tasks_are_deleted_and_no_others(alice: Caller, bob: Caller) -> None:
    kept, *rest = [alice.create()["id"] for _ in range(3)]
    for task_id in rest:
        alice("PATCH", f"/{task_id}/complete")
    bob("PATCH", f"/{bob.create()['id']}/complete")
    assert clear(alice) == {"deleted": 2, "more": False}
    assert [task["id"] for task in alice("GET").get_json()] == [kept]
    assert len(bob.titles()) == 1
    assert clear(alice) == {"deleted": 0, "more": False}


def test_a_user_without_tasks_is_not_created_by_it(call: Call, url: URL) -> None:
    nobody = call("nobody")
    assert complete_all(nobody) == {"changed": 0, "more": False}
    assert clear(nobody) == {"deleted": 0, "more": False}
    assert sql(url, "SELECT id FROM users") == []


def test_a_call_changes_the_oldest_and_says_whether_more_are_left(
    alice: Caller, monkeypatch: pytest.MonkeyPatch, url: URL
) -> None:
    assert bulk.MOST == 1000
    alice.create()
    several = "(WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1999) SELECT i FROM n) AS n"
    instant = "i" if url.get_backend_name() == "sqlite" else "to_timestamp(i)"
    sql(url, f"INSERT INTO tasks (user_id, title, created_at) SELECT 'alice', i, {instant} FROM {several}")
    assert complete_all(alice) == {"changed": 1000, "more": True}
    done = {task["title"] for task in alice("GET", query="?status=complete").get_json()}
    assert done == {str(number) for number in range(1, 1001)}
    assert complete_all(alice) == {"changed": 1000, "more": False}
    for more in (True, False):
        assert clear(alice) == {"deleted": 1000, "more": more}
    assert alice.titles() == []


@pytest.mark.parametrize(
    ("query", "body", "message"),
    [
        ("", {"status": "complete"}, UNKNOWN),
        ("?status=", {"status": "complete"}, UNKNOWN),
        ("?status=done", {"status": "complete"}, UNKNOWN),
        ("?status=incomplete", {"status": "done"}, UNKNOWN),
        ("?status=incomplete", {"status": None}, UNKNOWN),
        ("?status=incomplete", {}, UNKNOWN),
        ("?status=incomplete", {"status": "incomplete"}, "Status in the query and in the body must differ"),
        ("?status=complete", {"status": "complete"}, "Status in the query and in the body must differ"),
        ("?status=incomplete", {"status": "complete", "title": "x"}, "Unknown field: title"),
        ("?status=incomplete&q=x", {"status": "complete"}, "Unknown query parameter: q"),
        ("?status=incomplete", None, "Request body is required"),
    ],
)
def test_a_bad_change_is_400_and_changes_nothing(
    alice: Caller, statements: list[str], query: str, body: object, message: str
) -> None:
    alice.create()
    statements.clear()
    response = alice("PATCH", query=query, json=body) if body is not None else alice("PATCH", query=query)
    assert (response.status_code, response.get_json(), statements) == (400, {"error": message}, [])


@pytest.mark.parametrize("query", ["", "?status=", "?status=incomplete", "?status=done", "?status=complete&q=x"])
def test_a_bad_deletion_is_400_and_deletes_nothing(alice: Caller, statements: list[str], query: str) -> None:
    alice("PATCH", f"/{alice.create()['id']}/complete")
    statements.clear()
    response = alice("DELETE", query=query)
    message = "Unknown query parameter: q" if "q=" in query else ONLY_COMPLETE
    assert (response.status_code, response.get_json(), statements) == (400, {"error": message}, [])


@on_postgresql
class TestRace:
    """Another change of the user comes first, while the call waits for the user's clock."""

    def test_what_was_changed_meanwhile_is_not_changed_again(self, alice: Caller, url: URL) -> None:
        tasks = [alice.create() for _ in range(3)]
        with session(url) as connection, ThreadPoolExecutor(1) as pool:
            connection.exec_driver_sql(f"UPDATE users SET changed_at = {later(url, 'changed_at', 3600)}")
            changed = "UPDATE tasks SET status = 'complete', updated_at = changed_at FROM users"
            connection.exec_driver_sql(f"{changed} WHERE users.id = user_id AND tasks.id = {tasks[0]['id']}")
            connection.exec_driver_sql("INSERT INTO tasks (user_id, title) VALUES ('alice', 'late')")
            waiting = pool.submit(complete_all, alice)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            connection.commit()
            assert waiting.result() == {"changed": 2, "more": False}
        after = {task["id"]: task for task in alice("GET").get_json()}
        assert sorted(task["status"] for task in after.values()) == ["complete"] * 3 + ["incomplete"]
        # The change that came first is still the last one of its task.
        assert after[tasks[0]["id"]]["updated_at"] < after[tasks[1]["id"]]["updated_at"]

    def test_what_was_reopened_meanwhile_is_not_deleted(self, alice: Caller, url: URL) -> None:
        tasks = [alice.create() for _ in range(2)]
        complete_all(alice)
        with session(url) as connection, ThreadPoolExecutor(1) as pool:
            connection.exec_driver_sql(f"UPDATE users SET changed_at = {later(url, 'changed_at', 3600)}")
            connection.exec_driver_sql(f"UPDATE tasks SET status = 'incomplete' WHERE id = {tasks[0]['id']}")
            waiting = pool.submit(clear, alice)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            connection.commit()
            assert waiting.result() == {"deleted": 1, "more": False}
        assert [task["id"] for task in alice("GET").get_json()] == [tasks[0]["id"]]
        assert sql(url, "SELECT row_id FROM deletions") == [(tasks[1]["id"],)]
